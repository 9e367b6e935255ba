import lib  # noqa: F401  (makes Chainer importable)

import chainer
import chainer.functions as F
import numpy as np
import pytest

from models import convolution
from models.convolution import Convolution2D


@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-12), (np.float32, 1e-4), (np.float16, 0.02)])
@pytest.mark.parametrize('buffer', [1, 5000, 1 << 20])
@pytest.mark.parametrize('ksize, stride, pad', [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (7, 2, 3)])
@pytest.mark.parametrize('height, width', [(8, 8), (9, 7)])
def test_output_and_gradients_are_chainers(monkeypatch, vectors, dtype, tolerance, buffer, ksize, stride, pad,
                                           height, width):
    monkeypatch.setattr(convolution, 'BUFFER', buffer)
    monkeypatch.setattr(convolution, 'PIXELS', 0)
    rng = np.random.RandomState(0)
    with chainer.using_config('dtype', dtype):
        link = Convolution2D(3, 4, ksize, stride, pad, chainer.initializers.Normal(0.3, rng=rng))
    x = chainer.Variable(rng.standard_normal((5, 3, height, width)).astype(dtype))
    expected = F.convolution_2d(x, link.W, stride=stride, pad=pad)
    weights = rng.standard_normal(expected.shape).astype(dtype)
    expected_gradients = chainer.grad([F.sum(expected * weights)], [x, link.W])
    y = link(x)
    assert y.dtype == dtype and y.array.flags.c_contiguous
    np.testing.assert_allclose(y.array, expected.array, rtol=tolerance, atol=tolerance)
    for gradient, reference in zip(chainer.grad([F.sum(y * weights)], [x, link.W]), expected_gradients):
        scale = abs(reference.array).max()
        np.testing.assert_allclose(gradient.array / scale, reference.array / scale, atol=tolerance)


class WithoutImagesGradient:

    def __init__(self, layers):
        self.layers = layers

    def convolve_backward(self, x, w, gy, stride, pad, gx, gw):
        assert gx is None
        self.layers.convolve_backward(x, w, gy, stride, pad, gx, gw)


def test_images_that_need_no_gradient_get_none_and_none_is_computed(monkeypatch, vectors):
    monkeypatch.setattr(convolution, 'PIXELS', 0)
    link = Convolution2D(3, 4, 3, 1, 1, chainer.initializers.Normal(0.3))
    link.cleargrads()
    x = chainer.Variable(np.ones((2, 3, 4, 4), np.float32), requires_grad=False)
    y = link(x)
    with monkeypatch.context() as context:
        if vectors == 'none':
            context.setattr(y.creator, '_input_gradient', None)
        else:
            context.setattr(y.creator, 'layers', WithoutImagesGradient(y.creator.layers))
        F.sum(y).backward()
    assert x.grad is None and link.W.grad.shape == link.W.shape


def test_channels_last_memory_gives_the_same_output(monkeypatch, vectors):
    monkeypatch.setattr(convolution, 'PIXELS', 0)
    link = Convolution2D(3, 4, 1, 1, 0, chainer.initializers.Normal(0.3))
    x = np.random.RandomState(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(link(last).array, link(x).array)


def test_weights_of_another_dtype_give_chainers_output(monkeypatch, vectors):
    monkeypatch.setattr(convolution, 'PIXELS', 0)
    with chainer.using_config('dtype', np.float16):
        link = Convolution2D(3, 4, 3, 1, 1, chainer.initializers.Normal(0.3))
    x = np.random.RandomState(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    expected = F.convolution_2d(x, link.W.array.astype(np.float32), pad=1).array
    np.testing.assert_allclose(link(x).array, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('side', [4, 32])
def test_no_image_gives_no_output(vectors, side):
    link = Convolution2D(3, 4, 3, 1, 1, chainer.initializers.Normal(0.3))
    assert link(np.empty((0, 3, side, side), np.float32)).shape == (0, 4, side, side)
