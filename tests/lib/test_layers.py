"""The compiled layers, for each width of vectors of this machine, against float64."""

import itertools
import types

from lib import compiled
from lib.errors import UserError
from lib.run import machine

import numpy as np
import pytest


@pytest.fixture(params=compiled.available()[1:])
def layers(request, monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, request.param)
    compiled.vectors.cache_clear()
    yield compiled.layers()
    compiled.vectors.cache_clear()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def misaligned(array):
    """The same values, at an address that is a multiple of 4 and of no more."""
    memory = np.empty(array.size + 17, np.float32)
    start = next(i for i in range(17) if (memory.ctypes.data + 4 * i) % 64 == 4)
    moved = memory[start:start + array.size].reshape(array.shape)
    moved[...] = array
    return moved


# The choice

@pytest.fixture
def choose(monkeypatch):
    """``choose(name)`` asks for vectors, as if in a new process."""
    def choose(name):
        monkeypatch.setenv(compiled.VARIABLE, name)
        compiled.vectors.cache_clear()
        return compiled.vectors()
    yield choose
    compiled.vectors.cache_clear()


def test_the_widest_vectors_are_chosen_unless_the_environment_names_some(choose):
    names = compiled.available()
    assert names[0] == 'none' and choose('') == names[-1]
    for name in names:
        assert choose(name) == name
        assert (compiled.layers() is None) == (name == 'none')
        assert machine.versions()['vectors'] == name


def test_vectors_that_the_machine_lacks_are_the_users_error(monkeypatch, choose):
    monkeypatch.setattr(compiled, 'available', lambda: ['none', 'baseline'])
    for name in ('avx2', 'avx1024'):
        with pytest.raises(UserError, match=f'EXTREME_SGD_VECTORS={name}: .*none, baseline'):
            choose(name)


@pytest.mark.parametrize('widest', range(1, 4))
def test_a_machine_has_the_vectors_up_to_its_own(monkeypatch, widest):
    names = ['none', 'baseline', 'avx2', 'avx512']  # each has all instructions of those before it
    monkeypatch.setattr(compiled, '_module',
                        lambda name: types.SimpleNamespace(machine=lambda: names[widest]))
    assert compiled.available() == names[:widest + 1]


def test_what_was_compiled_here_is_of_the_sources_that_lie_here():
    compiled.available()
    assert compiled.outdated == []  # else it is tested nowhere: install again, as `make .venv/.test` does


def test_without_a_compiler_nothing_is_chosen(monkeypatch, choose):
    monkeypatch.setattr(compiled, '_module', lambda name: None)
    assert choose('') == 'none' and compiled.layers() is None


# Convolution

def convolved(x, w, stride, pad, gy):
    """y, gx and gw in float64, one tap of the kernel after the other."""
    x, w, gy = (array.astype(np.float64) for array in (x, w, gy))
    (height, width), (rows, columns) = x.shape[2:], gy.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y, gw, gradient = np.zeros_like(gy), np.zeros_like(w), np.zeros_like(padded)
    for ky, kx in itertools.product(range(w.shape[2]), repeat=2):
        seen = np.s_[:, :, ky:ky + stride * (rows - 1) + 1:stride, kx:kx + stride * (columns - 1) + 1:stride]
        y += np.einsum('oc,bcij->boij', w[:, :, ky, kx], padded[seen])
        gw[:, :, ky, kx] = np.einsum('boij,bcij->oc', gy, padded[seen])
        gradient[seen] += np.einsum('oc,boij->bcij', w[:, :, ky, kx], gy)
    return y, gradient[:, :, pad:pad + height, pad:pad + width], gw


def convolve(layers, x, w, stride, pad, gy):
    y, gx, gw = (np.full_like(array, np.nan) for array in (gy, x, w))
    layers.convolve(x, w, stride, pad, y)
    layers.convolve_backward(x, w, gy, stride, pad, gx, gw)
    return y, gx, gw


def operands(batch, n_in, n_out, height, width, ksize, stride, pad):
    rows, columns = ((side + 2 * pad - ksize) // stride + 1 for side in (height, width))
    return (normal(0, batch, n_in, height, width), normal(1, n_out, n_in, ksize, ksize), stride, pad,
            normal(2, batch, n_out, rows, columns))


SHAPES = [
    (3, 2, 5, 8, 8, 1, 1, 0), (3, 2, 5, 9, 7, 1, 2, 0), (3, 2, 5, 9, 7, 1, 3, 0),     # 1 x 1
    (2, 3, 8, 32, 32, 3, 1, 1), (2, 5, 7, 13, 10, 3, 1, 1), (2, 5, 7, 6, 9, 3, 2, 1),  # 3 x 3
    (2, 5, 7, 6, 9, 3, 1, 0), (2, 5, 7, 6, 9, 3, 1, 2), (2, 5, 7, 6, 9, 3, 2, 2),      # other padding
    (2, 3, 9, 21, 30, 7, 2, 3), (1, 2, 3, 11, 12, 5, 4, 2), (2, 2, 3, 11, 12, 2, 3, 0),
    (2, 3, 4, 1, 1, 1, 1, 0), (2, 3, 4, 1, 1, 3, 1, 1), (2, 3, 4, 1, 1, 3, 2, 1),      # one pixel
    (1, 1, 1, 5, 5, 3, 1, 1), (2, 2, 3, 4, 5, 7, 2, 6),
    (50, 33, 17, 7, 7, 3, 1, 1), (130, 6, 9, 8, 8, 3, 2, 1), (70, 65, 3, 5, 5, 1, 1, 0),  # several groups
    (2, 16, 9, 60, 50, 3, 1, 1), (4, 250, 12, 20, 20, 1, 1, 0),
]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_convolution_and_its_gradients_are_those_of_float64(layers, shape):
    arguments = operands(*shape)
    for ours, exact in zip(convolve(layers, *arguments), convolved(*arguments)):
        np.testing.assert_allclose(ours / abs(exact).max(), exact / abs(exact).max(), atol=3e-6)


def test_convolution_of_no_image_has_zero_as_weights_gradient(layers):
    y, gx, gw = convolve(layers, *operands(0, 3, 4, 5, 5, 3, 1, 1))
    assert y.size == gx.size == 0 and not gw.any()


def test_images_gradient_may_be_left_out(layers):
    x, w, stride, pad, gy = arguments = operands(2, 3, 4, 5, 5, 3, 1, 1)
    gw = np.empty_like(w)
    layers.convolve_backward(x, w, gy, stride, pad, None, gw)
    np.testing.assert_array_equal(gw, convolve(layers, *arguments)[2])


@pytest.mark.parametrize('shape', SHAPES[:8], ids=str)
def test_convolution_has_the_same_bits_wherever_arrays_lie(layers, shape):
    x, w, stride, pad, gy = operands(*shape)
    moved = convolve(layers, misaligned(x), misaligned(w), stride, pad, misaligned(gy))
    for ours, theirs in zip(moved, convolve(layers, x, w, stride, pad, gy)):
        np.testing.assert_array_equal(ours, theirs)


def test_nan_reaches_what_sees_it_and_nothing_else(layers):
    x, w, stride, pad, gy = operands(3, 4, 5, 9, 9, 3, 1, 1)
    x[1, 2, 4, 4] = np.nan
    y, gx, gw = convolve(layers, x, w, stride, pad, gy)
    sees = np.zeros_like(y, bool)
    sees[1, :, 3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y), sees)
    assert np.isfinite(gx).all() and np.isnan(gw[:, 2]).all() and np.isfinite(gw[:, :2]).all()


# Batch normalization

def normalized(x, gamma, beta, mean, var, eps, residual, relu):
    """y and x_hat in float64."""
    x, gamma, beta, mean, var = (array.astype(np.float64) for array in (x, gamma, beta, mean, var))
    x_hat = (x - mean[:, None, None]) / np.sqrt(var + eps)[:, None, None]
    y = gamma[:, None, None] * x_hat + beta[:, None, None]
    if residual is not None:
        y += residual
    return (np.maximum(y, 0) if relu else y), x_hat


def normalized_backward(x_hat, y, gy, gamma, var, eps, relu):
    """gx, gresidual, ggamma and gbeta in float64."""
    axes, m = (0, 2, 3), x_hat.size / len(gamma)
    g = gy.astype(np.float64) * (y > 0) if relu else gy.astype(np.float64)
    gbeta, ggamma = g.sum(axes), (g * x_hat).sum(axes)
    gx = (gamma / np.sqrt(var.astype(np.float64) + eps))[:, None, None] * (
        g - (gbeta[:, None, None] + x_hat * ggamma[:, None, None]) / m)
    return gx, g, ggamma, gbeta


EPS = 1e-5
AREAS = [(2, 3, 1, 1), (1, 3, 1, 2), (5, 3, 3, 5), (2, 5, 4, 4), (2, 3, 16, 16), (3, 2, 13, 11)]
SWITCHES = list(itertools.product([False, True], repeat=2))


def normalize(layers, x, gamma, beta, residual, relu, mean=None, var=None):
    """y, mean and var; of the batch unless they are given."""
    y, of_batch = np.full_like(x, np.nan), mean is None
    mean, var = np.empty((2, x.shape[1]), np.float32) if of_batch else (mean, var)
    layers.normalize(x, residual, y, gamma, beta, mean, var, EPS, relu, of_batch)
    return y, mean, var


def backward(layers, x, y, gy, gamma, mean, var, residual, relu):
    gx, gresidual = np.full_like(x, np.nan), np.full_like(x, np.nan) if residual is not None else None
    ggamma, gbeta = np.full((2, x.shape[1]), np.nan, np.float32)
    layers.normalize_backward(x, y if relu else None, gy, gx, gresidual, gamma, mean, var, ggamma, gbeta, EPS)
    return gx, gresidual, ggamma, gbeta


def layer(shape, with_residual):
    x = 3 * normal(0, *shape) + 20 * normal(1, shape[1])[:, None, None]
    return (x, *normal(2, 2, shape[1]), normal(3, *shape) if with_residual else None, normal(4, *shape))


@pytest.mark.parametrize('with_residual, relu', SWITCHES)
@pytest.mark.parametrize('shape', AREAS, ids=str)
def test_batch_normalization_and_its_gradients_are_those_of_float64(layers, shape, with_residual, relu):
    x, gamma, beta, residual, gy = layer(shape, with_residual)
    y, mean, var = normalize(layers, x, gamma, beta, residual, relu)
    np.testing.assert_allclose(mean, x.mean((0, 2, 3), np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 2, 3), np.float64), rtol=3e-6)
    exact, x_hat = normalized(x, gamma, beta, mean, var, EPS, residual, relu)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)
    ours = backward(layers, x, y, gy, gamma, mean, var, residual, relu)
    for mine, exact in zip(ours, normalized_backward(x_hat, y, gy, gamma, var, EPS, relu)):
        if mine is not None:
            np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=2e-5 * abs(gy).max())


@pytest.mark.parametrize('with_residual, relu', SWITCHES)
def test_given_statistics_are_used_and_left_alone(layers, with_residual, relu):
    x, gamma, beta, residual, _ = layer((3, 4, 5, 7), with_residual)
    mean, var = normal(5, 4), normal(6, 4) ** 2
    before = mean.copy(), var.copy()
    y, *_ = normalize(layers, x, gamma, beta, residual, relu, mean, var)
    exact, _ = normalized(x, gamma, beta, *before, EPS, residual, relu)
    np.testing.assert_allclose(y, exact, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal((mean, var), before)


def test_batch_normalization_has_the_same_bits_wherever_arrays_lie(layers):
    x, gamma, beta, residual, gy = layer((3, 4, 5, 7), True)
    y, mean, var = normalize(layers, x, gamma, beta, residual, True)
    gradients = backward(layers, x, y, gy, gamma, mean, var, residual, True)
    x, gamma, beta, residual, gy = map(misaligned, (x, gamma, beta, residual, gy))
    for one, other in zip(normalize(layers, x, gamma, beta, residual, True), (y, mean, var)):
        np.testing.assert_array_equal(one, other)
    again = backward(layers, x, misaligned(y), gy, gamma, mean, var, residual, True)
    for one, other in zip(again, gradients):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('area', [(1, 5), (4, 8)])
def test_relu_keeps_nan_and_replaces_infinity_below_zero_alone(layers, area):
    x = np.ones((2, 1, *area), np.float32)
    special = np.float32([np.nan, np.inf, -np.inf, -1, 2])
    x[0, 0].flat[:5] = special
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    y, *_ = normalize(layers, x, one, zero, None, True, zero.copy(), one.copy())
    expected = np.maximum(special / np.float32(np.sqrt(1 + EPS)), 0)
    np.testing.assert_allclose(y[0, 0].flat[:5], expected, rtol=1e-6)


def test_relu_lets_gradients_through_as_numpys_product_with_0_and_1(layers):
    shape = 2, 1, 3, 7
    x, y, gy = normal(0, *shape), np.maximum(normal(1, *shape), 0), normal(2, *shape)
    y[0, 0, 0, :3] = gy[0, 0, 1, :3] = np.nan, 0, 1
    y[0, 0, 1, :3] = gy[0, 0, 0, :3] = 1, np.inf, -np.inf
    one = np.ones(1, np.float32)
    with np.errstate(invalid='ignore'):
        _, gresidual, _, _ = backward(layers, x, y, gy, one, one, one, x, True)
        np.testing.assert_array_equal(gresidual, gy * (y > 0))


# Arguments

X, W, Y = (np.zeros(shape, np.float32) for shape in ((2, 3, 5, 5), (4, 3, 3, 3), (2, 4, 5, 5)))
GX, ROW, READ_ONLY = np.zeros_like(X), np.zeros(3, np.float32), np.zeros_like(Y)
READ_ONLY.flags.writeable = False
BYTES = np.zeros(X.nbytes + 4, np.uint8)[1:X.nbytes + 1].view(np.float32).reshape(X.shape)
NORMALIZE = (X, None, GX, ROW, ROW, ROW.copy(), ROW.copy(), EPS, True, True)
BACKWARD = (X, GX, X, GX, None, ROW, ROW, ROW, ROW.copy(), ROW.copy(), EPS)


def but(arguments, position, value):
    return *arguments[:position], value, *arguments[position + 1:]


@pytest.mark.parametrize('name, arguments, error', [
    *(('convolve', but((X, W, 1, 1, Y), i, value), error) for i, value, error in [
        (0, X.astype(np.float64), TypeError), (0, X[:, :2].copy(), ValueError), (0, X[0], ValueError),
        (0, X[:, :, ::-1], ValueError), (0, BYTES, TypeError), (0, None, TypeError), (0, X[:1], ValueError),
        (0, np.zeros((2, 3, 0, 5), np.float32), ValueError),
        (1, W[:, :, :2].copy(), ValueError), (1, np.zeros((4, 3, 9, 9), np.float32), ValueError),
        (1, np.zeros((4, 3, 0, 0), np.float32), ValueError), (2, 0, ValueError), (2, 2, ValueError),
        (2, -1, ValueError), (2, 1 << 62, ValueError), (3, 0, ValueError), (3, 3, ValueError),
        (3, -1, ValueError), (4, READ_ONLY, ValueError), (4, Y[:, :3].copy(), ValueError),
        (4, Y[:, :, 1:].copy(), ValueError)]),
    ('convolve_backward', (X, W, Y, 1, 1, Y.copy(), W.copy()), ValueError),
    ('convolve_backward', (X, W, Y, 1, 1, None, W[1:].copy()), ValueError),
    ('convolve_backward', (X, W, Y, 1, 1, None, None), TypeError),
    *(('normalize', but(NORMALIZE, i, value), error) for i, value, error in [
        (0, X[1:], ValueError), (0, X[0], ValueError), (1, X[1:], ValueError), (2, None, TypeError),
        (2, X[:, :2].copy(), ValueError), *((i, ROW[:2].copy(), ValueError) for i in range(3, 7)),
        (5, np.zeros(3), TypeError)]),
    ('normalize', (X[:0], None, GX[:0], *NORMALIZE[3:]), ValueError),
    *(('normalize_backward', but(BACKWARD, i, value), ValueError) for i, value in [
        (1, X[1:]), (2, X[1:]), (3, X[1:].copy()), (4, X[1:].copy()),
        *((i, ROW[:2].copy()) for i in range(5, 10))]),
])
def test_arrays_that_do_not_fit_are_refused(layers, name, arguments, error):
    with pytest.raises(error):
        getattr(layers, name)(*arguments)
    for array in arguments:  # let go of, or this raises
        if isinstance(array, np.ndarray) and array.base is None and array.flags.owndata:
            array.resize(array.shape, refcheck=False)
