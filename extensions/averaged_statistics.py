"""Batch normalization without moving averages (section 2): all-reduced statistics of the last minibatch."""

from chainer import training


class AveragedStatistics(training.Extension):
    """Binds the model to the statistics averaged over all workers, in one all-reduce.

    Runs before validation and before a checkpoint. Training is untouched: every worker keeps its own row of
    statistics, which the updater binds again.
    """

    default_name = 'AveragedStatistics'

    def __init__(self, statistics, comm, variance='mean'):
        self._statistics = statistics
        self._comm = comm
        self._variance = variance

    def __call__(self, trainer):
        self._statistics.select_average(self._comm, self._variance)
