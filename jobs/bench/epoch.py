"""Time what a run does besides its iterations: its start, and the end of every epoch.

    python -m jobs.bench.epoch --out OUT [option of train_imagenet.py ...]
    mpirun -np 4 python -m jobs.bench.epoch --out OUT [option ...]

Trains as ``train_imagenet.py`` does, with a clock around the steps of the start and around the extensions,
and prints rank 0's times, medians over the epochs; what rank 0 waits for other ranks is in them. Takes 10
seconds for 8 epochs of the sample set. Expect validation to be nearly all of an epoch's end, and imports and
MPI most of a start.
"""

import contextlib
import functools
import os
import sys
import time

from lib import errors
from lib.communication import launcher
from lib.run import arguments

import numpy as np
from chainer import training

import train_imagenet

_STEPS = 'join', 'open_data', 'make_model', 'claim_output', 'make_trainer', 'begin'
_IMPORTS, _ITERATION = 'imports', 'an iteration'
_records = []  # (what, iteration, seconds, clock at its end), of the start with iteration 0


def timed(what, function, iteration=lambda: 0):
    """Make a function leave a record at each call."""
    @functools.wraps(function)
    def call(*arguments, **options):
        began = time.perf_counter()
        result = function(*arguments, **options)
        ended = time.perf_counter()
        _records.append((what, iteration(), ended - began, ended))
        return result
    return call


class _TimedExtension:
    """Stands in for an extension of Chainer's trainer."""

    def __init__(self, name, extension, iteration):
        self._extension = extension
        self._call = timed(name, extension.__call__, iteration)

    def __call__(self, trainer):
        self._call(trainer)

    def __getattr__(self, name):
        return getattr(self._extension, name)


def run(self, run=training.Trainer.run, **options):
    """Take the place of ``Trainer.run``: the same with clocks."""
    updater = self.updater
    updater.update = timed(_ITERATION, updater.update, lambda: updater.iteration)
    for name, entry in self._extensions.items():
        entry.extension = _TimedExtension(name, entry.extension, lambda: updater.iteration)
    run(self, **options)


def age():
    """Seconds since this process was started."""
    with open('/proc/self/stat') as file:
        started = int(file.read().rpartition(')')[2].split()[19]) / os.sysconf('SC_CLK_TCK')
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def report(started):
    """Print the start, in seconds, and the medians of an iteration and an epoch's end, in milliseconds.

    Args:
        started (float): When this process was, by the clock of the records.
    """
    for what, iteration, seconds, _ in _records:
        if iteration == 0:
            print(f'{seconds:9.2f} s   {what}')
    first = next(ended for what, *_, ended in _records if what == _ITERATION)
    print(f'{first - started:9.2f} s   until the first iteration was done')
    ends = {iteration for what, iteration, *_ in _records if what == 'Validation'}
    after = {iteration + 1 for iteration in ends}
    for what in dict.fromkeys(what for what, iteration, *_ in _records if iteration):
        show(what, [seconds for name, iteration, seconds, _ in _records
                    if name == what and (iteration in ends or what == _ITERATION)])
    show('the iteration after', [seconds for what, iteration, seconds, _ in _records
                                 if what == _ITERATION and iteration in after])


def show(what, seconds):
    """Print a median and the longest, in milliseconds."""
    if seconds:  # after the only epoch comes no iteration
        print(f'{1e3 * np.median(seconds):9.2f} ms  {what} (at most {1e3 * max(seconds):.0f})')


def main():
    started = time.perf_counter() - age()
    _records.append((_IMPORTS, 0, age(), time.perf_counter()))
    for name in _STEPS:
        setattr(train_imagenet, name, timed(name, getattr(train_imagenet, name)))
    training.Trainer.run = run
    arguments.parse()  # --help is to be seen
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        status = train_imagenet.main()
    if status == errors.EXIT_FINISHED and launcher.launched_rank() == 0:
        report(started)
    return status


if __name__ == '__main__':
    sys.exit(main())
