import os

from lib import files
from lib.checkpoint import directory, file
from lib.errors import FINISHED_MARK, UserError
from lib.run import lock, output

import pytest

from tests.lib.checkpoint.examples import description


def test_missing_directory_is_made(tmp_path):
    output.prepare(tmp_path / 'a' / 'b', resume=None, force=False)
    assert list((tmp_path / 'a' / 'b').iterdir()) == []


def test_directory_of_another_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / 'log').write_text('[]')
    with pytest.raises(UserError, match='not empty.*log.*--resume auto.*--force'):
        output.prepare(tmp_path, resume=None, force=False)
    assert (tmp_path / 'log').read_text() == '[]'


def test_lock_of_this_run_does_not_make_the_directory_another_ones(tmp_path):
    with lock.hold(tmp_path):
        output.prepare(tmp_path, resume=None, force=False)


def test_run_is_continued_when_asked(tmp_path):
    (tmp_path / 'log').write_text('[]')
    output.prepare(tmp_path, resume='auto', force=False)


def test_force_removes_the_old_runs_checkpoints(tmp_path):
    file.write(directory.path_of(tmp_path, 3), {}, description())
    output.prepare(tmp_path, resume=None, force=True)
    assert directory.list_checkpoints(tmp_path) == []


def test_force_removes_the_old_runs_mark_and_event_files_and_nothing_foreign(tmp_path):
    (tmp_path / FINISHED_MARK).write_text('')
    (tmp_path / 'events.out.tfevents.1763740000.host').write_bytes(b'')
    (tmp_path / 'notes').write_text('')
    output.prepare(tmp_path, resume=None, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ['notes']


def test_checkpoints_that_cannot_be_removed_are_the_users_to_mend(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied')

    file.write(directory.path_of(tmp_path, 3), {}, description())
    monkeypatch.setattr(directory, '_remove', refuse)
    with pytest.raises(UserError, match='cannot be removed.*Permission denied'):
        output.prepare(tmp_path, resume=None, force=True)


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file/out'):
        output.prepare(tmp_path / 'file' / 'out', resume=None, force=False)


def test_a_link_in_the_temporary_files_place_is_not_followed(tmp_path, monkeypatch):
    precious = tmp_path / 'precious'
    precious.write_text('text')
    with files.replacing(tmp_path / 'log'):
        temporary, = (path for path in tmp_path.iterdir() if path != precious)
    temporary.symlink_to(precious)
    files.write_json(tmp_path / 'log', [])
    assert precious.read_text() == 'text'
    assert (tmp_path / 'log').read_text() == '[]' and not (tmp_path / 'log').is_symlink()


def test_checkpoint_of_another_directory_does_not_mix_with_a_run(tmp_path):
    (tmp_path / 'log').write_text('[]')
    output.prepare(tmp_path, resume=str(tmp_path / 'checkpoint' / 'iteration-00000001.npz'), force=False)
    with pytest.raises(UserError, match='not empty'):
        output.prepare(tmp_path, resume=f'{tmp_path}-2/checkpoint/iteration-00000001.npz', force=False)


@pytest.mark.parametrize('name', output.FILES)
@pytest.mark.parametrize('resume, force', [('auto', False), (None, True)])
def test_a_directory_in_a_files_place_is_the_users_to_move(tmp_path, name, resume, force):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f'/{name}: a directory, where a run writes a file; move it away'):
        output.prepare(tmp_path, resume, force)


@pytest.mark.parametrize('make', [
    lambda path: path.write_text(''), os.mkfifo, lambda path: path.symlink_to('nowhere')])
@pytest.mark.parametrize('resume, force', [('auto', False), (None, True)])
def test_what_is_no_directory_in_the_checkpoints_place_is_the_users_to_move(tmp_path, make, resume, force):
    make(tmp_path / 'checkpoint')
    with pytest.raises(UserError, match='/checkpoint: not a directory, where a run keeps its checkpoints'):
        output.prepare(tmp_path, resume, force)


def test_checkpoints_may_lie_behind_a_link(tmp_path):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'checkpoint').symlink_to('other')
    output.prepare(tmp_path, resume='auto', force=False)


def test_clearing_leaves_what_is_not_a_runs(tmp_path):
    for name in (*output.FILES, 'notes.txt'):
        (tmp_path / name).write_text('')
    output.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_failed_probe_leaves_nothing_behind(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

        def write(self, data):
            raise OSError(28, 'No space left on device')

    def open_full(path, mode):
        open_file(path, mode).close()
        return Full()

    open_file = open
    monkeypatch.setattr(files, 'open', open_full, raising=False)
    with pytest.raises(UserError, match='No space left'):
        output.prepare(tmp_path, resume=None, force=False)
    assert list(tmp_path.iterdir()) == []
