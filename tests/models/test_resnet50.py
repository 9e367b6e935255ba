import itertools

from lib.errors import UserError

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import models
from models.resnet50 import Bottleneck, BottleneckResNet


@pytest.fixture(scope='module')
def network():
    """Tests that change weights or running statistics build their own."""
    return models.build('resnet50', 1000)


def named_links(model, kind):
    return {name: link for name, link in model.namedlinks() if isinstance(link, kind)}


def images(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


class Recorder(chainer.LinkHook):
    """Keeps the input and output arrays of the links it is given, by name."""

    name = 'Recorder'

    def __init__(self, **links):
        super().__init__()
        self.links = links
        self.inputs = {}
        self.outputs = {}

    def forward_postprocess(self, args):
        for name, link in self.links.items():
            if args.link is link:
                self.inputs[name] = args.args[0].array
                self.outputs[name] = args.out.array


# Size

@pytest.mark.parametrize('arch, parameters, tensors, layers, statistics', [
    ('resnet50', 25557032, 161, 53, 53120),
    ('resnet101', 44549160, 314, 104, 105344),
    ('resnet152', 60192808, 467, 155, 151424),
])
def test_parameters_and_statistics_are_as_many_as_published(arch, parameters, tensors, layers, statistics):
    model = models.build(arch, 1000)
    bns = named_links(model, L.BatchNormalization).values()
    assert model.count_params() == parameters
    assert len(list(model.params())) == tensors
    assert len(bns) == layers
    assert sum(bn.avg_mean.size + bn.avg_var.size for bn in bns) == statistics


def test_every_parameter_exists_before_the_first_image(network):
    assert all(parameter.is_initialized for parameter in network.params())


def test_convolutions_have_no_bias(network):
    assert all(link.b is None for link in named_links(network, L.Convolution2D).values())


def test_number_of_classes_sets_the_classifier_alone():
    model = models.ResNet50(n_class=7)
    assert model.fc.W.shape == (7, 2048)
    assert model.fc.b.shape == (7,)
    assert model.count_params() == 25557032 - 993 * 2049


def test_batch_normalization_links_keep_chainers_persistent_values(network):
    for bn in named_links(network, L.BatchNormalization).values():
        assert bn._persistent == {'avg_mean', 'avg_var', 'N'}
        assert bn.eps == 1e-5
        assert bn.decay == 0.9


# Geometry

def test_stride_is_on_the_3x3_convolution_and_the_projection_of_each_later_stages_first_block(network):
    strided = {name: link.ksize for name, link in named_links(network, L.Convolution2D).items()
               if link.stride == (2, 2)}
    assert strided == {
        '/conv1': 7,
        '/res3/0/conv2': 3, '/res3/0/shortcut/conv': 1,
        '/res4/0/conv2': 3, '/res4/0/shortcut/conv': 1,
        '/res5/0/conv2': 3, '/res5/0/shortcut/conv': 1,
    }
    assert all(link.stride in ((1, 1), (2, 2)) for link in named_links(network, L.Convolution2D).values())


def test_shortcut_is_a_projection_in_each_stages_first_block_alone(network):
    projections = [name for name in named_links(network, L.Convolution2D) if 'shortcut' in name]
    assert projections == [f'/res{i}/0/shortcut/conv' for i in (2, 3, 4, 5)]


def test_stages_of_a_224_image_have_the_published_shapes(network):
    recorder = Recorder(stem=network.bn1, res2=network.res2, res3=network.res3, res4=network.res4,
                        res5=network.res5)
    with chainer.using_config('train', False), chainer.no_backprop_mode(), recorder:
        logits = network(images(1, 3, network.insize, network.insize))
    assert {name: array.shape[1:] for name, array in recorder.outputs.items()} == {
        'stem': (64, 112, 112), 'res2': (256, 56, 56), 'res3': (512, 28, 28), 'res4': (1024, 14, 14),
        'res5': (2048, 7, 7),
    }
    assert recorder.inputs['res2'].shape == (1, 64, 56, 56)
    assert logits.shape == (1, 1000)
    assert logits.dtype == np.float32


def test_stem_pools_the_largest_of_3x3_windows_centered_on_every_other_pixel(network):
    recorder = Recorder(bn1=network.bn1, res2=network.res2)
    with chainer.using_config('train', False), chainer.no_backprop_mode(), recorder:
        network(images(2, 3, 60, 44))
    stem = recorder.outputs['bn1']
    pooled = recorder.inputs['res2']
    assert stem.shape == (2, 64, 30, 22)
    assert pooled.shape == (2, 64, 15, 11)
    for row, column in itertools.product(range(15), range(11)):
        window = stem[:, :, max(2 * row - 1, 0):2 * row + 2, max(2 * column - 1, 0):2 * column + 2]
        np.testing.assert_array_equal(pooled[:, :, row, column], np.maximum(window.max(axis=(2, 3)), 0))


def test_logits_are_the_classifier_of_the_mean_over_all_positions(network):
    recorder = Recorder(res5=network.res5)
    with chainer.using_config('train', False), chainer.no_backprop_mode(), recorder:
        logits = network(images(2, 3, 64, 96))
    features = recorder.outputs['res5'].astype(np.float64)
    assert features.shape == (2, 2048, 2, 3)
    expected = features.mean(axis=(2, 3)) @ network.fc.W.array.T.astype(np.float64)
    np.testing.assert_allclose(logits.array, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('height, width', [(32, 32), (33, 47)])
def test_any_side_of_32_or_more_gives_logits(network, height, width):
    assert network.min_insize == 32
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        assert network(images(1, 3, height, width)).shape == (1, 1000)


# Initialization

def test_convolution_weights_have_the_fan_out_he_standard_deviation(network):
    for name, link in named_links(network, L.Convolution2D).items():
        weights = link.W.array.astype(np.float64)
        expected = np.sqrt(2 / (link.ksize ** 2 * link.out_channels))
        # The standard error of a sample standard deviation is std / sqrt(2 n), of a mean std / sqrt(n).
        assert abs(weights.std() / expected - 1) < 5 / np.sqrt(2 * weights.size), name
        assert abs(weights.mean() / expected) < 5 / np.sqrt(weights.size), name


def test_classifier_starts_as_normal_of_standard_deviation_001_without_bias(network):
    weights = network.fc.W.array.astype(np.float64)
    assert abs(weights.std() / 0.01 - 1) < 5 / np.sqrt(2 * weights.size)
    assert abs(weights.mean() / 0.01) < 5 / np.sqrt(weights.size)
    assert not network.fc.b.array.any()


def test_gamma_is_zero_in_each_blocks_last_batch_normalization_and_one_elsewhere(network):
    last = {f'/res{stage}/{block}/bn3' for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3))
            for block in range(blocks)}
    bns = named_links(network, L.BatchNormalization)
    assert {name for name, bn in bns.items() if not bn.gamma.array.any()} == last
    assert all((bn.gamma.array == 1).all() for name, bn in bns.items() if name not in last)
    assert not any(bn.beta.array.any() for bn in bns.values())


@pytest.mark.parametrize('in_channels, stride', [(16, 1), (8, 2)])
def test_block_starts_as_the_relu_of_its_shortcut(in_channels, stride):
    block = Bottleneck(in_channels, 16, stride, np.random.RandomState(0))
    x = images(2, in_channels, 6, 6)
    np.testing.assert_array_equal(block(x).array, np.maximum(chainer.as_array(block.shortcut(x)), 0))


def test_same_seed_gives_the_same_weights_whatever_the_global_generator_did(network):
    np.random.standard_normal(5)
    state = np.random.get_state()[1].copy()
    second = models.build('resnet50', 1000)
    assert (np.random.get_state()[1] == state).all()
    for (name, a), (_, b) in zip(sorted(network.namedparams()), sorted(second.namedparams())):
        np.testing.assert_array_equal(a.array, b.array, err_msg=name)


def test_weights_of_a_seed_are_numpys_frozen_stream(network):
    # The first standard normals of RandomState(0), which NumPy keeps forever; the fan-out is 7 * 7 * 64.
    expected = np.array([1.764052345967664, 0.4001572083672233, 0.9787379841057392]) * np.sqrt(2 / 3136)
    np.testing.assert_allclose(network.conv1.W.array[0, 0, 0, :3], expected, rtol=1e-6)


def test_other_seed_gives_other_weights(network):
    other = models.build('resnet50', 1000, seed=1)
    for name, parameter in other.namedparams():
        if name.endswith('/W'):
            assert (parameter.array != dict(network.namedparams())[name].array).mean() > 0.99, name


def test_without_a_generator_the_weights_come_from_numpys_global_one():
    state = np.random.get_state()
    try:
        np.random.seed(5)
        first = models.ResNet50(10).conv1.W.array
        np.random.seed(5)
        expected = np.random.normal(0, np.sqrt(2 / 3136), first.shape).astype(np.float32)
    finally:
        np.random.set_state(state)
    np.testing.assert_array_equal(first, expected)


# Mathematics

def convolution_float64(x, w, stride):
    pad = w.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height = (x.shape[2] - w.shape[2]) // stride + 1
    width = (x.shape[3] - w.shape[3]) // stride + 1
    y = np.zeros((len(x), len(w), height, width))
    for n, o, i, j in np.ndindex(y.shape):
        window = x[n, :, i * stride:i * stride + w.shape[2], j * stride:j * stride + w.shape[3]]
        y[n, o, i, j] = (window * w[o]).sum()
    return y


def normalization_float64(x, bn, train):
    mean = x.mean(axis=(0, 2, 3)) if train else bn.avg_mean.astype(np.float64)
    var = ((x - mean[:, None, None]) ** 2).mean(axis=(0, 2, 3)) if train else bn.avg_var.astype(np.float64)
    x_hat = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    return bn.gamma.array[:, None, None] * x_hat + bn.beta.array[:, None, None]


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('in_channels, stride', [(8, 1), (8, 2), (4, 1)])
def test_bottleneck_equals_its_definition_in_float64(in_channels, stride, train):
    rng = np.random.RandomState(1)
    block = Bottleneck(in_channels, 8, stride, rng)
    for bn in named_links(block, L.BatchNormalization).values():
        bn.gamma.array[...] = rng.uniform(0.5, 2, bn.gamma.shape)
        bn.beta.array[...] = rng.uniform(-1, 1, bn.beta.shape)
        bn.avg_mean[...] = rng.uniform(-1, 1, bn.avg_mean.shape)
        bn.avg_var[...] = rng.uniform(0.5, 2, bn.avg_var.shape)
    x = images(2, in_channels, 5, 5)

    def branch(h, conv, bn, stride=1):
        h = convolution_float64(h, conv.W.array.astype(np.float64), stride)
        return normalization_float64(h, bn, train)

    x64 = x.astype(np.float64)
    h = np.maximum(branch(x64, block.conv1, block.bn1), 0)
    h = np.maximum(branch(h, block.conv2, block.bn2, stride), 0)
    h = branch(h, block.conv3, block.bn3)
    changes_shape = stride != 1 or in_channels != 8
    h += branch(x64, block.shortcut.conv, block.shortcut.bn, stride) if changes_shape else x64
    with chainer.using_config('train', train):
        np.testing.assert_allclose(block(x).array, np.maximum(h, 0), rtol=1e-4, atol=1e-4)


def test_gradient_reaches_every_parameter_after_one_step():
    model = models.build('resnet50', 4)
    optimizer = chainer.optimizers.SGD(lr=0.1).setup(model)
    x = images(4, 3, 32, 32)

    def backward():
        model.cleargrads()
        F.softmax_cross_entropy(model(x), np.arange(4, dtype=np.int32)).backward()

    backward()
    # gamma = 0 keeps the first gradient out of the branches' convolutions.
    assert not model.res3[1].conv2.W.grad.any()
    optimizer.update()
    backward()
    assert [name for name, parameter in model.namedparams() if not parameter.grad.any()] == []


# Persistence and switches

def test_save_npz_and_load_npz_restore_weights_and_statistics(tmp_path):
    class Shallow(BottleneckResNet):
        depths = (1, 2, 1, 1)

    saved, loaded = Shallow(5), Shallow(5)
    for bn in named_links(saved, L.BatchNormalization).values():
        bn.avg_mean += 0.5
        bn.avg_var *= 2
    chainer.serializers.save_npz(tmp_path / 'model.npz', saved, compression=False)
    chainer.serializers.load_npz(tmp_path / 'model.npz', loaded)
    x = images(1, 3, 32, 32)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        np.testing.assert_array_equal(loaded(x).array, saved(x).array)
    for name, bn in named_links(loaded, L.BatchNormalization).items():
        assert (bn.avg_mean == 0.5).all() and (bn.avg_var == 2).all(), name


def test_decay_zero_keeps_the_statistics_of_the_last_minibatch():
    model = models.build('resnet8', 4)
    models.set_batch_normalization_decay(model, 0.0)
    bns = {name.replace('/', '_'): link for name, link in named_links(model, L.BatchNormalization).items()}
    model(images(4, 3, 16, 16, seed=0))
    with Recorder(**bns) as recorder:
        model(images(4, 3, 16, 16, seed=1))
    assert len(recorder.inputs) == 9
    for name, bn in bns.items():
        x = recorder.inputs[name].astype(np.float64)
        np.testing.assert_allclose(bn.avg_mean, x.mean(axis=(0, 2, 3)), atol=1e-5, err_msg=name)
        np.testing.assert_allclose(bn.avg_var, x.var(axis=(0, 2, 3), ddof=1), rtol=1e-4, err_msg=name)


def test_decay_is_set_on_every_batch_normalization():
    model = models.build('resnet20', 4)
    models.set_batch_normalization_decay(model, 0.25)
    assert {bn.decay for bn in named_links(model, L.BatchNormalization).values()} == {0.25}


def test_unknown_architecture_is_the_users_error():
    with pytest.raises(UserError, match='resnet18.*resnet50'):
        models.build('resnet18', 10)
