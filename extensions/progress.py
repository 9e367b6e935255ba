"""What a person watching the run sees: a table of the log, and its progress bar on a terminal."""

import os
import sys

from chainer.training import extensions, triggers

# Key of the log, its name in a table of 80 columns, and the form of its values.
_COLUMNS = (('epoch', 'epoch', '6.4g'), ('iteration', 'iter', '6'), ('main/loss', 'loss', '7.4g'),
            ('validation/main/loss', 'val.loss', '8.4g'), ('main/accuracy', 'acc', '6.4f'),
            ('validation/main/accuracy', 'val.acc', '7.4f'), ('lr', 'eta', '8.3g'),
            ('alpha_sgd', 'alpha', '6.4f'), ('images_per_sec', 'img/s', '6.0f'),
            ('elapsed_time', 'seconds', '7.0f'))


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


class Table(extensions.PrintReport):
    """The log as a growing table of 80 columns, half as wide as Chainer's."""

    def __init__(self, out):
        super().__init__([key for key, *_ in _COLUMNS], out=out)
        widths = [int(form.split('.')[0]) for *_, form in _COLUMNS]
        self._header = ' '.join(f'{name:>{width}}' for (_, name, _), width in zip(_COLUMNS, widths)) + '\n'
        self._templates = [(key, f'{{:{form}}} ', (width + 1) * ' ')
                           for (key, _, form), width in zip(_COLUMNS, widths)]


def table():
    """Make the table of the log on standard output, for rank 0."""
    return Table(sys.stdout if on_terminal() else _WithoutControlCodes())


def bar():
    """Progress with the time left, on standard error, for rank 0 on a terminal."""
    progress_bar = extensions.ProgressBar(update_interval=1, out=sys.stderr)
    progress_bar.trigger = triggers.TimeTrigger(0.5)
    return progress_bar
