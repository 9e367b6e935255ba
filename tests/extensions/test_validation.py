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


def test_an_image_that_one_process_cannot_read_is_everyone_s_error():
    def evaluate_share():
        raise UserError('bad.jpg: no image')

    alone = types.SimpleNamespace(allgather=lambda own: [own])
    with pytest.raises(UserError, match='^bad.jpg: no image$'):
        extensions.Validation(types.SimpleNamespace(size=1, mpi_comm=alone), evaluate_share)(None)
