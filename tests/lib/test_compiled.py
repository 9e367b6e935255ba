"""The compiled loops themselves: what they refuse, and that their bits are NumPy's.

The tests of lib.optimizers, lib.communication.wire and lib.data.normalization run with them and without.
"""

from lib import compiled, optimizers
from lib.communication import wire
from lib.compiled import loops, sources
from lib.data import normalization
from lib.run import machine

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(loops is None, reason='lib/compiled/loops.c was not compiled')
SCALARS = [np.float32(value) for value in (0.1, 0.3, 0.002, 0.9, 0.99, 1 - 0.99, 1e-8, 1e-4)]
SIZES = [0, 1, 7, 8, 1023, 1024, 1025, 5003]


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture
def with_numpy(monkeypatch):
    """``with_numpy(function, *args)`` calls a function of lib without the compiled loops."""

    def call(function, *args):
        with monkeypatch.context() as context:
            for module in (wire, normalization):
                context.setattr(module, 'loops', None)
            return function(*args)

    return call


@pytest.mark.parametrize('alpha_sgd', [0, 0.3, 1])
@pytest.mark.parametrize('alpha_rmsprop', [0, 0.002])
@pytest.mark.parametrize('weight_decay', [0, 1e-4])
def test_update_gives_numpy_s_bits(alpha_sgd, alpha_rmsprop, weight_decay):
    eta, _, _, *others, _ = SCALARS
    scalars = [eta, *map(np.float32, (alpha_sgd, alpha_rmsprop)), *others, np.float32(weight_decay)]
    special = np.float32([0, -0.0, np.inf, 1e-40, -1e-45, 3e38, 1e-23])
    for size in SIZES:
        ours, numpy_s = ([normal(seed, size) for seed in range(4)] for _ in range(2))
        for arrays, update in ((ours, loops.update), (numpy_s, optimizers._update)):
            arrays[1][:7] = special[:size]
            arrays[2] **= 2
            for _ in range(3):
                update(*arrays, *scalars)
        for one, other in zip(ours, numpy_s):
            assert_same_bits(one, other, np.uint32)


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
@pytest.mark.parametrize('size', SIZES)
def test_wire_gives_numpy_s_bits(with_numpy, dtype, size):
    payloads = normal(0, (3, size), dtype)
    calls = [(wire.to_wire, normal(1, size), np.empty(size, dtype), 3),
             (wire.to_wire, normal(1, size), np.empty(size, dtype), 1),
             (wire.sum_payloads, payloads, np.empty(size, dtype)),
             (wire.from_wire, payloads[0], 6.0, np.empty(size, np.float32)),
             (wire.from_wire, payloads[0], 8.0, np.empty(size, np.float32))]
    for function, *args in calls:
        out = next(arg for arg in args[1:] if isinstance(arg, np.ndarray))
        function(*args)
        ours = out.tobytes()
        out[...] = 0
        with_numpy(function, *args)
        assert ours == out.tobytes(), function.__name__


def assert_same_bits(one, other, bits):
    """But for which NaN."""
    nan = np.isnan(one)
    assert np.array_equal(nan, np.isnan(other))
    assert np.array_equal(one.view(bits)[~nan], other.view(bits)[~nan])


def test_portable_conversion_rounds_as_the_processor_s():
    # Eight at a time are the processor's where it has instructions for float16, the rest is not.
    bits = np.random.default_rng(2).integers(0, 1 << 32, 7 * 4000, dtype=np.uint32).view(np.float32)
    small = normal(3, 7 * 4000) * np.float32(2) ** np.linspace(-30, 17, 7 * 4000).astype(np.float32)
    for values in (bits, small, np.float32(6 * [-0.0, 0.0, np.nan, -np.inf, -1e-30, 1e-30])):
        half, back = np.empty((2, values.size), np.float16)
        loops.to_wire(values, half, 1)
        for start in range(0, values.size, 7):
            loops.to_wire(values[start:start + 7], back[start:start + 7], 1)
        assert_same_bits(half, back, np.uint16)
    every = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    wide, back = np.empty((2, every.size), np.float32)
    loops.from_wire(every, 1, wide)
    for start in range(0, every.size, 7):
        loops.from_wire(every[start:start + 7], 1, back[start:start + 7])
    assert_same_bits(wide, back, np.uint32)


def test_images_get_numpy_s_bits(with_numpy):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(normalization.normalize(images), with_numpy(normalization.normalize, images))


FLOATS, HALVES = np.zeros(6, np.float32), np.zeros(6, np.float16)
PIXELS, TABLES = np.zeros(6, np.uint8), np.zeros((3, 256), np.float32)
READ_ONLY = FLOATS.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize('name, args, error', [
    ('update', (FLOATS, FLOATS, FLOATS, np.zeros(6), *SCALARS), TypeError),
    ('update', (FLOATS, FLOATS, FLOATS, FLOATS[:5], *SCALARS), ValueError),
    ('update', (FLOATS, FLOATS[:5], FLOATS, FLOATS, *SCALARS), ValueError),
    ('update', (READ_ONLY, FLOATS, FLOATS, FLOATS, *SCALARS), ValueError),
    ('update', (FLOATS[::2], FLOATS[::2], FLOATS[::2], FLOATS[::2], *SCALARS), ValueError),
    ('to_wire', (HALVES, FLOATS, 1), TypeError),
    ('to_wire', (FLOATS, HALVES[1:], 1), ValueError),
    ('to_wire', (FLOATS, FLOATS.astype('>f4'), 1), TypeError),
    ('sum_payloads', (FLOATS.reshape(2, 3), HALVES[:3]), ValueError),
    ('sum_payloads', (FLOATS, FLOATS), ValueError),
    ('sum_payloads', (FLOATS.reshape(2, 3), FLOATS[:2]), ValueError),
    ('sum_payloads', (FLOATS.reshape(3, 2).T, FLOATS[:3]), ValueError),
    ('sum_payloads', (np.zeros((0, 3), np.float32), FLOATS[:3]), ValueError),
    ('from_wire', (HALVES, 1.0, HALVES), TypeError),
    ('from_wire', (HALVES, 1.0, FLOATS[1:]), ValueError),
    ('normalize', (PIXELS.reshape(1, 2, 3), TABLES, FLOATS), ValueError),
    ('normalize', (PIXELS.reshape(1, 1, 1, 6), TABLES, FLOATS), ValueError),
    ('normalize', (PIXELS.reshape(1, 2, 1, 3), TABLES[:, 1:].copy(), FLOATS), ValueError),
    ('normalize', (PIXELS.reshape(1, 2, 1, 3), TABLES, FLOATS[:3]), ValueError),
    ('normalize', (PIXELS.reshape(1, 2, 1, 3).view(np.int8), TABLES, FLOATS), TypeError),
])
def test_arrays_of_another_type_or_size_are_refused(name, args, error):
    with pytest.raises(error):
        getattr(loops, name)(*args)


def test_arrays_are_let_go_of_in_the_end():
    memory = bytearray(24)
    good = FLOATS.copy(), FLOATS.copy(), FLOATS.copy(), *SCALARS
    for args in (good, (FLOATS[:5], *good[1:]), (*good[:-1], 'x')):
        theta = memoryview(memory).cast('f')
        try:
            loops.update(theta, *args)
        except (TypeError, ValueError):
            pass
        theta.release()  # raises if it is still held


@pytest.mark.parametrize('built_from', ['other sources', None])
def test_what_was_compiled_from_other_sources_is_not_used_which_is_said(monkeypatch, built_from):
    monkeypatch.setattr(compiled, 'outdated', [])
    monkeypatch.setattr(machine, 'outdated', compiled.outdated)
    assert compiled._import('_loops', *sources.LOOPS) is loops
    assert not any('compiled from other' in line for line in machine.notes('naive'))
    if built_from is None:  # before builds said what they were made from
        monkeypatch.delattr(loops, 'sources')
    else:
        monkeypatch.setattr(loops, 'sources', built_from)
    assert compiled._import('_loops', *sources.LOOPS) is None
    assert 'lib/compiled/_loops was compiled from other sources' in machine.notes('naive')[-1]


def test_an_installation_without_sources_uses_what_was_compiled(monkeypatch):
    monkeypatch.setattr(sources, 'fingerprint', lambda *names: None)
    assert compiled._import('_loops', *sources.LOOPS) is loops
