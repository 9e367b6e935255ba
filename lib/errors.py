"""What a run tells people in the end: errors, exit statuses, text made fit for a terminal, and where it goes.

Names in such text come from file systems, archives and checkpoints: they may hold a line's end, a terminal's
commands, or bytes that are no text at all.
"""

import io
import os
import sys

EXIT_FINISHED = 0
# A status of 0 is also what mpirun gives a job that lost a host: a run that finished leaves this in --out.
FINISHED_MARK = 'finished'
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # sysexits.h EX_TEMPFAIL: start again with --resume auto
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT


class UserError(Exception):
    """Something the user can mend: bad arguments, data or files.

    The message is one line that names the value, what was expected and the remedy; names in it may come from
    anywhere, so it is made printable. The program prints it without a traceback and every rank exits with
    status 2.
    """

    def __init__(self, message):
        super().__init__(printable(message))


class BadImage(UserError):
    """An image file that cannot be decoded."""

    def __init__(self, path, reason):
        super().__init__(f'{path}: not a readable image ({reason}); replace or remove the file, '
                         'or continue without such files with --on-bad-image skip')
        self.path = path
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


class TrainingFault(Exception):
    """The training itself went wrong (for example a non-finite gradient); ends every rank with status 1."""


class _Outlasting(io.FileIO):
    """Standard output or error that takes all, also when its reader has gone or the disk is full."""

    lost = None  # why standard output was not written, where somebody still waits for it

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
                _Outlasting.lost = error.strerror
            return len(data)


def outlast_streams():
    """Let a program go on when its standard output and error are closed, break or fill up; at its start.

    A closed one becomes the null device: else the next file that is opened would get its number, and what
    is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, this one
    for name, number in (('stdout', 1), ('stderr', 2)):
        old = getattr(sys, name)
        setattr(sys, name, io.TextIOWrapper(
            io.BufferedWriter(_Outlasting(number, 'w', closefd=False)), getattr(old, 'encoding', None),
            'backslashreplace', line_buffering=getattr(old, 'line_buffering', True),
            write_through=getattr(old, 'write_through', False)))


def check_output():
    """Raise UserError if a full disk has not taken what was printed, of a program that does nothing else."""
    if _Outlasting.lost:
        raise UserError(f'standard output cannot be written ({_Outlasting.lost}); make room')


def shortage(error):
    """Say in one line what a process ran out of, and the remedy; None if an error has another cause.

    What goes wrong in the cleaning up after a shortage is its consequence.
    """
    while error is not None:
        if isinstance(error, MemoryError):
            return (f'out of memory ({str(error) or type(error).__name__}); use a smaller -B, with more '
                    '--virtual-workers for the same total batch, a smaller -b or --insize, or fewer -j')
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return 'no more processes or threads can be started; raise the limit (ulimit -u) or use fewer -j'
        error = error.__cause__ or error.__context__
    return None


def printable(text):
    r"""Return ``text`` as one line on which every character shows: ``\n``, ``\x1b``, ``\u202e`` for others.

    A byte of a file name that is no text, for which Python has a surrogate, becomes ``\xff``.
    """
    return ''.join(character if character.isprintable() else _escaped(character) for character in str(text))


def _escaped(character):
    if '\udc80' <= character <= '\udcff':
        return f'\\x{ord(character) - 0xdc00:02x}'
    return character.encode('unicode_escape').decode()


def printable_lines(text):
    """Return ``text`` with every line made :func:`printable`."""
    return '\n'.join(map(printable, text.split('\n')))


def say(text, file=None):
    """Print :func:`printable_lines` of ``text`` at once, in whatever encoding ``file`` has.

    A name within ``text`` that may hold a line's end has to be printable before.

    Args:
        text (str): One line or more.
        file: Open text file; by default standard error.
    """
    file = sys.stderr if file is None else file
    encoding = getattr(file, 'encoding', None) or 'utf-8'
    print(printable_lines(text).encode(encoding, 'backslashreplace').decode(encoding), file=file, flush=True)


def say_line(line, file=None):
    """Print a line that may hold names from anywhere, made :func:`printable`; else as :func:`say`."""
    say(printable(line), file)
