"""A file appears whole or not at all; checkpoints' tests break its writer off half way."""

import errno
import json

from lib import files

import pytest


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / 'plan.json'
    files.write_json(path, {'a': 1})
    files.write_json(path, {'b': 2})
    assert json.loads(path.read_text()) == {'b': 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ['plan.json']


def test_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError), files.replacing(path, 'w') as file:
        file.write('new')
        1 / 0  # noqa: B018
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_regular_file_is_not_opened(tmp_path, special_file):
    special_file(tmp_path / 'special')
    with pytest.raises(OSError, match='not a regular file') as caught:
        files.open_regular(tmp_path / 'special')
    assert caught.value.errno == errno.EINVAL


def test_bytes_are_appended_as_a_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / 'file'
    files.append(path, b'one')
    with full_disk(5), pytest.raises(OSError):
        files.append(path, b'two')
    files.append(path, b'three')
    assert path.read_bytes() == b'onethree'
