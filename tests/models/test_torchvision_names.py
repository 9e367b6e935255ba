"""Names and shapes of torchvision 0.28's networks, as its state_dict lists them."""

import hashlib
import pathlib

from lib.checkpoint import state

import numpy as np
import pytest

import models
from models.torchvision_names import torchvision_names

RESNET50 = pathlib.Path(__file__).with_name('torchvision_resnet50.txt')
# SHA-256 of such a list, for the larger networks.
DIGESTS = {'resnet101': 'fd5470308c73dfe652cc18dc0b9a8968be588a03801b18090fe7b3e415267694',
           'resnet152': 'a21b3432af5a7a85ce7af1c12de8f95549a066f34ebcaf3b3c60fb7d0e0aaf6b'}


def listed(arch):
    """``name shape`` of each of our values, by torchvision's names and in its order."""
    values = state.model_values(models.build(arch, 1000))
    return ''.join(' '.join([theirs, *map(str, np.shape(values[ours]))]) + '\n'
                   for ours, theirs in torchvision_names(arch).items())


def test_resnet50_has_torchvisions_names_and_shapes():
    assert listed('resnet50') == RESNET50.read_text()


@pytest.mark.parametrize('arch', DIGESTS)
def test_deeper_networks_have_torchvisions_names_and_shapes(arch):
    assert hashlib.sha256(listed(arch).encode()).hexdigest() == DIGESTS[arch]


@pytest.mark.parametrize('arch', ['resnet50', 'resnet101', 'resnet152'])
def test_every_value_of_the_network_has_one_name(arch):
    names = torchvision_names(arch)
    assert set(names) | {'format'} == set(state.model_values(models.build(arch, 10)))
    assert len(set(names.values())) == len(names)
