"""Sums of payloads over processes, through shared memory and through MPI."""

import types

from lib.communication import allreduce

import numpy as np
import pytest

from tests import ranks_cases

SCRIPT = 'tests/lib/communication/ranks_allreduce.py'


@pytest.mark.parametrize('case', ranks_cases.names(SCRIPT))
@pytest.mark.parametrize('ranks', [2, 3, 5])
def test_on_ranks(assert_on_ranks, ranks, case):
    assert_on_ranks(SCRIPT, ranks, case)


class OneProcess:
    rank, size = 0, 1


def test_one_process_has_its_own_payload_and_calls_no_mpi():
    sums = allreduce.join(OneProcess(), 10, 'float16')
    sums.payload(4)[...] = np.arange(4)
    with pytest.raises(StopIteration) as end:
        next(sums.sum(4))
    assert end.value.value.tolist() == [0, 1, 2, 3]


class TwoHosts:
    """One of two processes, each on a host of its own: nothing can be shared, nor agreed about."""

    rank, size = 0, 2

    def Split_type(self, kind):  # noqa: N802
        return types.SimpleNamespace(size=1, Free=lambda: None)


def test_processes_of_several_hosts_share_no_memory():
    assert allreduce._share_memory(TwoHosts(), 4096) is None
