from lib import compat  # noqa: F401, I001  (before anything that imports Chainer)

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from models.linear import Linear


@pytest.mark.parametrize('dtype, tolerance', [(np.float32, 1e-4), (np.float64, 1e-12), (np.float16, 0.02)])
@pytest.mark.parametrize('batch, n_in, n_out', [(1, 1, 1), (5, 7, 3), (33, 64, 17), (3, 300, 40)])
def test_output_and_gradients_are_chainers(vectors, dtype, tolerance, batch, n_in, n_out):
    rng = np.random.RandomState(0)
    x = rng.standard_normal((batch, n_in)).astype(dtype)
    results = []
    for kind in (L.Linear, Linear):
        with chainer.using_config('dtype', dtype):
            link = kind(n_in, n_out, initialW=chainer.initializers.Normal(0.1, rng=np.random.RandomState(1)))
        link.b.array[...] = np.arange(n_out)
        images = chainer.Variable(x)
        y = link(images)
        link.cleargrads()
        F.sum(y * np.random.RandomState(2).standard_normal(y.shape).astype(dtype)).backward()
        results.append((y.array, images.grad, link.W.grad, link.b.grad))
    for expected, ours in zip(*results):
        assert ours.dtype == dtype and ours.shape == expected.shape
        scale = max(abs(expected).max(), 1)
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * scale)


def test_arrays_that_are_not_contiguous_give_the_same(vectors):
    link = Linear(7, 3, initialW=chainer.initializers.Normal(0.1))
    x = np.random.RandomState(0).standard_normal((5, 7)).astype(np.float32)
    gradients = []
    for order in 'CF':
        link.cleargrads()
        y = link(np.array(x, order=order))
        y.grad = np.array(x[:, :3], order=order)
        y.backward()
        gradients.append(link.W.grad)
    np.testing.assert_allclose(*gradients, rtol=1e-5)


def test_further_dimensions_are_flattened_as_by_chainers(vectors):
    link = Linear(6, 4, initialW=chainer.initializers.Normal(0.1))
    x = np.random.RandomState(0).standard_normal((5, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(link(x).array, link(x.reshape(5, 6)).array, rtol=1e-4, atol=1e-6)
