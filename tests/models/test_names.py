"""Names of parameters against what the networks compute."""

import lib  # noqa: F401  (makes Chainer importable)

import chainer
import numpy as np
import pytest

import models
from models.resnet50 import Bottleneck
from models.small_resnet import BasicBlock

# Blocks of each stage, from res2 on.
DEPTHS = {
    'resnet8': (1, 1, 1),
    'resnet20': (3, 3, 3),
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
    'resnet152': (3, 8, 36, 3),
}


class Executed(chainer.LinkHook):
    """Records the blocks in the order in which they run."""

    name = 'Executed'

    def __init__(self):
        super().__init__()
        self.blocks = []

    def forward_preprocess(self, args):
        if isinstance(args.link, (Bottleneck, BasicBlock)):
            self.blocks.append(args.link)


def normalization(values, name, x):
    mean, var, gamma, beta = (values[f'{name}/{value}'].astype(np.float64)[:, None, None]
                              for value in ('avg_mean', 'avg_var', 'gamma', 'beta'))
    return gamma * (x - mean) / np.sqrt(var + 1e-5) + beta


def convolution(values, name, x, stride):
    w = values[f'{name}/W'].astype(np.float64)
    pad = w.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.tensordot(windows, w, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def logits_float64(arch, values, x):
    """The networks of He et al. and Goyal et al., written down from their descriptions, in float64.

    Args:
        arch (str): Name of the network.
        values (dict of str to numpy.ndarray): Parameters and statistics.
        x (numpy.ndarray): Images.
    """
    bottleneck = len(DEPTHS[arch]) == 4
    convolutions = ('1', '2', '3') if bottleneck else ('1', '2')
    strided = '2' if bottleneck else '1'  # of a block's convolutions
    h = np.maximum(normalization(values, 'bn1', convolution(values, 'conv1', x.astype(np.float64),
                                                            2 if bottleneck else 1)), 0)
    if bottleneck:
        h = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))  # zeros do, after a ReLU
        h = np.lib.stride_tricks.sliding_window_view(h, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
    for stage, depth in enumerate(DEPTHS[arch], 2):
        for block in range(depth):
            name = f'res{stage}/{block}'
            stride = 2 if stage > 2 and block == 0 else 1
            skip, branch = h, h
            for number in convolutions:
                branch = convolution(values, f'{name}/conv{number}', branch,
                                     stride if number == strided else 1)
                branch = normalization(values, f'{name}/bn{number}', branch)
                if number != convolutions[-1]:
                    branch = np.maximum(branch, 0)
            if f'{name}/shortcut/conv/W' in values:
                skip = normalization(values, f'{name}/shortcut/bn',
                                     convolution(values, f'{name}/shortcut/conv', h, stride))
            h = np.maximum(branch + skip, 0)
    return h.mean(axis=(2, 3)) @ values['fc/W'].astype(np.float64).T + values['fc/b'].astype(np.float64)


@pytest.mark.parametrize('arch', DEPTHS)
def test_blocks_are_named_in_the_order_of_execution_and_logits_follow_from_the_names(arch):
    model = models.build(arch, 5)
    values = chainer.serializers.npz.serialize(model)  # shares the arrays
    rng = np.random.RandomState(1)
    for name in sorted(values):
        value = name.rpartition('/')[2]
        if value in ('gamma', 'avg_var'):  # as initialized, gamma is 0 where branches end: any order would do
            values[name][...] = rng.uniform(0.5, 1.5, values[name].shape)
        elif value in ('beta', 'avg_mean', 'b'):
            values[name][...] = rng.uniform(-0.5, 0.5, values[name].shape)
    x = rng.standard_normal((2, 3, 32, 32)).astype(np.float32)
    with chainer.using_config('train', False), chainer.no_backprop_mode(), Executed() as executed:
        logits = model(x).array
    paths = {id(link): path for path, link in model.namedlinks()}
    assert [paths[id(block)] for block in executed.blocks] == [
        f'/res{stage}/{block}' for stage, depth in enumerate(DEPTHS[arch], 2) for block in range(depth)]
    expected = logits_float64(arch, values, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
