"""The exchange of gradients, on one process and on several ranks; test_wire.py has its arithmetic."""

from lib import compat  # noqa: F401, I001  (before anything that imports Chainer)

import functools
import gc
import pathlib
import subprocess
import sys
import types
import weakref

import chainer
import numpy as np
import pytest

from lib import communicators
from lib.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


# One process

class NoMpi:
    """Stands for an MPI communicator of one process, and refuses everything that communicates."""

    rank, size = 0, 1

    def gather(self, value):
        return [value]

    def scatter(self, values):
        return values[0]


def make_model(dtype=np.float32):
    model = chainer.Link()
    with model.init_scope():
        model.b = chainer.Parameter(np.zeros((4, 3), dtype))
        model.a = chainer.Parameter(np.zeros(5, np.float32))
        model.lazy = chainer.Parameter()
    return model


def single(dtype='float16', scale=1.0, workers=1):
    return communicators.create_communicator('naive', dtype, scale, workers, mpi_comm=NoMpi())


def test_one_process_rounds_like_several_and_calls_no_mpi():
    model = make_model()
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal(5).astype(np.float32), rng.standard_normal((4, 3)).astype(np.float32)
    model.a.grad, model.b.grad = a.copy(), b.copy()
    comm = single(scale=8.0, workers=3)
    comm.multi_node_mean_grad(model)
    for got, values in ((model.a.grad, a), (model.b.grad, b)):
        rounded = (values / np.float32(3)).astype(np.float16)
        assert np.array_equal(got, rounded.astype(np.float32) / np.float32(8))
    assert communicators.agree(comm, True, False) == (True, False)
    communicators.broadcast_model(comm, model)


def test_gradients_are_views_of_one_buffer_that_is_reused():
    model, comm = make_model(), single()
    bases = []
    for _ in range(2):
        model.a.grad, model.b.grad = np.ones(5, np.float32), np.ones((4, 3), np.float32)
        comm.multi_node_mean_grad(model)
        bases += [model.a.grad.base, model.b.grad.base]
    assert all(base is bases[0] for base in bases)


def test_parameters_are_packed_in_the_order_of_their_names():
    model, comm = make_model(), single()
    model.a.grad, model.b.grad = np.ones(5, np.float32), np.full((4, 3), 2, np.float32)
    comm.multi_node_mean_grad(model)
    assert model.a.grad.base.tolist() == [1] * 5 + [2] * 12


def test_float32_update_of_float16_parameters_gets_the_unscaled_mean_in_float32():
    # 2^-20 / 64 = 2^-26 is below float16's smallest subnormal.
    model, comm = make_model(np.float16), single(scale=64.0)
    del model.lazy
    optimizer = chainer.optimizers.SGD(lr=2.0 ** 20)
    optimizer.use_fp32_update()
    optimizer.setup(model)
    model.cleargrads()
    model.a.grad, model.b.grad = np.zeros(5, np.float32), np.full((4, 3), 2.0 ** -20, np.float16)
    comm.multi_node_mean_grad(model)
    optimizer.update()
    assert model.b.dtype == np.float16
    assert (model.b.array == -2.0 ** -6).all()


def test_local_gradients_are_released_once_the_mean_is_finite():
    model, comm = make_model(), single()
    model.a.grad, model.b.grad = np.ones(5, np.float32), np.ones((4, 3), np.float32)
    local = weakref.ref(model.b.grad)
    comm.multi_node_mean_grad(model)
    assert comm.gradient_is_finite()
    gc.collect()
    assert local() is None


def test_importing_the_module_leaves_mpi_alone():
    # Processes that load data are started before MPI.
    code = 'import sys; from lib import batch_statistics, communicators; print("mpi4py.MPI" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout == 'False\n'


@pytest.mark.parametrize('arguments, named', [
    (('flat',), '--communicator flat'),
    (('naive', 'float8'), '--allreduce-grad-dtype float8'),
    (('naive', 'float16', 0.0), '--loss-scale 0.0'),
    (('naive', 'float16', float('inf')), '--loss-scale inf'),
    (('naive', 'float16', 1.0, 0), '--virtual-workers 0'),
])
def test_wrong_argument_is_named_in_one_line(arguments, named):
    with pytest.raises(UserError, match=named) as caught:
        communicators.create_communicator(*arguments, mpi_comm=NoMpi())
    assert '\n' not in str(caught.value)


# Several ranks: one run of all cases per number of ranks.

CASES = ['mean_is_within_the_stated_bound', 'ranks_hold_the_same_bits',
         'exchange_gives_the_bits_of_the_pure_functions', 'between_hosts_it_gives_the_same_bits',
         'fewer_elements_than_ranks',
         'missing_gradient_counts_as_zero', 'split_communicators_average_their_own_ranks',
         'finite_mean_is_called_finite_everywhere',
         'nan_is_explained_by_rank_and_parameter', 'overflow_of_a_payload_is_explained',
         'overflow_of_a_sum_is_explained', 'agreement_is_that_of_any_rank',
         'broadcast_copies_parameters_and_persistents', 'broadcast_keeps_names_shapes_dtypes_and_bytes',
         'rows_of_all_ranks_are_gathered_in_their_order']


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('ranks', [2, 3, 4])
def test_on_ranks(assert_on_ranks, ranks, case):
    assert_on_ranks('tests/lib/ranks_communicators.py', ranks, case)


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
            communicators.check_sum(types.SimpleNamespace(rank=rank, size=size), np)
        return given.value.args[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(communicators, 'sum_over_processes', take)
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
    monkeypatch.setattr(communicators, 'sum_over_processes',
                        lambda comm, values: np.copyto(values, total, casting='same_kind'))
    communicators.check_sum(types.SimpleNamespace(rank=size - 1, size=size), np)


@pytest.mark.parametrize('size', [1, 2, 3, 1000, 1024])
def test_right_sums_of_known_values_are_taken(monkeypatch, size):
    check_sum_of(in_a_ring(given_to_check_sum(size)), size, monkeypatch)


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


def test_more_bytes_than_mpi_counts_are_broadcast_in_pieces(monkeypatch):
    sent = []
    mpi_comm = types.SimpleNamespace(bcast=lambda value: value, Bcast=lambda part: sent.append(part.copy()))
    comm = types.SimpleNamespace(rank=0, size=2, mpi_comm=mpi_comm)
    monkeypatch.setattr(communicators, '_MESSAGE_BYTES', 48)
    array = np.arange(40, dtype=np.float32)
    assert np.array_equal(communicators.broadcast_arrays(comm, {'a': array})['a'], array)
    assert [len(part) for part in sent] == [48, 48, 48, 16]
    assert b''.join(part.tobytes() for part in sent) == array.tobytes()
