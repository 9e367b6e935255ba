"""Weights to torchvision's names and back; against a network written in torch where that is installed."""

import json
import os
import sys
import types

from lib import convert
from lib.checkpoint import state, weights
from lib.errors import UserError

import chainer
import numpy as np
import pytest

import models
from models.torchvision_names import torchvision_names

DESCRIPTION = {'arch': 'resnet50', 'insize': 64, 'dtype': 'float32', 'n_class': 3,
               'classes': ['ant', 'b\udcffe', 'cat'], 'image_mean': [0.485, 0.456, 0.406],
               'image_std': [0.229, 0.224, 0.225], 'val_batchsize': 7}


@pytest.fixture(scope='module')
def model():
    """A ResNet-50 whose every value is drawn, so that none can take another's place."""
    network, bits = models.build('resnet50', 3), np.random.RandomState(0)
    for name, value in sorted(state.model_values(network).items()):
        if name.endswith(('/gamma', '/beta', '/avg_mean', '/avg_var')):
            value = getattr(value, 'array', value)
            value[...] = bits.uniform(0.5, 1.5, value.shape)
    return network


@pytest.fixture(scope='module')
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'model.npz'
    weights.save(path, model, DESCRIPTION)
    return path


def same(arrays, others):
    return arrays.keys() == others.keys() and all(
        np.array_equal(arrays[name], others[name]) for name in arrays)


def run(*words):
    return convert.main([*map(str, words)])


@pytest.mark.parametrize('suffix, package', [
    ('safetensors', 'safetensors'), ('SafeTensors', 'safetensors'), ('pth', 'torch')])
def test_there_and_back_gives_the_same_weights(file, tmp_path, suffix, package):
    pytest.importorskip(package)
    there, back = tmp_path / f'resnet50.{suffix}', tmp_path / 'back.npz'
    assert run(file, there) == run(there, back) == 0
    assert same(weights.read(back).arrays, weights.read(file).arrays)
    told = weights.read(back).description
    assert told['arch'] == 'resnet50' and told['n_class'] == 3
    if package == 'safetensors':
        assert told == DESCRIPTION
    assert sorted(os.listdir(tmp_path)) == sorted([there.name, back.name])


def test_every_value_takes_torchvisions_name_with_it(model):
    arrays, values = convert.to_torchvision(model, 'resnet50'), state.model_values(model)
    assert arrays['layer3.5.bn2.running_var'] is not None
    for ours, theirs in torchvision_names('resnet50').items():
        np.testing.assert_array_equal(arrays[theirs], getattr(values[ours], 'array', values[ours]))
        assert arrays[theirs].dtype == (np.int64 if theirs.endswith('.num_batches_tracked') else np.float32)


def test_older_files_of_torchvision_lack_the_counts_of_minibatches(model):
    arrays = convert.to_torchvision(model, 'resnet50')
    older = {name: array for name, array in arrays.items() if not name.endswith('num_batches_tracked')}
    assert same(convert.from_torchvision('a', older).arrays, convert.from_torchvision('a', arrays).arrays)


@pytest.mark.parametrize('arch', ['resnet50', 'resnet101', 'resnet152'])
def test_the_depth_is_told_by_the_names(arch):
    arrays = dict.fromkeys(torchvision_names(arch).values(), np.zeros(()))
    assert convert.from_torchvision('a', arrays).description == {'arch': arch}


@pytest.mark.parametrize('change', [lambda a: a.pop('layer2.0.downsample.0.weight'),
                                    lambda a: a.update({'layer1.0.se.weight': np.zeros(1)})])
def test_other_networks_are_refused(model, change):
    arrays = convert.to_torchvision(model, 'resnet50')
    change(arrays)
    with pytest.raises(UserError, match="a.pth: not torchvision's resnet50, resnet101, resnet152"):
        convert.from_torchvision('a.pth', arrays)


def test_the_names_of_a_wider_network_with_its_shapes_are_refused(model, tmp_path, capsys):
    numpy = pytest.importorskip('safetensors.numpy')
    arrays = convert.to_torchvision(model, 'resnet50')
    arrays['layer1.0.conv2.weight'] = np.zeros((128, 4, 3, 3), np.float32)  # ResNeXt-50's
    numpy.save_file(arrays, tmp_path / 'resnext50.safetensors')
    assert run(tmp_path / 'resnext50.safetensors', tmp_path / 'model.npz') == 2
    assert 'res2/0/conv2/W has shape (64, 64, 3, 3)' in capsys.readouterr().err
    assert not (tmp_path / 'model.npz').exists()


def test_small_networks_are_none_of_torchvisions(tmp_path, capsys):
    weights.save(tmp_path / 'model.npz', models.build('resnet8', 3), {**DESCRIPTION, 'arch': 'resnet8'})
    pytest.importorskip('safetensors')
    assert run(tmp_path / 'model.npz', tmp_path / 'a.safetensors') == 2
    assert 'weights of resnet8, which torchvision does not have' in capsys.readouterr().err


def test_weights_that_tell_nothing_are_told_and_named_as_today(model, tmp_path, capsys):
    chainer.serializers.save_npz(tmp_path / 'old.npz', model)
    assert run(tmp_path / 'old.npz', tmp_path / 'new.npz') == 2
    assert '--arch' in capsys.readouterr().err
    assert run(tmp_path / 'old.npz', tmp_path / 'new.npz', '--arch', 'resnet50') == 0
    assert same(weights.read(tmp_path / 'new.npz').arrays, weights.read(tmp_path / 'old.npz').arrays)
    assert weights.read(tmp_path / 'new.npz').description['arch'] == 'resnet50'


@pytest.mark.parametrize('source, destination, message', [
    ('{file}', '{tmp}/model.onnx', 'expected a name that ends in .npz, .pth, .safetensors'),
    ('{tmp}/missing.npz', '{tmp}/a.npz', 'missing.npz'),
    ('{file}', '/dev/null/a.npz', '/dev/null/a.npz: cannot be written')])
def test_what_cannot_be_converted_is_said_on_one_line(file, tmp_path, capsys, source, destination, message):
    assert run(source.format(file=file, tmp=tmp_path), destination.format(tmp=tmp_path)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


@pytest.mark.parametrize('suffix, package', [('safetensors', 'safetensors'), ('pth', 'torch')])
def test_damaged_and_missing_files_are_said_on_one_line(tmp_path, capsys, suffix, package):
    pytest.importorskip(package)
    (tmp_path / f'text.{suffix}').write_text('no tensors')
    for name in (f'text.{suffix}', f'missing.{suffix}'):
        assert run(tmp_path / name, tmp_path / 'a.npz') == 2
        error = capsys.readouterr().err
        assert name in error and error.count('\n') == 1


@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
def test_what_is_no_regular_file_is_given_to_no_package(tmp_path, capsys, monkeypatch, suffix, special_file):
    package = types.SimpleNamespace(safe_open=lambda *_, **__: pytest.fail('opened'),
                                    load=lambda *_, **__: pytest.fail('opened'))
    monkeypatch.setitem(sys.modules, {'safetensors': 'safetensors', 'pth': 'torch'}[suffix], package)
    special_file(tmp_path / f'a.{suffix}')
    assert run(tmp_path / f'a.{suffix}', tmp_path / 'a.npz') == 2
    error = capsys.readouterr().err
    assert f'a.{suffix}: not ' in error and '(not a regular file)' in error and error.count('\n') == 1


@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
def test_a_package_that_is_missing_is_named_with_the_extra(file, tmp_path, capsys, monkeypatch, suffix):
    for name in ('safetensors', 'safetensors.numpy', 'torch'):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(file, tmp_path / f'a.{suffix}') == 2
    assert 'is not installed; install the extra "convert"' in capsys.readouterr().err


def test_half_precision_weights_become_float32_for_torchvision_and_come_back(tmp_path):
    pytest.importorskip('safetensors')
    before = chainer.global_config.dtype
    description = {**DESCRIPTION, 'dtype': 'mixed16'}
    try:
        half = weights.build(description)
        weights.save(tmp_path / 'half.npz', half, description)
        assert run(tmp_path / 'half.npz', tmp_path / 'a.safetensors') == 0
        assert run(tmp_path / 'a.safetensors', tmp_path / 'back.npz') == 0
        assert weights.read(tmp_path / 'back.npz').arrays['fc/W'].dtype == np.float16
        assert same(weights.read(tmp_path / 'back.npz').arrays, weights.read(tmp_path / 'half.npz').arrays)
    finally:
        chainer.global_config.dtype = before


def torch_resnet50(torch, n_class):
    """torchvision's ResNet-50, written from its public names (the stride is on the 3x3 convolution)."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, in_channels, channels, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * channels)
            self.downsample = None
            if stride > 1 or in_channels != 4 * channels:
                self.downsample = nn.Sequential(nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False),
                                                nn.BatchNorm2d(4 * channels))

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            shortcut = x if self.downsample is None else self.downsample(x)
            return torch.relu(self.bn3(self.conv3(y)) + shortcut)

    class ResNet50(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            inputs = 64
            for stage, depth in enumerate((3, 4, 6, 3)):
                channels, blocks = 64 << stage, []
                for block in range(depth):
                    blocks.append(Block(inputs, channels, 2 if stage and not block else 1))
                    inputs = 4 * channels
                setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
            self.fc = nn.Linear(2048, n_class)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))

    return ResNet50()


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_torch_gives_the_same_logits(model, file, tmp_path, suffix):
    torch = pytest.importorskip('torch')
    path = tmp_path / f'resnet50.{suffix}'
    assert run(file, path) == 0
    saved = torch.load(path) if suffix == 'pth' else pytest.importorskip('safetensors.torch').load_file(path)
    network = torch_resnet50(torch, 3)
    network.load_state_dict(saved)  # strict: no name is missing or left over
    network.eval()
    images = np.random.RandomState(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(images)).numpy()
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        ours = model(images).array
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * abs(theirs).max())


def test_torchs_running_variance_is_chainers():
    """Both keep the unbiased variance m/(m-1) of a minibatch, so that it moves without a factor."""
    torch = pytest.importorskip('torch')
    x = np.random.RandomState(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
    ours = chainer.links.BatchNormalization(3, decay=0)
    theirs = torch.nn.BatchNorm2d(3, momentum=1)
    with chainer.using_config('train', True):
        ours(x)
    theirs(torch.from_numpy(x))
    np.testing.assert_allclose(ours.avg_var, theirs.running_var.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.avg_var, x.transpose(1, 0, 2, 3).reshape(3, -1).var(1, ddof=1), rtol=1e-6)


def test_the_description_is_read_from_the_file_by_anybody(file, tmp_path):
    safetensors = pytest.importorskip('safetensors')
    assert run(file, tmp_path / 'a.safetensors') == 0
    with safetensors.safe_open(tmp_path / 'a.safetensors', framework='numpy') as opened:
        assert json.loads(opened.metadata()['description']) == DESCRIPTION
