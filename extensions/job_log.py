"""Chainer's LogReport for the whole job: every process's loss, not that of rank 0."""

import os

from lib import files
from lib.communication import collectives

import numpy as np
from chainer.training import extensions

_AVERAGED = ('main/loss', 'main/accuracy')
_UNREAD = 1000  # iterations whose values stay on the device at most


class JobLog(extensions.LogReport):
    """Writes a row of ``log`` at the end of every epoch.

    ``main/loss`` and ``main/accuracy`` are means over the row's iterations and all workers, added up in one
    small all-reduce per row; ``epoch`` is the number of images seen over N, fractional. All else that was
    reported enters with its value in the row's last iteration.

    Called on every process, each of which plays ``virtual_workers`` workers; rank 0 writes.
    """

    default_name = 'LogReport'  # the name by which Chainer's PrintReport finds it

    def __init__(self, comm, virtual_workers, out, trigger):
        super().__init__(trigger=trigger)
        self._comm = comm
        self._virtual_workers = virtual_workers
        self._path = os.path.join(out, 'log')
        self._sums = np.zeros(1 + len(_AVERAGED))
        self._unread = []

    @property
    def sums(self):
        """This process's part of the row under way, float64 ``(3,)``: minibatches, loss, accuracy."""
        self._read()
        return self._sums.copy()

    def restore(self, rows, sums):
        """Continue from a checkpoint: the rows so far, and this process's part of the row under way."""
        self._log = rows
        self._sums = np.array(sums, np.float64)

    def __call__(self, trainer):
        # Kept as they come: values that a device is still computing are waited for rarely.
        self._unread.append([trainer.observation[key] for key in _AVERAGED])
        if len(self._unread) >= _UNREAD:
            self._read()
        if self._trigger(trainer):
            self._append_row(trainer)

    def _read(self):
        for values in self._unread:
            self._sums += self._virtual_workers * np.array([1, *map(float, values)])
        self._unread = []

    def _append_row(self, trainer):
        sums = self.sums
        self._sums[:] = 0
        collectives.sum_over_processes(self._comm, sums)
        minibatches, *totals = sums.tolist()
        updater = trainer.updater
        row = {'epoch': updater.epoch_detail, 'iteration': updater.iteration,
               'elapsed_time': trainer.elapsed_time}
        row.update(zip(_AVERAGED, (total / minibatches for total in totals)))
        row.update((key, float(value)) for key, value in trainer.observation.items()
                   if key not in _AVERAGED)
        self._log.append(row)
        if self._comm.rank == 0:
            files.try_to(files.write_json, self._path, self._log)
