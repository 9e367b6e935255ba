"""Writing in the background."""

import os
import subprocess
import sys
import threading

from lib import files
from lib.checkpoint import directory, file
from lib.checkpoint.writer import BackgroundWriter

import numpy as np
import pytest

from tests.lib.checkpoint.examples import ARRAYS, BIG, WRITER, description, iterations_of, open_full, same


def test_background_writes_are_complete_at_close(tmp_path):
    writer = BackgroundWriter()
    done = []
    for iteration in (1, 2, 3):
        assert writer.submit(directory.path_of(tmp_path, iteration), ARRAYS, description(iteration),
                             done.append) is None
    assert writer.close() is None
    assert done == [directory.path_of(tmp_path, iteration) for iteration in (1, 2, 3)]
    assert same(directory.newest_valid(tmp_path, pytest.fail)[1], ARRAYS)


def test_one_write_at_a_time_in_a_thread_of_its_own(tmp_path, monkeypatch):
    release, events = threading.Event(), []

    def slow_write(path, arrays, description):
        events.append(('begin', path, threading.current_thread().daemon))
        release.wait(10)
        events.append(('end', path))

    monkeypatch.setattr(file, 'write', slow_write)
    writer = BackgroundWriter()
    writer.submit('first', {}, {})
    assert writer.failure() is None and ('end', 'first') not in events  # does not wait
    threading.Timer(0.05, release.set).start()
    writer.submit('second', {}, {})
    writer.close()
    assert events == [('begin', 'first', False), ('end', 'first'),
                      ('begin', 'second', False), ('end', 'second')]


def test_a_background_failure_is_told_once_and_the_next_one_written(tmp_path, monkeypatch):
    writer = BackgroundWriter()
    done = []
    monkeypatch.setattr(files, 'open', open_full, raising=False)
    assert writer.submit(directory.path_of(tmp_path, 1), BIG, {}, done.append) is None
    failure = writer.close()
    assert 'iteration-00000001.npz' in failure and 'No space left' in failure
    assert writer.close() is None
    monkeypatch.undo()
    (tmp_path / 'blocked').write_text('a file in the place of the output directory')
    assert writer.submit(directory.path_of(tmp_path / 'blocked', 2), BIG, {}, done.append) is None
    failure = writer.submit(directory.path_of(tmp_path, 3), BIG, {}, done.append)
    assert 'iteration-00000002.npz' in failure and '\n' not in failure
    assert writer.close() is None
    assert done == [directory.path_of(tmp_path, 3)]
    assert os.listdir(tmp_path / 'checkpoint') == ['iteration-00000003.npz']


def test_a_failure_is_told_as_soon_as_the_write_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'open', open_full, raising=False)
    writer = BackgroundWriter()
    assert writer.failure() is None
    writer.submit(tmp_path / 'first.npz', BIG, {})
    writer._thread.join()
    assert 'No space left' in writer.failure()


def test_a_shortage_of_memory_is_told_and_does_not_end_the_training(monkeypatch):
    def write(path, arrays, description):
        raise MemoryError

    monkeypatch.setattr(file, 'write', write)
    writer = BackgroundWriter()
    writer.submit('first.npz', {}, {})
    assert writer.close() == 'checkpoint first.npz failed: MemoryError'


def test_a_background_fault_that_no_disk_explains_is_raised():
    writer = BackgroundWriter()
    writer.submit('never.npz', {'a': np.array(None)}, {})
    with pytest.raises(TypeError, match='object'):
        writer.close()


def test_a_program_that_ends_without_close_finishes_its_file(tmp_path):
    code = (WRITER.split('print')[0] + 'from lib.checkpoint.writer import BackgroundWriter\n'
            'BackgroundWriter().submit(directory.path_of(sys.argv[1], 1), {"a": np.zeros(3_000_000)},\n'
            '    {"job": {}, "log": [], "elapsed_time": 0, "versions": {}, "iteration": 1})')
    subprocess.run([sys.executable, '-c', code, tmp_path], check=True,
                   env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert iterations_of(tmp_path) == [1]
    assert directory.newest_valid(tmp_path, pytest.fail) is not None
