"""The lock that keeps a second run out of a live run's output directory.

It is a POSIX record lock, not ``flock``'s (which the package filelock takes). The kernel releases either
when its process dies, but a forked child inherits ``flock``'s and may keep it beyond that; and NFS and
parallel file systems carry POSIX locks between hosts. That these end when their process closes *any*
descriptor of the file does no harm: nothing else in the process that holds it opens ``OUT/lock``.
"""

import contextlib
import errno
import fcntl
import os
import platform
import stat
import time

from lib import errors
from lib.errors import UserError

NAME = 'lock'

_POLL = 0.5


def patience(stall_timeout):
    """Return the seconds within which a rank 0 that was cut off from its job is gone, and its lock with it.

    Args:
        stall_timeout (float or None): Seconds after which it ends itself: up to a quarter more where Python
            does not get to run, and a few for its last words. NFS keeps a lost host's locks for 90 s.
    """
    return 1.25 * (stall_timeout or 0) + 120


@contextlib.contextmanager
def hold(out, wait=0):
    """Hold the output directory for one run; for rank 0, as long as the run may write there.

    On a file system without locks a line on standard error says so, and the run goes on without.

    Args:
        out (str): Directory; created if missing.
        wait (float): Seconds to wait for a run that holds it.

    Raises:
        UserError: Another run holds it, which the message names by process and host; or it cannot be written.
    """
    path = os.path.join(out, NAME)
    deadline = time.monotonic() + wait
    waiting = False
    try:
        os.makedirs(out, exist_ok=True)
        file, holder = _try(path)
        while file is None and time.monotonic() < deadline:
            if not waiting:
                errors.say_line(f'--out {out}: in use by {holder}; waiting up to {wait:.0f} s for its end')
                waiting = True
            time.sleep(_POLL)
            file, holder = _try(path)
    except OSError as error:
        raise UserError(f'--out {out}: cannot be written ({error.strerror}); choose another directory '
                        'or make room') from None
    if file is None:
        raise UserError(f'--out {out}: in use by {holder}; wait for its end, or stop it, or choose another '
                        'directory')
    with file:
        try:
            yield
        finally:
            # Before it is released: whoever gets it then sees that it has no name any more. If a user removed
            # it, the name is another run's.
            with contextlib.suppress(OSError):
                if _is_at(path, file):
                    os.unlink(path)


def _is_at(path, file):
    return os.path.samestat(os.fstat(file.fileno()), os.stat(path))


def _try(path):
    """``(file, None)`` if the lock is now this process's, ``(None, who)`` if it is another's."""
    with contextlib.ExitStack() as unless_held:
        # What is held is emptied: never through a link that somebody has put there.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, f'{NAME} is not a regular file; remove it')
        file = unless_held.enter_context(open(descriptor, 'r+'))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            removed = not _is_at(path, file)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                return None, file.read() or 'another process'
            removed = error.errno in (errno.ENOENT, errno.ESTALE)
            if not removed:
                errors.say_line(f'{path}: this file system has no locks ({error.strerror}): a second '
                                'run into the same directory would not be noticed')
        if removed:  # by a run that ended since it was opened
            return _try(path)
        file.truncate(0)
        file.write(f'process {os.getpid()} on host {platform.node()}')
        file.flush()
        os.fsync(file.fileno())  # for readers on other hosts
        unless_held.pop_all()
        return file, None
