"""What processes do together, on one process and on several ranks."""

import functools
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


# The sum of known values at the start, on as many ranks as one likes.

@functools.lru_cache(maxsize=1)
def given_to_check_sum(size):
    """What the ranks give to the all-reduce, float32 ``(size, m)``; of very many ranks, a few elements."""
    class Given(Exception):
        pass

    def take(comm, values):
        raise Given(values[::max(1, size >> 10)].copy())

    def given_by(rank):
        with pytest.raises(Given) as given:
            collectives.check_sum(types.SimpleNamespace(rank=rank, size=size), np)
        return given.value.args[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, 'sum_over_processes', take)
        return np.stack([given_by(rank) for rank in range(size)])


def in_a_ring(values):
    """Sums as a ring scatters them: each chunk is added up along the ranks, beginning with its own."""
    size, n = values.shape
    return np.stack([np.add.accumulate(np.roll(values[:, i], -(i * size // n)))[-1] for i in range(n)])


def in_a_binary_tree(values):
    """Sums of the ranks towards rank 0, each into the one above it in NCCL's binary tree."""
    sums, size, bit = values.copy(), len(values), 1
    while bit < size:
        below = np.arange(bit, size, 2 * bit)
        above = np.where(below ^ bit | 2 * bit < size, below ^ bit | 2 * bit, below ^ bit)
        np.add.at(sums, above, sums[below])
        bit *= 2
    return sums[0]


def in_two_binary_trees(values):
    """Half of the elements in one tree, half in the other, whose ranks are mirrored or moved by one."""
    one, other = np.array_split(values, 2, axis=1)
    other = np.roll(other, 1, axis=0) if len(values) % 2 else other[::-1]
    return np.concatenate([in_a_binary_tree(one), in_a_binary_tree(other)])


@pytest.mark.parametrize('add_up', [in_a_ring, in_two_binary_trees])
@pytest.mark.parametrize('size', [2, 3, 184, 256, 400, 1000, 1001, 1024, 1 << 16])
def test_float32_holds_the_sums_of_known_values_in_whatever_order(size, add_up):
    values = given_to_check_sum(size)
    assert values.dtype == np.float32
    assert np.array_equal(add_up(values), values.sum(axis=0, dtype=np.float64))


def check_sum_of(total, size, monkeypatch):
    monkeypatch.setattr(collectives, 'sum_over_processes',
                        lambda comm, values: np.copyto(values, total, casting='same_kind'))
    collectives.check_sum(types.SimpleNamespace(rank=size - 1, size=size), np)


@pytest.mark.parametrize('size', [1, 2, 3, 1000, 1024])
def test_right_sums_of_known_values_are_taken(monkeypatch, size):
    check_sum_of(in_a_ring(given_to_check_sum(size)), size, monkeypatch)


def test_every_rank_counts_in_every_element_of_the_known_values():
    assert given_to_check_sum(3).all()


def moved(values):
    return np.roll(values, 1)


WRONG = {
    'a rank is missing': lambda v, total: total - v[1],
    'a rank counts twice': lambda v, total: total + v[1],
    'one counts twice, another is missing': lambda v, total: total - v[0] + v[1],
    'one element lacks a rank': lambda v, total: total - v[1] * (np.arange(len(total)) == 77),
    'elements are in the wrong places': lambda v, total: moved(total),
    'those of one rank are': lambda v, total: total - v[0] + moved(v[0]),
    'a rank keeps what it gave': lambda v, total: v[-1],
    'a rank has what another gave': lambda v, total: v[0],
    'the last chunk is not added up': lambda v, total: np.append(total[:-1], v[-1, -1:]),
    'an older sum is in the buffer': lambda v, total: 0 * total,
}


@pytest.mark.parametrize('fault', WRONG)
@pytest.mark.parametrize('size', [2, 3, 256, 1024])
def test_wrong_sums_of_known_values_are_a_fault(monkeypatch, size, fault):
    values = given_to_check_sum(size)
    with pytest.raises(RuntimeError, match='MPI'):
        check_sum_of(WRONG[fault](values, values.sum(axis=0)), size, monkeypatch)


def test_broadcast_arrays_lie_where_numpy_expects_numbers():
    mpi_comm = types.SimpleNamespace(bcast=lambda value: value, Bcast=lambda part: None)
    comm = types.SimpleNamespace(rank=0, size=2, mpi_comm=mpi_comm)
    given = {'odd': np.arange(3, dtype=np.uint8), 'double': np.arange(3.0), 'half': np.zeros(9, np.float16),
             'complex': np.zeros(2, np.complex128)}
    received = collectives.broadcast_arrays(comm, given)
    places = {array.__array_interface__['data'][0] % 16 for array in received.values()}
    assert len(places) == 1


def test_more_bytes_than_mpi_counts_are_broadcast_in_pieces(monkeypatch):
    sent = []
    mpi_comm = types.SimpleNamespace(bcast=lambda value: value, Bcast=lambda part: sent.append(part.copy()))
    comm = types.SimpleNamespace(rank=0, size=2, mpi_comm=mpi_comm)
    assert collectives._MESSAGE_BYTES < 2 ** 31
    monkeypatch.setattr(collectives, '_MESSAGE_BYTES', 48)
    array = np.arange(40, dtype=np.float32)
    assert np.array_equal(collectives.broadcast_arrays(comm, {'a': array})['a'], array)
    assert [len(part) for part in sent] == [48, 48, 48, 16]
    assert b''.join(part.tobytes() for part in sent) == array.tobytes()
