"""Where the time of an iteration goes."""

import csv
import os

from lib import files

import chainer
import numpy as np
from chainer import training

COLUMNS = ('iteration_time', 'allreduce_time', 'data_time')


class IterationTimes(training.Extension):
    """Reports mean times since the last row of the log; writes those of every iteration to ``timing.csv``.

    ``iteration_time`` holds data, computation, communication and update; ``allreduce_time`` (packing,
    exchange and unpacking of gradients) and ``data_time`` (waiting for images) are parts of it. In seconds,
    of this process; on a GPU measured by events. ``images_per_sec`` is that of the job during these
    iterations, validation excluded.

    Args:
        plan (lib.plan.Plan): The job.
        timer (lib.run.timing.Timer): With ``iteration``, ``allreduce`` and, once per worker, ``data``.
        path (str or None): Where to write; None writes nothing.
    """

    default_name = 'IterationTimes'

    def __init__(self, plan, timer, path=None):
        self._plan = plan
        self._timer = timer
        self._path = path
        self._written_to = 0

    def initialize(self, trainer):
        self._written_to = trainer.updater.iteration
        if self._path is not None:
            self._append([('iteration', *COLUMNS), *self._rows_to_keep()], mode='w')

    def _rows_to_keep(self):
        """Rows of the iterations that are not run again; a killed run may leave more, or half a row."""
        if not (self._written_to and os.path.exists(self._path)):
            return []
        with open(self._path, newline='') as file:
            rows = [row for row in csv.reader(file) if len(row) == 1 + len(COLUMNS)]
        return [row for row in rows if row[0].isdecimal() and int(row[0]) <= self._written_to]

    def __call__(self, trainer):
        seconds = self._collect()
        if not len(seconds):
            return
        means = seconds.mean(axis=0).tolist()
        chainer.report({'images_per_sec': self._plan.total_batch / means[0], **dict(zip(COLUMNS, means))})

    def finalize(self):
        self._collect()

    def _collect(self):
        """Times since the last call, float64 ``(iterations, 3)``."""
        spent = self._timer.collect()
        iteration = np.array(spent.get('iteration', []), np.float64)
        allreduce = np.array(spent.get('allreduce', []), np.float64)
        data = np.array(spent.get('data', []), np.float64)
        n = len(iteration)  # of one that failed, parts may be there
        data = data[:n * self._plan.virtual_workers].reshape(n, self._plan.virtual_workers).sum(axis=1)
        seconds = np.stack([iteration, allreduce[:n], data], axis=1)
        first = self._written_to + 1
        self._written_to += n
        if self._path is not None and n:
            self._append([(first + i, *(f'{value:.6f}' for value in row)) for i, row in enumerate(seconds)])
        return seconds

    def _append(self, rows, mode='a'):
        files.try_to(_write_rows, self._path, rows, mode)


def _write_rows(path, rows, mode):
    with open(path, mode, newline='') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)
