import lib  # noqa: F401  (makes Chainer importable)

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import models
from models.small_resnet import BasicBlock

SMALL = ('resnet8', 'resnet20')


def named_links(model, kind):
    return {name: link for name, link in model.namedlinks() if isinstance(link, kind)}


def images(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def expected_parameters(n, width, n_class):
    """3x3 convolutions of 9 io weights, each with 2o for batch normalization; two projections; classifier."""
    stem = 27 * width + 2 * width
    stages = 0
    for c_in, c_out in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
        stages += 9 * c_in * c_out + (2 * n - 1) * 9 * c_out ** 2 + 2 * n * 2 * c_out
    projections = 2 * width ** 2 + 4 * width + 8 * width ** 2 + 8 * width
    return stem + stages + projections + 4 * width * n_class + n_class


@pytest.mark.parametrize('arch, n, width', [('resnet8', 1, 8), ('resnet20', 3, 16)])
def test_number_of_parameters(arch, n, width):
    assert models.build(arch, 16).count_params() == expected_parameters(n, width, 16)


def test_width_scales_the_channels_of_all_stages():
    model = models.ResNet8(n_class=10, width=4)
    assert model.count_params() == expected_parameters(1, 4, 10)
    assert [stage[0].conv1.out_channels for stage in (model.res2, model.res3, model.res4)] == [4, 8, 16]


@pytest.mark.parametrize('arch, layers', [('resnet8', 8), ('resnet20', 20)])
def test_depth_is_the_one_in_the_name(arch, layers):
    convolutions = [name for name in named_links(models.build(arch, 10), L.Convolution2D)
                    if 'shortcut' not in name]
    assert len(convolutions) + 1 == layers


@pytest.mark.parametrize('arch', SMALL)
def test_convolutions_have_no_bias_and_stride_2_only_where_a_later_stage_begins(arch):
    convolutions = named_links(models.build(arch, 10), L.Convolution2D)
    assert all(link.b is None for link in convolutions.values())
    assert {name for name, link in convolutions.items() if link.stride == (2, 2)} == {
        '/res3/0/conv1', '/res3/0/shortcut/conv', '/res4/0/conv1', '/res4/0/shortcut/conv'}
    assert {link.ksize for name, link in convolutions.items() if 'shortcut' not in name} == {3}


@pytest.mark.parametrize('height, width', [(32, 32), (16, 16), (24, 24), (21, 17)])
def test_stages_keep_halve_and_quarter_the_side(height, width):
    model = models.build('resnet8', 7)
    h = model.conv1(images(2, 3, height, width))
    for stage, channels, factor in ((model.res2, 8, 1), (model.res3, 16, 2), (model.res4, 32, 4)):
        h = stage(h)
        assert h.shape == (2, channels, -(-height // factor), -(-width // factor))
    assert model(images(2, 3, height, width)).shape == (2, 7)


def test_images_have_32_pixels_unless_told_otherwise_and_8_at_least():
    model = models.build('resnet8', 7)
    assert (model.insize, model.min_insize) == (32, 8)
    assert model(images(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize('arch', SMALL)
def test_initialization_is_he_fan_out_and_the_classifiers_001(arch):
    model = models.build(arch, 100)
    for name, link in named_links(model, L.Convolution2D).items():
        weights = link.W.array.astype(np.float64)
        expected = np.sqrt(2 / (link.ksize ** 2 * link.out_channels))
        assert abs(weights.std() / expected - 1) < 5 / np.sqrt(2 * weights.size), name
    weights = model.fc.W.array.astype(np.float64)
    assert abs(weights.std() / 0.01 - 1) < 5 / np.sqrt(2 * weights.size)
    assert not model.fc.b.array.any()


@pytest.mark.parametrize('arch, n', [('resnet8', 1), ('resnet20', 3)])
def test_gamma_is_zero_in_each_blocks_last_batch_normalization_and_one_elsewhere(arch, n):
    last = {f'/res{stage}/{block}/bn2' for stage in (2, 3, 4) for block in range(n)}
    bns = named_links(models.build(arch, 10), L.BatchNormalization)
    assert {name for name, bn in bns.items() if not bn.gamma.array.any()} == last
    assert all((bn.gamma.array == 1).all() for name, bn in bns.items() if name not in last)
    assert not any(bn.beta.array.any() for bn in bns.values())


@pytest.mark.parametrize('in_channels, stride', [(6, 1), (3, 2)])
def test_block_starts_as_the_relu_of_its_shortcut(in_channels, stride):
    block = BasicBlock(in_channels, 6, stride, np.random.RandomState(0))
    x = images(2, in_channels, 6, 6)
    np.testing.assert_array_equal(block(x).array, np.maximum(chainer.as_array(block.shortcut(x)), 0))


def test_block_adds_its_branch_to_its_shortcut():
    block = BasicBlock(4, 4, 1, np.random.RandomState(0))
    block.bn2.gamma.array[...] = 0.5
    x = images(2, 4, 6, 6)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))).array
    assert abs(branch).max() > 0.5
    np.testing.assert_allclose(block(x).array, np.maximum(x + branch, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('arch', SMALL)
def test_seed_alone_decides_the_weights(arch):
    first, second, other = (models.build(arch, 10, seed) for seed in (1, 1, 2))
    for (name, a), (_, b), (_, c) in zip(*(sorted(m.namedparams()) for m in (first, second, other))):
        np.testing.assert_array_equal(a.array, b.array, err_msg=name)
        assert not name.endswith('/W') or (a.array != c.array).any(), name


@pytest.mark.parametrize('arch', SMALL)
def test_gradient_reaches_every_parameter_after_one_step(arch):
    model = models.build(arch, 4)
    optimizer = chainer.optimizers.SGD(lr=0.1).setup(model)
    x = images(4, 3, 16, 16)
    for _ in range(2):
        model.cleargrads()
        F.softmax_cross_entropy(model(x), np.arange(4, dtype=np.int32)).backward()
        optimizer.update()
    assert [name for name, parameter in model.namedparams() if not parameter.grad.any()] == []


def test_learns_a_separable_task():
    model = models.build('resnet8', 2)
    optimizer = chainer.optimizers.MomentumSGD(lr=0.1).setup(model)
    x = images(16, 3, 16, 16)
    labels = np.arange(16, dtype=np.int32) % 2
    x[labels == 1, :, :8] += 1
    for _ in range(10):
        model.cleargrads()
        loss = F.softmax_cross_entropy(model(x), labels)
        loss.backward()
        optimizer.update()
    assert loss.array < 0.2


def test_save_npz_and_load_npz_restore_weights_and_statistics(tmp_path):
    saved = models.build('resnet8', 5, seed=0)
    saved(images(4, 3, 16, 16))
    chainer.serializers.save_npz(tmp_path / 'model.npz', saved)
    loaded = models.build('resnet8', 5, seed=1)
    chainer.serializers.load_npz(tmp_path / 'model.npz', loaded)
    x = images(2, 3, 16, 16, seed=1)
    with chainer.using_config('train', False):
        np.testing.assert_array_equal(loaded(x).array, saved(x).array)


def test_validation_normalizes_with_the_running_statistics():
    model = models.build('resnet8', 5)
    x = images(4, 3, 16, 16)
    with chainer.using_config('train', False):
        whole = model(x).array
        alone = model(x[:1]).array
    np.testing.assert_allclose(alone, whole[:1], rtol=1e-4, atol=1e-6)


def test_mixed16_computes_in_float16_and_normalizes_in_float32():
    reference = models.build('resnet8', 4)
    with chainer.using_config('dtype', chainer.mixed16):
        model = models.build('resnet8', 4)
        x = images(4, 3, 16, 16)
        logits = model(x)
        model.cleargrads()
        F.softmax_cross_entropy(F.cast(logits, np.float32), np.arange(4, dtype=np.int32)).backward()
    assert logits.dtype == np.float16
    for name, parameter in model.namedparams():
        expected = np.float32 if '/bn' in name else np.float16
        assert parameter.dtype == expected, name
        assert parameter.grad.dtype == expected and np.isfinite(parameter.grad).all(), name
    assert all(bn.avg_var.dtype == np.float32 for bn in named_links(model, L.BatchNormalization).values())
    np.testing.assert_allclose(logits.array, reference(x).array, atol=2e-3)


def test_weights_of_a_seed_are_the_published_ones():
    # Fixed forever: a run can be repeated. NumPy promises the numbers of its RandomState.
    model = models.build('resnet8', 10, seed=0)
    drawn = {'/conv1/W': [0.29400873, 0.06669287], '/res3/0/conv1/W': [0.05389446, 0.11341307],
             '/res4/0/shortcut/conv/W': [0.28917140, -0.23400761], '/fc/W': [0.00887797, -0.02212830]}
    params = dict(model.namedparams())
    for name, values in drawn.items():
        np.testing.assert_allclose(params[name].array.flat[:2], values, rtol=1e-5)
