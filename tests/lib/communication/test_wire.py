"""Arithmetic of the gradients' exchange, compiled and with NumPy."""

from lib.communication import wire

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def implementation(both_implementations):
    both_implementations(wire)


def on_wire(values, dtype='float16', workers=1):
    out = np.empty(np.size(values), dtype)
    wire.to_wire(np.asarray(values, np.float32), out, workers)
    return out


def all_float16():
    return np.arange(1 << 16).astype(np.uint16).view(np.float16)


def float32_around_float16():
    """Every float16, every midpoint between two of them, and both float32 neighbors of each."""
    finite = np.sort(all_float16()[np.isfinite(all_float16())]).astype(np.float32)
    points = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2])
    below, above = np.nextafter(points, np.float32(-np.inf)), np.nextafter(points, np.float32(np.inf))
    return np.concatenate([points, below, above, np.float32([-0.0, 1e-45, -1e-45, 1e-30])])


def assert_rounds_as_numpy(values):
    with np.errstate(over='ignore', invalid='ignore'):
        expected = values.astype(np.float16)
    got = on_wire(values)
    nan = np.isnan(values)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


def test_float16_wire_rounds_to_nearest_even_at_every_boundary():
    values = float32_around_float16()
    assert_rounds_as_numpy(values)


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
    assert np.array_equal(on_wire(values, workers=3), (values / np.float32(3)).astype(np.float16))


def test_wire_takes_strided_and_float16_gradients():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert np.array_equal(on_wire(values.T[::2]), values.T[::2].ravel().astype(np.float16))
    out = np.empty(24, np.float32)
    wire.to_wire(values.astype(np.float16), out)
    assert np.array_equal(out, values.ravel())
    unaligned = np.frombuffer(b' ' + values.tobytes(), np.float32, offset=1)
    assert np.array_equal(on_wire(unaligned), values.ravel().astype(np.float16))


def test_sum_is_in_float32_in_the_order_of_ranks_and_rounded_once():
    # In float16 2048 + 1 rounds to 2048; in float32, 2^24 + 1 rounds to 2^24, and the order shows.
    for dtype, payloads, total in (('float16', [2048, 1, 1], 2050), ('float32', [2.0 ** 24, 1, 1], 2.0 ** 24),
                                   ('float32', [1, 1, 2.0 ** 24], 2.0 ** 24 + 2)):
        out = np.empty(1, dtype)
        wire.sum_payloads(np.array(payloads, dtype)[:, None], out)
        assert out.tolist() == [total]


@pytest.mark.parametrize('divisor', [1, 3, 1024 * 128.0])
def test_mean_is_cast_to_float32_before_the_division(divisor):
    values = all_float16()
    mean = np.empty(values.size, np.float32)
    wire.from_wire(values, divisor, mean)
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
        wire.to_wire(row, payload, K)
    wire.sum_payloads(payloads, total)
    wire.from_wire(total, P * scale, g)
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
        wire.to_wire(row, payload)
    wire.sum_payloads(payloads, total)
    wire.from_wire(total, P, g)
    M = G.mean(axis=0, dtype=np.float64)
    assert ((total / np.float16(P)).astype(np.float16) == 0).mean() > 0.5
    assert np.linalg.norm(g - M) < 0.02 * np.linalg.norm(M)


@pytest.mark.parametrize('position', [0, 1023, 1024, 99999])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype, large', [('float16', 65504), ('float32', 3e38)])
def test_one_non_finite_element_is_found(dtype, large, value, position):
    total, mean = np.full(100000, large, dtype), np.empty(100000, np.float32)
    assert wire.from_wire(total, 1, mean) is True
    total[position] = value
    assert wire.from_wire(total, 1, mean) is False


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
@pytest.mark.parametrize('divisor', [1024 * 64.0, 2.0 ** -140, 2.0 ** 127, 2.0 ** -3, 6.0])
def test_mean_is_the_quotient_also_where_its_reciprocal_is_no_float32(divisor, dtype):
    total = np.array([1, -3, 5e-5, 6e4], dtype)
    mean = np.empty(4, np.float32)
    wire.from_wire(total, divisor, mean)
    with np.errstate(over='ignore'):
        assert np.array_equal(mean, total.astype(np.float32) / np.float32(divisor))


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_payloads_may_be_columns_of_a_wider_array(dtype):
    wide = np.random.default_rng(5).standard_normal((3, 5000)).astype(dtype)
    out, expected = np.empty((2, 3000), dtype)
    wire.sum_payloads(wide[:, 1000:4000], out)
    wire.sum_payloads(np.ascontiguousarray(wide[:, 1000:4000]), expected)
    assert np.array_equal(out, expected)
