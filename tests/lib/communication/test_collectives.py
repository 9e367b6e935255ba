"""What processes do together, on one process and on several ranks."""

import os
import types

from lib.communication import collectives
from lib.errors import UserError

import numpy as np
import pytest

from tests import ranks_cases

SCRIPT = 'tests/lib/communication/ranks_collectives.py'
HOST = os.uname().nodename


@pytest.mark.parametrize('case', ranks_cases.names(SCRIPT))
@pytest.mark.parametrize('ranks', [2, 3, 4])
def test_on_ranks(assert_on_ranks, ranks, case):
    assert_on_ranks(SCRIPT, ranks, case)


def test_wrong_sum_of_known_values_is_a_fault(monkeypatch):
    comm = types.SimpleNamespace(rank=0, size=1)
    collectives.check_sum(comm, np)
    monkeypatch.setattr(collectives, 'sum_over_processes', lambda comm, values: values.__iadd__(1))
    with pytest.raises(RuntimeError, match='MPI'):
        collectives.check_sum(comm, np)


class EightRanks:
    """Rank 0's view of eight ranks on two hosts, of which all but rank 0 gave the outcomes listed."""

    def __init__(self, outcomes):
        self.outcomes = outcomes

    def allgather(self, own):
        return [own, *self.outcomes]


def test_ranks_and_hosts_are_named_in_ranges():
    comm = EightRanks([(f'n{rank // 4}', False, 'no data' if rank in (1, 2, 3, 6) else None)
                       for rank in range(1, 8)])
    with pytest.raises(UserError, match=r'^ranks 1-3, 6 \(hosts n0, n1\): no data$'):
        collectives.collectively(comm, lambda: None)


def test_many_different_failures_still_make_one_line():
    comm = EightRanks([('n', False, f'failure {rank}') for rank in range(1, 8)])
    with pytest.raises(UserError, match='^rank 1 .*failure 1; .*failure 3; 4 other failures on other'):
        collectives.collectively(comm, lambda: None)


class OneProcess:
    rank, size = 0, 1

    def allgather(self, own):
        return [own]

    def bcast(self, value):
        return value


def test_one_process_returns_or_raises_what_it_raised():
    assert collectives.collectively(OneProcess(), lambda: 5) == 5
    assert collectives.first(OneProcess(), lambda value: value, 5) == 5
    with pytest.raises(UserError, match='^no data$'):
        collectives.raise_together(OneProcess(), UserError('no data'))
    with pytest.raises(ZeroDivisionError):
        collectives.collectively(OneProcess(), lambda: 1 / 0)
