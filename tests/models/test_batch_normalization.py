from lib import compat  # noqa: F401, I001  (before anything that imports Chainer)
from lib.gpu import cudnn

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer.backends import cuda
from chainer.testing import attr

import models
from models.batch_normalization import BatchNormalization


def normal(seed, *shape, dtype=np.float32):
    return np.random.RandomState(seed).standard_normal(shape).astype(dtype)


def layers(decay=0.9, dtype=np.float32):
    """Chainer's and ours, with the same parameters."""
    both = []
    for kind in (L.BatchNormalization, BatchNormalization):
        bn = kind(5, decay=decay, eps=1e-5, dtype=dtype)
        bn.gamma.array[...], bn.beta.array[...] = normal(1, 5), normal(2, 5)
        bn.avg_mean[...], bn.avg_var[...] = normal(3, 5), normal(4, 5) ** 2 + 0.1
        both.append(bn)
    return both


def chainers(bn, x, residual, relu):
    y = bn(x)
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y


def assert_close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * max(abs(other).max(), 1))


@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('train', [True, False])
def test_output_gradients_and_running_statistics_are_chainers(vectors, with_residual, relu, train):
    reference, bn = layers()
    results = []
    for forward, link in ((chainers, reference), (lambda bn, *arguments: bn(*arguments), bn)):
        x, residual = chainer.Variable(normal(5, 3, 5, 4, 7)), chainer.Variable(normal(6, 3, 5, 4, 7))
        link.cleargrads()
        with chainer.using_config('train', train):
            y = forward(link, x, residual if with_residual else None, relu)
            F.sum(y * normal(7, *y.shape)).backward()
        results.append([y.array, x.grad, link.gamma.grad, link.beta.grad, link.avg_mean, link.avg_var]
                       + ([residual.grad] if with_residual else []))
    for expected, ours in zip(*results):
        assert ours.dtype == np.float32
        assert_close(ours, expected)


@pytest.mark.parametrize('decay', [0, 0.9])
def test_running_variance_is_unbiased(vectors, decay):
    _, bn = layers(decay)
    before = bn.avg_var.copy()
    x = normal(5, 2, 5, 1, 2)
    bn(x)
    np.testing.assert_allclose(bn.avg_var, decay * before + (1 - decay) * x.var((0, 2, 3), ddof=1), rtol=1e-5)


@pytest.mark.parametrize('backprop', [True, False])
def test_validation_leaves_running_statistics_alone(vectors, backprop):
    reference, bn = layers()
    before = bn.avg_mean.copy(), bn.avg_var.copy()
    x, residual = normal(5, 3, 5, 4, 7), normal(6, 3, 5, 4, 7)
    with chainer.using_config('train', False), chainer.using_config('enable_backprop', backprop):
        assert_close(bn(x, residual, True).array, chainers(reference, x, residual, True).array)
    np.testing.assert_array_equal((bn.avg_mean, bn.avg_var), before)


def test_arrays_that_are_not_contiguous_give_the_same(vectors):
    x, residual = normal(5, 3, 5, 4, 7), normal(6, 3, 5, 4, 7)
    last = [array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) for array in (x, residual)]
    for train in (True, False):
        with chainer.using_config('train', train), chainer.no_backprop_mode():
            assert_close(layers()[1](*last, True).array, layers()[1](x, residual, True).array)


def test_arrays_at_odd_addresses_give_the_same(vectors):
    x = normal(5, 3, 5, 4, 7)
    odd = np.frombuffer(b'0' + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    assert not odd.flags.aligned
    np.testing.assert_array_equal(layers()[1](odd).array, layers()[1](x).array)


def test_recomputing_leaves_running_statistics_alone(vectors):
    _, bn = layers()
    before = bn.avg_mean.copy(), bn.avg_var.copy()
    with chainer.using_config('in_recomputing', True):
        bn(normal(5, 3, 5, 4, 7))
    np.testing.assert_array_equal((bn.avg_mean, bn.avg_var), before)


@pytest.mark.parametrize('dtype, parameters', [(np.float16, np.float32), (np.float64, np.float64)])
def test_other_dtypes_are_chainers_own(vectors, dtype, parameters):
    reference, bn = layers(dtype=parameters)
    x, residual = normal(5, 3, 5, 4, 7, dtype=dtype), normal(6, 3, 5, 4, 7, dtype=dtype)
    ours, expected = bn(x, residual, True), chainers(reference, x, residual, True)
    assert ours.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(ours.array, expected.array)
    np.testing.assert_array_equal(bn.avg_var, reference.avg_var)


def test_one_value_per_channel_and_no_image_are_chainers_own(vectors):
    _, bn = layers()
    with pytest.warns(UserWarning, match='no more than one sample'):
        np.testing.assert_allclose(bn(normal(5, 1, 5, 1, 1)).array[0, :, 0, 0], bn.beta.array)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        assert bn(np.empty((0, 5, 3, 3), np.float32), relu=True).shape == (0, 5, 3, 3)


# Whole networks


# In float32 some ReLUs fall to the other side of 0, and ResNet-50's last stage normalizes over 16 values:
# with Chainer's own functions it is as far away.
@pytest.mark.parametrize('arch, side, batch, tolerance', [
    ('resnet8', 16, 8, 0.01), ('resnet20', 17, 4, 0.03), ('resnet50', 64, 4, 0.06)])
def test_networks_have_the_gradients_of_chainers_own_functions_in_float64(vectors, arch, side, batch,
                                                                          tolerance):
    model = models.build(arch, 5)
    for i, bn in enumerate(link for link in model.links() if isinstance(link, L.BatchNormalization)):
        bn.gamma.array[...] = 0.5 + 0.1 * normal(i, *bn.gamma.shape)
    exact = models.build(arch, 5)
    for (_, ours), (_, theirs) in zip(sorted(model.namedparams()), sorted(exact.namedparams())):
        theirs.array = ours.array.astype(np.float64)
    x, t = normal(0, batch, 3, side, side), np.arange(batch, dtype=np.int32) % 5
    losses = []
    for network, images in ((model, x), (exact, x.astype(np.float64))):
        network.cleargrads()
        loss = F.softmax_cross_entropy(network(images), t)
        loss.backward()
        losses.append(float(loss.array))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (name, ours), (_, theirs) in zip(sorted(model.namedparams()), sorted(exact.namedparams())):
        assert np.linalg.norm(ours.grad - theirs.grad) < tolerance * np.linalg.norm(theirs.grad), name


# On a GPU


@attr.gpu
@pytest.mark.parametrize('own', ['', 'own'])
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('recomputing', [False, True])
def test_one_function_on_a_gpu_gives_what_three_do(monkeypatch, own, dtype, with_residual, relu, recomputing):
    monkeypatch.setenv('EXTREME_SGD_CUDNN', own)
    cudnn.library.cache_clear()
    arrays = [cuda.cupy.asarray(normal(seed, 3, 5, 4, 7, dtype=dtype)) for seed in (5, 6, 7)]
    # To the last bit, where both normalize by the same library.
    links = layers()[cudnn.library() is not None], layers()[1]
    results = []
    for forward, link in zip((chainers, lambda bn, *arguments: bn(*arguments)), links):
        link.to_device('@cupy:0')
        x, residual = map(chainer.Variable, arrays[:2])
        with chainer.using_config('in_recomputing', recomputing):
            y = forward(link, x, residual if with_residual else None, relu)
        y.grad = arrays[2]
        y.backward()
        results.append([y.array, x.grad, link.gamma.grad, link.beta.grad, link.avg_mean, link.avg_var]
                       + ([residual.grad] if with_residual else []))
    cudnn.library.cache_clear()
    assert y.creator.inputs[0].creator is None  # y was made of x in one step
    for expected, ours in zip(*results):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(cuda.to_cpu(ours), cuda.to_cpu(expected))


@attr.gpu
@pytest.mark.parametrize('place', [0, 1])
def test_nan_passes_the_relu_on_a_gpu(place):
    _, bn = layers()
    bn.to_device('@cupy:0')
    arrays = [cuda.cupy.asarray(normal(seed, 3, 5, 4, 7)) for seed in (5, 6)]
    arrays[place][1, 2, 3, 4] = np.nan
    assert np.isnan(cuda.to_cpu(bn(*arrays, relu=True).array)[1, 2, 3, 4])
