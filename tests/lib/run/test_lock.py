import errno
import fcntl
import os
import pathlib
import platform
import signal
import subprocess
import sys

from lib.errors import UserError
from lib.run import lock

import pytest

ROOT = pathlib.Path(lock.__file__).resolve().parents[2]

# Holds the directory until told, or killed; its forked child, which prints its number, stays.
HOLDER = '''
import os, signal, sys
from lib.run import lock
with lock.hold(sys.argv[1]):
    child = os.fork()
    if child == 0:
        signal.pause()
    print(child, flush=True)
    input()
'''


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path``, and in turn has a forked child."""
    process = subprocess.Popen([sys.executable, '-c', HOLDER, tmp_path], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.communicate()


def is_free(out):
    with lock.hold(out):
        return True


def test_second_run_is_refused_and_told_who_holds_the_directory(holder, tmp_path):
    with pytest.raises(UserError) as caught, lock.hold(tmp_path):
        pass
    assert f'process {holder.pid} on host {platform.node()}' in str(caught.value)
    assert (tmp_path / lock.NAME).exists()


def test_lock_ends_with_its_process_whatever_children_live_on(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert is_free(tmp_path)


def test_nothing_is_left_of_the_words_of_a_holder_that_was_killed(tmp_path):
    (tmp_path / lock.NAME).write_text(f'process 1234567 on host {platform.node()}.a-longer-name')
    with lock.hold(tmp_path):
        assert (tmp_path / lock.NAME).read_text() == f'process {os.getpid()} on host {platform.node()}'


def test_a_pipe_in_the_locks_place_is_named(tmp_path):
    os.mkfifo(tmp_path / lock.NAME)
    with pytest.raises(UserError, match=r'cannot be written \(lock is not a regular file; remove it\)'):
        is_free(tmp_path)


def test_nothing_is_left_in_the_directory_afterwards(holder, tmp_path):
    holder.stdin.write('\n')
    holder.stdin.flush()
    holder.wait()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_another_run_stays_when_a_user_gave_the_directory_to_it(tmp_path):
    with lock.hold(tmp_path):
        (tmp_path / lock.NAME).unlink()
        (tmp_path / lock.NAME).write_text("another's")
    assert (tmp_path / lock.NAME).read_text() == "another's"


def test_restart_waits_for_a_run_that_is_about_to_end(holder, tmp_path, monkeypatch, capsys):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            holder.kill()
            holder.wait()

    monkeypatch.setattr(lock.time, 'sleep', nap)
    with lock.hold(tmp_path, wait=3600):
        assert len(naps) == 3
    assert capsys.readouterr().err.count(f'in use by process {holder.pid}') == 1


def test_waiting_ends(holder, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lock.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(lock.time, 'sleep', lambda seconds: now.append(now.pop() + seconds))
    with pytest.raises(UserError, match='in use'), lock.hold(tmp_path, wait=10):
        pass
    assert now[0] == pytest.approx(10, abs=1)


def test_wait_outlasts_a_watchdog_that_python_does_not_run():
    assert lock.patience(None) > 90
    assert lock.patience(1000) > 1250


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_without_locks_is_said_and_no_failure(tmp_path, monkeypatch, capsys, code):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, 'lockf', refuse)
    assert is_free(tmp_path)
    line, = capsys.readouterr().err.splitlines()
    assert f'{lock.NAME}: this file system has no locks ({os.strerror(code)})' in line


@pytest.mark.parametrize('error', [None, OSError(errno.ESTALE, 'Stale file handle')])
def test_file_that_the_last_holder_removed_is_not_taken_for_the_lock(tmp_path, monkeypatch, error):
    lockf = fcntl.lockf

    def lock_what_is_gone(file, operation):
        monkeypatch.undo()
        os.unlink(tmp_path / lock.NAME)
        if error:
            raise error
        lockf(file, operation)

    monkeypatch.setattr(fcntl, 'lockf', lock_what_is_gone)
    with lock.hold(tmp_path):
        enter = 'import sys; from lib.run import lock; lock.hold(sys.argv[1]).__enter__()'
        other = subprocess.run([sys.executable, '-c', enter, tmp_path], cwd=ROOT, text=True,
                               capture_output=True, timeout=60)
        assert f'in use by process {os.getpid()}' in other.stderr


def test_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file/out: cannot be written'), lock.hold(tmp_path / 'file' / 'out'):
        pass


def test_a_link_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('text')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / lock.NAME).symlink_to(tmp_path / 'precious')
    with pytest.raises(UserError, match='cannot be written'), lock.hold(tmp_path / 'out'):
        pass
    assert (tmp_path / 'precious').read_text() == 'text'
