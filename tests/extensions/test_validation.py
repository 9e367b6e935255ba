import types

from lib.communication import collectives
from lib.errors import UserError

import chainer
import numpy as np
import pytest

import extensions
from extensions import validation


def test_sums_of_all_processes_are_reported(monkeypatch):
    def add_another_process(comm, sums):
        sums += [2.0, 5.0]

    monkeypatch.setattr(collectives, 'agree', lambda comm, *flags: flags)
    monkeypatch.setattr(collectives, 'sum_over_processes', add_another_process)
    monkeypatch.setattr(validation.validation, 'means', lambda sums: {'loss': sums[0] / sums[1]})
    observed = {}
    with chainer.Reporter().scope(observed):
        extensions.Validation(types.SimpleNamespace(), lambda: np.array([2.0, 3.0]))(None)
    assert observed == {'validation/main/loss': pytest.approx(0.5)}


@pytest.mark.parametrize('rank', [0, 1])
def test_an_image_that_one_process_cannot_read_is_everyone_s_error(monkeypatch, rank):
    def evaluate_share():
        if rank == 0:
            raise UserError('bad.jpg: no image')

    def allgather(own):
        return [own, ('b', False, 'bad.jpg: no image' if rank == 1 else None)]

    monkeypatch.setattr(collectives, 'agree', lambda comm, *flags: [True])  # on one of two
    comm = types.SimpleNamespace(size=2, mpi_comm=types.SimpleNamespace(allgather=allgather))
    with pytest.raises(UserError, match='bad.jpg: no image'):
        extensions.Validation(comm, evaluate_share)(None)
