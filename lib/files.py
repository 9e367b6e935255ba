"""A file appears whole or not at all, and is looked at before it is read."""

import contextlib
import errno
import json
import os
import pathlib
import platform
import re
import stat

from lib import errors

_NAME_BYTES = 255  # what a file's name may have at most

_TEMPORARY = re.compile(r'.+\.partial-(?P<host>.+)-(?P<pid>\d+)(?:\.(?P<birth>\d+))?')
_UNKNOWN = '?'


def open_regular(path):
    """Open a regular file for reading, as bytes; a named pipe would wait for its writer, a device never end.

    Raises:
        OSError: It cannot be opened, or is something else (EINVAL).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        # A socket, or a device that nobody serves: not even these can be opened.
        if error.errno in (errno.ENXIO, errno.ENODEV):
            _check_regular(path, os.stat(path))
        raise
    try:
        _check_regular(path, os.fstat(descriptor))
        return open(descriptor, 'rb')
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(path, status):
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, 'not a regular file', os.fspath(path))


@contextlib.contextmanager
def replacing(path, mode='wb', durable=False):
    """Open a file that takes the name ``path`` whole or not at all; its directory is made if need be.

    Args:
        path: File to create or replace.
        mode (str): ``w`` or ``wb``.
        durable (bool): Whether it also has to be on the disk by then.

    Raises:
        OSError: The file cannot be written (disk full, read-only, quota); the temporary file is removed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Host and process in the name tell what a dead writer has left from a file being written; and the time of
    # birth, since numbers of processes are used again: in containers at every start.
    mark = f'.partial-{_host()}-{os.getpid()}.{_state_and_birth(os.getpid())[1]}'
    temporary = path.with_name(os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES - len(mark)]) + mark)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        # A new file or an error: never through a link that somebody has put there.
        with open(temporary, mode.replace('w', 'x')) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        # The file has its name already, and not every file system can synchronize a directory.
        with contextlib.suppress(OSError):
            _synchronize(path.parent)


def _synchronize(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory, of_living=False):
    """Remove temporary files from a directory, which need not exist.

    Args:
        directory: Directory.
        of_living (bool): Whether also those whose writer may be alive, since nobody else writes there.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match and (of_living or not _is_alive(match['host'], int(match['pid']), match['birth'])):
            with contextlib.suppress(OSError):  # it stays, and does no harm
                os.unlink(os.path.join(directory, name))


def _is_alive(host, pid, birth):
    # A job that moved to another host has left its writer behind there.
    if host != _host():
        return False
    state, born = _state_and_birth(pid)
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    # A zombie, whose parent has not asked for it yet, answers and writes no more. Version 1.0 named no birth.
    return state == _UNKNOWN or state not in 'ZX' and birth in (None, born)


def _state_and_birth(pid):
    """A process's state, and when it was born in the kernel's ticks, as far as the system tells."""
    try:
        # The name before may be any bytes.
        fields = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace').rpartition(')')[2].split()
    except OSError:
        return _UNKNOWN, '0'
    return fields[0], fields[19]


def _host():
    return platform.node() or 'host'


def write(path, save, mode='w'):
    """Write a file as a whole or not at all.

    Args:
        path (str): File.
        save (callable): Writes into the open file that it is given.
        mode (str): ``w`` or ``wb``.
    """
    with replacing(path, mode) as file:
        save(file)


def append(path, content):
    """Append bytes as a whole or not at all: a part would spoil what comes behind it.

    Raises:
        OSError: The file cannot be written; it is as it was.
    """
    with open(path, 'ab', buffering=0) as file:
        end = file.tell()
        if file.write(content) < len(content):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_line(path, text):
    """Write a text and the end of its line, as ``write`` does."""
    write(path, lambda file: file.write(f'{text}\n'))


def write_json(path, value):
    """Write a JSON value, as ``write`` does."""
    write(path, lambda file: json.dump(value, file, indent=4))


def try_to(function, path, *arguments):
    """Call ``function(path, ...)``; a failure to write is reported and does not end the training."""
    try:
        function(path, *arguments)
    except OSError as error:
        errors.say(f'{errors.printable(path)} was not written ({error.strerror}); training goes on')
