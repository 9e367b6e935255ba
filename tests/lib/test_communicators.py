"""The exchange of gradients: its arithmetic alone, on one process, and on several ranks."""

from lib import compat  # noqa: F401, I001  (before anything that imports Chainer)

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


def wire(values, dtype='float16', workers=1):
    out = np.empty(np.size(values), dtype)
    communicators.to_wire(np.asarray(values, np.float32), out, workers)
    return out


def all_float16():
    return np.arange(1 << 16).astype(np.uint16).view(np.float16)


def float32_around_float16():
    """Every float16, every midpoint between two of them, and both float32 neighbours of each."""
    finite = np.sort(all_float16()[np.isfinite(all_float16())]).astype(np.float32)
    points = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2])
    below, above = np.nextafter(points, np.float32(-np.inf)), np.nextafter(points, np.float32(np.inf))
    return np.concatenate([points, below, above, np.float32([-0.0, 1e-45, -1e-45, 1e-30])])


def assert_rounds_as_numpy(values):
    with np.errstate(over='ignore', invalid='ignore'):
        expected = values.astype(np.float16)
    got = wire(values)
    nan = np.isnan(values)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


# Arithmetic

def test_float16_wire_rounds_to_nearest_even_at_every_boundary():
    values = float32_around_float16()
    # Few large ones at a time: one overflowing value sends a whole block another way.
    assert_rounds_as_numpy(values[abs(values) < 100])
    for start in range(0, values.size, 1000):
        assert_rounds_as_numpy(values[start:start + 1000])


def test_float16_wire_rounds_any_bits_as_numpy_does():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 300000, dtype=np.uint32)
    assert_rounds_as_numpy(bits.view(np.float32))


@pytest.mark.parametrize('value', [65504, 65519.996, 65520, 65536, 1e30, np.inf, -np.inf, np.nan])
def test_float16_wire_keeps_overflow_infinity_and_nan_to_their_element(value):
    values = np.full(40000, 1e-3, np.float32)
    values[33000] = value
    assert_rounds_as_numpy(values)


def test_wire_divides_by_virtual_workers_before_it_rounds():
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    values[0] = 3 * 60000  # fits only when divided
    assert np.array_equal(wire(values, workers=3), (values / np.float32(3)).astype(np.float16))


def test_wire_takes_strided_and_float16_gradients():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert np.array_equal(wire(values.T[::2]), values.T[::2].ravel().astype(np.float16))
    out = np.empty(24, np.float32)
    communicators.to_wire(values.astype(np.float16), out)
    assert np.array_equal(out, values.ravel())


def test_sum_is_in_float32_in_the_order_of_ranks_and_rounded_once():
    # In float16 2048 + 1 rounds to 2048; in float32, 2^24 + 1 rounds to 2^24, and the order shows.
    for dtype, payloads, total in (('float16', [2048, 1, 1], 2050), ('float32', [2.0 ** 24, 1, 1], 2.0 ** 24),
                                   ('float32', [1, 1, 2.0 ** 24], 2.0 ** 24 + 2)):
        out = np.empty(1, dtype)
        communicators.sum_payloads(np.array(payloads, dtype)[:, None], out)
        assert out.tolist() == [total]


@pytest.mark.parametrize('divisor', [1, 3, 1024 * 128.0])
def test_mean_is_cast_to_float32_before_the_division(divisor):
    values = all_float16()
    mean = np.empty(values.size, np.float32)
    communicators.from_wire(values, divisor, mean)
    finite = np.isfinite(values)
    # Exact in float64; rounded once to float32.
    exact = values[finite].astype(np.float64) / divisor
    assert np.array_equal(mean[finite], exact.astype(np.float32))
    assert np.array_equal(np.isnan(mean), np.isnan(values))
    assert np.array_equal(np.isinf(mean), np.isinf(values))


@pytest.mark.parametrize('scale', [1.0, 128.0])
@pytest.mark.parametrize('sigma', [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_mean_of_1024_processes_is_within_the_stated_bound(sigma, scale):
    P, K, m, u, tiny = 1024, 3, 200, 2.0 ** -11, 2.0 ** -25
    G = (np.random.default_rng(2).standard_normal((P, m)) * sigma * K * scale).astype(np.float32)
    payloads, total, g = np.empty((P, m), np.float16), np.empty(m, np.float16), np.empty(m, np.float32)
    for row, payload in zip(G, payloads):
        communicators.to_wire(row, payload, K)
    communicators.sum_payloads(payloads, total)
    communicators.from_wire(total, P * scale, g)
    exact = G.astype(np.float64) / (K * scale)
    M, A = exact.mean(axis=0), abs(exact).mean(axis=0)
    bound = (1 + 4 * u) * (u * (abs(M) + A) + (1 + 1 / P) * tiny / scale + (P + 2) * 2.0 ** -24 * A)
    assert (abs(g - M) <= bound).all()


def test_mean_of_1024_small_gradients_does_not_underflow():
    # Divided in float16, as ChainerMN does, most of these means are zero.
    P, m = 1024, 500
    G = (np.random.default_rng(3).standard_normal((P, m)) * 1e-6).astype(np.float32)
    payloads, total, g = np.empty((P, m), np.float16), np.empty(m, np.float16), np.empty(m, np.float32)
    for row, payload in zip(G, payloads):
        communicators.to_wire(row, payload)
    communicators.sum_payloads(payloads, total)
    communicators.from_wire(total, P, g)
    M = G.mean(axis=0, dtype=np.float64)
    assert ((total / np.float16(P)).astype(np.float16) == 0).mean() > 0.5
    assert np.linalg.norm(g - M) < 0.02 * np.linalg.norm(M)


@pytest.mark.parametrize('position', [0, 32767, 32768, 99999])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_one_non_finite_element_is_found(value, position):
    values = np.full(100000, 3e38, np.float32)
    assert communicators.all_finite(values)
    values[position] = value
    assert not communicators.all_finite(values)


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
         'mpi_gives_the_bits_of_the_pure_functions', 'fewer_elements_than_ranks',
         'missing_gradient_counts_as_zero', 'split_communicators_average_their_own_ranks',
         'finite_mean_is_called_finite_everywhere',
         'nan_is_explained_by_rank_and_parameter', 'overflow_of_a_payload_is_explained',
         'overflow_of_a_sum_is_explained', 'agreement_is_that_of_any_rank',
         'broadcast_copies_parameters_and_persistents', 'broadcast_keeps_names_shapes_dtypes_and_bytes']
_done = {}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('ranks', [2, 3, 4])
def test_on_ranks(mpirun, ranks, case):
    if ranks not in _done:
        _done[ranks] = mpirun(ranks, ROOT / 'tests/lib/ranks_communicators.py', check=False)
    done = _done[ranks]
    assert case in done.stdout.split(), done.stdout + done.stderr


def test_wrong_sum_of_known_values_is_a_fault(monkeypatch):
    comm = types.SimpleNamespace(rank=0, size=1)
    communicators.check_sum(comm, np)
    monkeypatch.setattr(communicators, 'sum_over_processes', lambda comm, values: values.__iadd__(1))
    with pytest.raises(RuntimeError, match='MPI'):
        communicators.check_sum(comm, np)
