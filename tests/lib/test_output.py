import json

import pytest

from lib import checkpoint, output
from lib.errors import UserError


def test_missing_directory_is_made(tmp_path):
    output.prepare(tmp_path / 'a' / 'b', resume=False, force=False)
    assert list((tmp_path / 'a' / 'b').iterdir()) == []


def test_directory_of_another_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / 'log').write_text('[]')
    with pytest.raises(UserError, match='not empty.*log.*--resume auto.*--force'):
        output.prepare(tmp_path, resume=False, force=False)
    assert (tmp_path / 'log').read_text() == '[]'


def test_run_is_continued_when_asked(tmp_path):
    (tmp_path / 'log').write_text('[]')
    output.prepare(tmp_path, resume=True, force=False)


def test_force_removes_the_old_runs_checkpoints(tmp_path):
    checkpoint.write(checkpoint.path_of(tmp_path, 3), {}, {})
    output.prepare(tmp_path, resume=False, force=True)
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file/out'):
        output.prepare(tmp_path / 'file' / 'out', resume=False, force=False)


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / 'plan.json'
    output.write_json(path, {'a': 1})
    output.write_json(path, {'b': 2})
    assert json.loads(path.read_text()) == {'b': 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ['plan.json']
