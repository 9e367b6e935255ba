"""Validation of the whole job, exact (``lib.validation``)."""

from lib import validation
from lib.communication import collectives
from lib.errors import UserError

import chainer
from chainer import training


class Validation(training.Extension):
    """Reports ``validation/main/loss``, ``.../accuracy`` and ``.../accuracy_top5`` of the whole job.

    Args:
        comm: ChainerMN communicator.
        evaluate_share (callable): Evaluates this process's share and returns its sums (``lib.validation``).
    """

    default_name = 'Validation'

    def __init__(self, comm, evaluate_share):
        self._comm = comm
        self._evaluate_share = evaluate_share

    def __call__(self, trainer):
        error, sums = None, None
        try:
            sums = self._evaluate_share()
        except UserError as raised:
            error = raised
        if collectives.agree(self._comm, error is not None)[0]:
            collectives.raise_together(self._comm.mpi_comm, error)
        collectives.sum_over_processes(self._comm, sums)
        means = validation.means(sums)
        chainer.report({f'validation/main/{name}': value for name, value in means.items()})
