"""Where the time of an iteration goes, and the job's training loss in each."""

import csv
import io
import os

from lib import files
from lib.communication import collectives

import chainer
import numpy as np
from chainer import training

COLUMNS = ('iteration_time', 'allreduce_time', 'exchange_time', 'data_time')
_UNREAD = 1000  # losses that stay on the device at most


class IterationTimes(training.Extension):
    """Reports mean times since the last row of the log; writes those of every iteration to ``timing.csv``.

    ``iteration_time`` holds data, computation, communication and update; ``allreduce_time`` (waiting for the
    other processes and for the mean gradient) and ``data_time`` (waiting for images) are parts of it.
    ``exchange_time`` is how long gradients were packed, exchanged and unpacked, also while others were
    computed. In seconds, of this process; on a GPU measured by events. ``images_per_sec`` is that of the job
    during these iterations, validation excluded. ``loss`` is the training loss, mean over all workers.

    Called on every process after every iteration. Rows are written before every checkpoint, so that a resumed
    run has those of the iterations that it does not repeat; the losses of all of them are added up in one
    all-reduce. Rows of a run that fails after it have no loss.

    Args:
        comm: ChainerMN communicator.
        plan (lib.plan.Plan): The job.
        timer (lib.run.timing.Timer): With ``iteration``, ``agree``, ``allreduce``, once per
            part ``exchange`` and once per worker ``data``.
        path (str or None): Where to write; None writes nothing.
        log_due, checkpoint_due (callable): Triggers of the log and of checkpoints, which are due with the log
            too.
    """

    default_name = 'IterationTimes'

    def __init__(self, comm, plan, timer, path, log_due, checkpoint_due):
        self._comm = comm
        self._total_batch = plan.total_batch
        self._workers = len(plan.workers_of(comm.rank))
        self._parts = len(plan.parts)
        self._timer = timer
        self._path = path
        self._log_due = log_due
        self._checkpoint_due = checkpoint_due
        self._written_to = 0
        self._losses = []
        self._of_row = []

    def initialize(self, trainer):
        self._written_to = trainer.updater.iteration
        if self._path is not None:
            rows = [('iteration', *COLUMNS, 'loss'), *self._rows_to_keep()]
            files.try_to(files.write, self._path, lambda file: _write_rows(file, rows))

    def _rows_to_keep(self):
        """Rows of the iterations that are not run again; a killed run may leave more, or half a row."""
        if not (self._written_to and os.path.isfile(self._path)):
            return []
        with open(self._path, newline='') as file:
            rows = [row for row in csv.reader(file) if len(row) == 2 + len(COLUMNS)]
        return [row for row in rows if row[0].isdecimal() and int(row[0]) <= self._written_to]

    def __call__(self, trainer):
        self._losses.append(trainer.observation['main/loss'])
        if len(self._losses) % _UNREAD == 0:
            self._losses = list(map(float, self._losses))
        if self._checkpoint_due(trainer):
            self._of_row.append(self._collect(self._mean_losses()))
        if self._log_due(trainer):
            means = np.concatenate(self._of_row).mean(axis=0).tolist()
            self._of_row = []
            chainer.report({'images_per_sec': self._total_batch / means[0], **dict(zip(COLUMNS, means))})

    def finalize(self):
        self._collect(np.empty(0))

    def _mean_losses(self):
        """Means over all workers of the losses since the last call, float64 ``(iterations,)``."""
        sums = self._workers * np.array([1, *map(float, self._losses)], np.float64)
        self._losses = []
        collectives.sum_over_processes(self._comm, sums)
        return sums[1:] / sums[0]

    def _collect(self, losses):
        """Write rows with ``losses``, as far as these go; return times since the last call.

        Returns:
            numpy.ndarray: float64 ``(iterations, 4)``.
        """
        spent = self._timer.collect()
        n = len(spent.get('iteration', []))  # of one that failed, parts may be there

        def per_iteration(name, times=1):
            return np.array(spent.get(name, [])[:n * times], np.float64).reshape(n, times).sum(axis=1)

        seconds = np.stack([
            per_iteration('iteration'), per_iteration('agree') + per_iteration('allreduce'),
            per_iteration('exchange', self._parts), per_iteration('data', self._workers)], axis=1)
        first = self._written_to + 1
        self._written_to += n
        if self._path is not None and n:
            losses = [f'{loss:.6g}' for loss in losses] + [''] * (n - len(losses))
            self._append([(first + i, *(f'{value:.6f}' for value in row), losses[i])
                          for i, row in enumerate(seconds)])
        return seconds

    def _append(self, rows):
        files.try_to(_append_rows, self._path, rows)


def _append_rows(path, rows):
    text = io.StringIO()
    _write_rows(text, rows)
    files.append(path, text.getvalue().encode())


def _write_rows(file, rows):
    csv.writer(file, lineterminator='\n').writerows(rows)
