"""What ``python -m lib.prepare`` prints: how far it is, and in the end what it has done."""

import sys
import time

from lib.errors import say_line


def report(tally, repaired, left_out, seconds):
    """Tell what was done, in how much time, and which images were repaired or left out."""
    written = tally['done'] - tally['left out']
    tell(f'{tally["resized"]} resized, {tally["copied"]} copied, {tally["converted"]} only converted, '
          f'{tally["there"]} already there, {tally["left out"]} left out')
    if written:
        tell(f'{tally["bytes read"] / 1e6:.1f} MB became {tally["bytes written"] / 1e6:.1f} MB in '
              f'{seconds:.0f} s ({written / seconds:.0f} images/s)')
    for path, what in repaired:
        tell(f'repaired: {path} ({what})')
    for path, reason in left_out:
        tell(f'left out: {path} ({reason})')


def tell(line):
    """Print a line on standard output, with every character of it showing, a line end in a name too."""
    say_line(line, sys.stdout)


class Progress:
    """One line on stderr that renews itself on a terminal; elsewhere a line at every tenth."""

    def __init__(self, total):
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._start = None
        self._shown = 0

    def show(self, done, there):
        """Tell that so many are done in this run, and so many were there before."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
        seen = done + there
        if not self._terminal:
            tenth = 10 * seen // self._total
            if tenth > self._shown:
                print(f'{seen}/{self._total} images', file=sys.stderr, flush=True)
                self._shown = tenth
        elif now - self._shown > 0.2 or seen == self._total:
            since, before = self._start
            rate = (done - before) / (now - since) if now > since else 0
            left = f', {time_left((self._total - seen) / rate)} left' if rate else ''
            line = f'\r{seen}/{self._total} images, {rate:.0f}/s{left}\033[K'
            print(line, end='', file=sys.stderr, flush=True)
            self._shown = now

    def close(self):
        if self._terminal:
            print(file=sys.stderr)


def time_left(seconds):
    """Say so many seconds in the unit that people would use."""
    for unit, length in (('h', 3600), ('min', 60)):
        if seconds >= 2 * length:
            return f'{seconds / length:.0f} {unit}'
    return f'{seconds:.0f} s'
