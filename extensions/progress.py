"""What a person watching the run sees: Chainer's table of the log, and its progress bar on a terminal."""

import os
import sys

from chainer.training import extensions, triggers

_COLUMNS = ('epoch', 'iteration', 'main/loss', 'validation/main/loss', 'main/accuracy',
            'validation/main/accuracy', 'lr', 'alpha_sgd', 'images_per_sec', 'elapsed_time')


def on_terminal():
    """Tell whether a person sees this process's standard error.

    Under mpirun it is a pipe, whose other end mpirun copies to its own; standard output is a pseudo-terminal
    even when mpirun's goes to a file. So the launcher's standard error is asked, where the system tells.
    """
    if sys.stderr.isatty():
        return True
    try:
        return os.readlink(f'/proc/{os.getppid()}/fd/2').startswith(('/dev/pts/', '/dev/tty'))
    except OSError:
        return False


class _WithoutControlCodes:
    """Standard output without the codes by which PrintReport erases the progress bar."""

    def write(self, text):
        sys.stdout.write(text.replace('\033[J', ''))

    def flush(self):
        sys.stdout.flush()


def table():
    """Return the log as a growing table on standard output, for rank 0."""
    return extensions.PrintReport(_COLUMNS, out=sys.stdout if on_terminal() else _WithoutControlCodes())


def bar():
    """Progress with the time left, on standard error, for rank 0 on a terminal."""
    progress_bar = extensions.ProgressBar(update_interval=1, out=sys.stderr)
    progress_bar.trigger = triggers.TimeTrigger(0.5)
    return progress_bar
