"""Batch normalization without moving averages (paper section 2).

"We only considered the last minibatch, instead of the moving average, and used all-reduce communication on
these statistics to obtain the average over all workers before validation." Each of the n workers normalizes
with its own b images, and keeps its own mean and variance of every layer. Read literally, the average is the
mean of the means and the mean of the variances (``mean``). The variance of all n b images also holds the
variance of the workers' means around theirs (``pooled``)::

    mean    mu = 1/n sum_w mu_w,    var = 1/n sum_w var_w
    pooled  mu = 1/n sum_w mu_w,    var = 1/n sum_w var_w + 1/n sum_w mu_w^2 - mu^2

Chainer's var_w is the unbiased m/(m-1) times the variance of the worker's m values per channel, and so is its
mean here; the workers' n means vary with 1/n.
"""

import contextlib

from lib.communication.collectives import sum_over_processes

import chainer.links as L
import numpy as np
from chainer import backend
from chainer.backends import cuda


class BatchStatistics:
    """The statistics of the workers that this process plays, one row per worker.

    A row holds every batch normalization's running mean, then every running variance, in the order of the
    links' paths: S float32. The links' ``avg_mean`` and ``avg_var`` are bound to parts of one row at a time,
    which training then updates in place.

    Args:
        model (chainer.Link): Network, on its device. All rows start with its statistics.
        virtual_workers (int): K, workers played by this process.

    Attributes:
        size (int): S.
    """

    def __init__(self, model, virtual_workers=1):
        links = sorted(model.namedlinks(), key=lambda item: item[0])
        self._links = [link for _, link in links if isinstance(link, L.BatchNormalization)]
        arrays = [link.avg_mean for link in self._links] + [link.avg_var for link in self._links]
        self.size = sum(array.size for array in arrays)
        xp = model.device.xp
        row = xp.concatenate([array.astype(np.float32) for array in arrays] or [xp.empty(0, np.float32)])
        self._rows = xp.stack([row] * virtual_workers)
        self._row_of = list(self._rows)  # views, by worker
        self._bound = None
        self.select(0)

    def select(self, k):
        """Let the model normalize with, and update, this process's worker ``k``."""
        self._bind(self._row_of[k])

    @contextlib.contextmanager
    def using(self, k):
        """For a while, let the model normalize with this process's worker ``k``."""
        bound = self._bound
        self.select(k)
        try:
            yield
        finally:
            self._bind(bound)

    def select_average(self, comm, variance='mean'):
        """Let the model normalize with the average over all workers; their rows stay as they are.

        Called by every process: one all-reduce.

        Args:
            comm: ChainerMN communicator.
            variance (str): ``mean`` or ``pooled``.
        """
        self._bind(average(comm, self._rows, variance))

    def rows_on_host(self):
        """This process's rows: a NumPy copy, float32 ``(K, S)``."""
        return np.array(cuda.to_cpu(self._rows))

    def restore_rows(self, rows):
        """Replace this process's rows by ``rows``, a NumPy array ``(K, S)``."""
        self._rows[...] = backend.get_array_module(self._rows).asarray(rows, np.float32)

    def _bind(self, row):
        if row is self._bound:  # as a process that plays one worker finds it in most iterations
            return
        self._bound = row
        offset = 0
        for name in ('avg_mean', 'avg_var'):
            for link in self._links:
                size = getattr(link, name).size
                setattr(link, name, row[offset:offset + size])
                offset += size


def average(comm, rows, variance='mean'):
    """Average over all n workers, in one all-reduce of float64.

    Args:
        comm: ChainerMN communicator.
        rows: float32 ``(K, S)`` of this process: means, then variances. K may differ between processes.
        variance (str): ``mean`` or ``pooled``.

    Returns:
        float32 ``(S,)``, the same on every process, where ``rows`` are.
    """
    sums = sum_over_workers(rows, variance)
    sums = backend.get_array_module(rows).append(sums, float(len(rows)))
    sum_over_processes(comm, sums)
    return average_from_sums(sums[:-1], sums[-1], variance)


def sum_over_workers(rows, variance):
    """Tell what is added up over all workers: ``[sum mu_w, sum var_w]``, and ``sum mu_w^2`` for ``pooled``.

    Returns:
        float64 ``(S,)``, or ``(3/2 S,)`` for ``pooled``.
    """
    rows = rows.astype(np.float64)
    sums = rows.sum(axis=0)
    if variance == 'mean':
        return sums
    if variance == 'pooled':
        means = rows[:, :rows.shape[1] // 2]
        return backend.get_array_module(rows).concatenate([sums, (means * means).sum(axis=0)])
    raise ValueError(f'variance {variance!r}: expected mean or pooled')


def average_from_sums(sums, n_workers, variance):
    """Return the mean and variance from the sums over ``n_workers`` workers: float32 ``(S,)``."""
    averages = sums / n_workers
    if variance == 'pooled':
        mu, var, square = averages.reshape(3, -1)
        # Rounding must not make a variance smaller than the workers' own.
        averages = backend.get_array_module(sums).concatenate([mu, var + (square - mu * mu).clip(0, None)])
    return averages.astype(np.float32)
