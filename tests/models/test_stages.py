"""Forward and backward stage by stage, and the parts in which gradients travel."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

import models
from models import stages

# Parameters of ResNet-50's stem, res2 to res5, and classifier.
RESNET50 = (9536, 215808, 1219584, 7098368, 14964736, 2049000)
NETWORKS = ['resnet8', 'resnet20']


@pytest.mark.parametrize('processes, expected', [
    (2, ((5, 4), (3,), (2, 1, 0))), (512, ((5, 4), (3,), (2, 1, 0))), (1024, ((5, 4), (3, 2, 1, 0))),
    (8192, ((5, 4, 3, 2, 1, 0),))])
def test_large_parts_fewer_with_more_processes(processes, expected):
    assert stages.parts(RESNET50, processes) == expected


def test_a_small_network_travels_as_one():
    assert stages.parts((100, 200, 300), 2) == ((2, 1, 0),)


@pytest.mark.parametrize('arch', models.ARCHITECTURES)
def test_every_parameter_belongs_to_one_stage(arch):
    model = models.build(arch, 7)
    listed = [item for params in stages.parameters(model) for item in params]
    assert len(listed) == len(dict(listed))
    assert dict(listed) == dict(model.namedparams())


def loss_of(y):
    loss = F.sum(F.cast(y, 'float32') ** 2)
    loss.grad = np.array(3, np.float32)
    return loss


def make(arch, dtype):
    with chainer.using_config('dtype', chainer.mixed16 if dtype == 'mixed16' else np.dtype(dtype)):
        return models.build(arch, 5)


def images(model):
    return np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(model.conv1.W.dtype)


@pytest.mark.parametrize('dtype', ['float32', 'mixed16'])
@pytest.mark.parametrize('arch', NETWORKS)
def test_gradients_have_the_bits_of_a_whole_backward_pass(arch, dtype):
    whole, cut = make(arch, dtype), make(arch, dtype)
    whole.cleargrads()
    loss_of(whole(images(whole))).backward()
    cut.cleargrads()
    y, cuts = stages.forward(cut, images(cut))
    for _ in stages.backward(loss_of(y), cuts):
        pass
    for (name, expected), (_, got) in zip(sorted(whole.namedparams()), sorted(cut.namedparams())):
        assert got.grad.tobytes() == expected.grad.tobytes(), name
    for (name, expected), (_, got) in zip(sorted(whole.namedlinks()), sorted(cut.namedlinks())):
        for statistics in ('avg_mean', 'avg_var'):
            if hasattr(expected, statistics):
                assert getattr(got, statistics).tobytes() == getattr(expected, statistics).tobytes(), name


@pytest.mark.parametrize('arch', NETWORKS)
def test_a_stage_has_its_gradients_when_it_is_yielded_and_earlier_ones_have_none(arch):
    model = models.build(arch, 5)
    model.cleargrads()
    y, cuts = stages.forward(model, images(model))
    params, seen = stages.parameters(model), []
    for stage in stages.backward(loss_of(y), cuts):
        seen.append(stage)
        assert all(param.grad is not None for _, param in params[stage])
        assert all(param.grad is None for earlier in params[:stage] for _, param in earlier)
    assert seen == list(reversed(range(len(params))))
