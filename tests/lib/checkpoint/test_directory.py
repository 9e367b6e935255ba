"""The directory of checkpoints."""

import errno
import io
import os
import select
import subprocess
import sys

from lib import files
from lib.checkpoint import directory, file
from lib.checkpoint.file import UnreadableCheckpoint
from lib.errors import UserError

import numpy as np
import pytest

from tests.lib.checkpoint import examples
from tests.lib.checkpoint.examples import ARRAYS, WRITER, damage, iterations_of, same, write_iterations


def test_names_are_as_documented(tmp_path):
    assert directory.path_of(tmp_path, 123) == tmp_path / 'checkpoint' / 'iteration-00000123.npz'


def test_checkpoints_are_listed_newest_first_and_other_files_ignored(tmp_path):
    assert directory.list_checkpoints(tmp_path) == []
    write_iterations(tmp_path, 99999999, 5, 100000000, 20)
    for name in ('iteration-7.npz', 'iteration-00000008.npz.bak', 'notes'):
        (tmp_path / 'checkpoint' / name).write_text('')
    assert iterations_of(tmp_path) == [100000000, 99999999, 20, 5]


def test_newest_valid_passes_damaged_ones_over_and_names_them(tmp_path):
    write_iterations(tmp_path, 1, 2, 3)
    damage(directory.path_of(tmp_path, 3))
    damage(directory.path_of(tmp_path, 2))
    said = []
    path, arrays, description = directory.newest_valid(tmp_path, said.append)
    assert path == directory.path_of(tmp_path, 1)
    assert same(arrays, ARRAYS) and description == examples.description(1)
    assert ['00000003' in said[0], '00000002' in said[1], len(said)] == [True, True, 2]


def test_newest_valid_passes_over_what_is_no_regular_file(tmp_path, special_file):
    write_iterations(tmp_path, 1)
    special_file(directory.path_of(tmp_path, 99))
    said = []
    assert directory.newest_valid(tmp_path, said.append)[0] == directory.path_of(tmp_path, 1)
    assert said == [f'passing over {directory.path_of(tmp_path, 99)}: not a regular file']


def test_newest_valid_is_none_without_any(tmp_path):
    assert directory.newest_valid(tmp_path, pytest.fail) is None


def test_checkpoints_that_are_all_damaged_are_not_taken_for_none(tmp_path):
    write_iterations(tmp_path, 1, 2)
    damage(directory.path_of(tmp_path, 1))
    damage(directory.path_of(tmp_path, 2))
    said = []
    with pytest.raises(UserError, match=r'none of its checkpoints \(2\) is valid.*--force'):
        directory.newest_valid(tmp_path, said.append)
    assert len(said) == 2
    assert iterations_of(tmp_path) == [2, 1]


def no_permission(path):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def bad_disk(path):
    class Bad(io.FileIO):
        def readinto(self, buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return io.BufferedReader(Bad(path))


def disk_that_is_bad_behind_the_directory_of_the_zip(path):
    class Bad(io.FileIO):
        def readinto(self, buffer):
            if self.tell() < 100:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer)

    return io.BufferedReader(Bad(path), 64)


@pytest.fixture(params=['no permission', 'bad disk', 'bad sector', 'no memory'])
def unreadable(request, monkeypatch):
    """``unreadable(*iterations)``: the system does not let these checkpoints be read; says the reason."""
    open_faulty, reason = {
        'no permission': (no_permission, 'Permission denied'),
        'bad disk': (bad_disk, 'Input/output error'),
        'bad sector': (disk_that_is_bad_behind_the_directory_of_the_zip, 'Input/output error'),
        'no memory': (files.open_regular, 'Unable to allocate'),
    }[request.param]

    def make(*iterations):
        faulty = tuple(f'iteration-{iteration:08d}.npz' for iteration in iterations)
        opened = []
        open_regular = files.open_regular

        def open_some(path):
            opened.append(str(path))
            return (open_faulty if str(path).endswith(faulty) else open_regular)(path)

        def allocate(shape, dtype):
            if opened[-1].endswith(faulty):
                raise MemoryError(reason)
            return np.zeros(shape, dtype)

        monkeypatch.setattr(files, 'open_regular', open_some)
        if open_faulty is open_regular:
            monkeypatch.setattr(np, 'empty', allocate)
        return reason

    return make


def test_unreadable_checkpoint_is_an_error_and_never_passed_over(tmp_path, unreadable):
    write_iterations(tmp_path, 1, 2)
    reason = unreadable(2)
    with pytest.raises(UnreadableCheckpoint, match=f'00000002.npz: cannot be read now .{reason}'):
        directory.newest_valid(tmp_path, pytest.fail)
    with pytest.raises(UnreadableCheckpoint, match=reason):
        file.read(directory.path_of(tmp_path, 2))
    assert file.read(directory.path_of(tmp_path, 1))[1] == examples.description(1)


def test_prune_does_not_take_unreadable_for_damaged(tmp_path, unreadable):
    write_iterations(tmp_path, 1, 2, 3, 4, 5)
    damage(directory.path_of(tmp_path, 4))
    unreadable(5, 3, 1)
    directory.prune(tmp_path, 1)
    assert iterations_of(tmp_path) == [5, 3, 2]  # the newest valid one, and what may be a newer one


def test_directory_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    write_iterations(tmp_path, 1)

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UnreadableCheckpoint, match='checkpoint: cannot be read now .Permission denied'):
        directory.newest_valid(tmp_path, pytest.fail)


def test_prune_keeps_the_newest(tmp_path):
    write_iterations(tmp_path, 1, 2, 3, 4)
    directory.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [4, 3]
    directory.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [4, 3]


def test_prune_reads_nothing_until_one_is_too_many(tmp_path, monkeypatch):
    write_iterations(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(file, 'scan', lambda *_: pytest.fail('read'))
        directory.prune(tmp_path, 2)
    write_iterations(tmp_path, 3)
    directory.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [3, 2]


def test_prune_keeps_at_least_one(tmp_path):
    write_iterations(tmp_path, 1)
    with pytest.raises(ValueError, match='keep=0'):
        directory.prune(tmp_path, 0)
    assert iterations_of(tmp_path) == [1]


def test_prune_never_removes_the_only_valid_one(tmp_path):
    write_iterations(tmp_path, 1, 2, 3, 4)
    damage(directory.path_of(tmp_path, 4))
    damage(directory.path_of(tmp_path, 3))
    directory.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [4, 3, 2]


def test_temporary_files_go_when_their_writer_is_dead(tmp_path, monkeypatch):
    alive = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    zombie = subprocess.Popen([sys.executable, '-c', ''])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    kept, gone = [], []
    # The name a writer gives its temporary file, taken from a write that is interrupted.
    for pid, names in ((os.getpid(), kept), (alive.pid, kept), (dead.pid, gone), (zombie.pid, gone)):
        monkeypatch.setattr(os, 'getpid', lambda pid=pid: pid)
        for folder in (tmp_path, tmp_path / 'checkpoint'):
            with files.replacing(folder / 'iteration-00000001.npz'):
                names += [path for path in folder.iterdir() if str(pid) in path.name]
    monkeypatch.undo()
    kept, gone = {*kept, kept[0].with_suffix('')}, set(gone)  # version 1.0 named no birth
    elsewhere = tmp_path / 'checkpoint' / f'iteration-00000001.npz.partial-another.host-{os.getpid()}'
    gone.add(elsewhere)
    for path in kept | gone:
        path.write_text('')
    directory.prune(tmp_path, 1)
    alive.communicate(b'\n')
    zombie.wait()
    assert len(kept) == 5 and len(gone) == 5
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_temporary_files_go_when_another_process_has_their_writers_number(tmp_path, monkeypatch):
    named = r'open("/proc/self/comm", "wb").write(b"\xff) Z"); print(flush=True); input()'
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-c', named], **pipes) as writer:
        writer.stdout.readline()  # it has its name
        monkeypatch.setattr(os, 'getpid', lambda: writer.pid)
        with files.replacing(tmp_path / 'log'):
            name, = os.listdir(tmp_path)
        monkeypatch.undo()
        for path in (tmp_path / name, tmp_path / name.replace(f'-{writer.pid}', f'-{os.getpid()}')):
            path.write_text('')
        directory.prune(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ['log', name]


def test_a_temporary_file_that_cannot_be_removed_does_not_fail_the_checkpoint(tmp_path):
    write_iterations(tmp_path, 1)
    (tmp_path / f'log.partial-{os.uname().nodename}-99999999').mkdir()
    directory.prune(tmp_path, 1)
    assert iterations_of(tmp_path) == [1]


def test_remove_all_leaves_other_files(tmp_path):
    write_iterations(tmp_path, 1, 2)
    (tmp_path / 'checkpoint' / 'notes').write_text('')
    directory.remove_all(tmp_path)
    assert os.listdir(tmp_path / 'checkpoint') == ['notes']


def test_a_directory_of_a_checkpoints_name_stays_and_is_none(tmp_path, capsys):
    write_iterations(tmp_path, 1, 2, 4, 5)
    directory.path_of(tmp_path, 3).mkdir()
    directory.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [5, 4]
    assert directory.path_of(tmp_path, 3).is_dir()
    directory.remove_all(tmp_path)
    assert iterations_of(tmp_path) == []
    assert capsys.readouterr() == ('', '')


def test_a_checkpoint_that_cannot_be_removed_is_named_and_the_others_go(tmp_path, capsys, monkeypatch):
    def refuse(path):
        if path == directory.path_of(tmp_path, 2):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path)

    write_iterations(tmp_path, 1, 2, 3, 4)
    unlink = os.unlink
    monkeypatch.setattr(os, 'unlink', refuse)
    directory.prune(tmp_path, 1)
    assert iterations_of(tmp_path) == [4, 2]
    assert '00000002.npz was not removed (Permission denied); training' in capsys.readouterr().err


def test_a_killed_writer_leaves_no_half_file_under_a_checkpoints_name(tmp_path):
    random = np.random.RandomState(0)
    for round in range(3):
        out = tmp_path / str(round)
        process = subprocess.Popen([sys.executable, '-c', WRITER, out], stdout=subprocess.PIPE,
                                   env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
        assert process.stdout.readline() == b'ready\n'
        for _ in range(3):
            process.stdout.readline()
        select.select([], [], [], random.uniform(0, 0.02))  # somewhere within a write
        process.kill()
        last = int((process.communicate()[0].split() or [b'3'])[-1])
        for path in directory.list_checkpoints(out):
            assert np.array_equal(file.read(path)[0]['a'], np.arange(100_000))
        assert len(directory.list_checkpoints(out)) >= last
        directory.prune(out, 1)
        assert len(os.listdir(out / 'checkpoint')) == 1  # the temporary file of the dead is gone
