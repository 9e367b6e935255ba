"""Networks: float32 images (batch, 3, height, width) in, logits (batch, n_class) out.

``build`` makes one by its name; ``insize`` is the side of the images each is meant for.
"""

from lib.errors import UserError

import chainer.links as L
import numpy as np

from models.resnet50 import ResNet50, ResNet101, ResNet152
from models.small_resnet import ResNet8, ResNet20

ARCHITECTURES = {
    'resnet8': ResNet8,
    'resnet20': ResNet20,
    'resnet50': ResNet50,
    'resnet101': ResNet101,
    'resnet152': ResNet152,
}


def build(arch, n_class, seed=0):
    """Return a new network whose initial weights depend on nothing but the arguments and Chainer's dtype.

    Raises:
        UserError: No architecture is called ``arch``.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f'unknown architecture {arch!r}; choose one of {", ".join(ARCHITECTURES)}')
    # RandomState, not Generator: its streams are the same in every version of NumPy.
    return ARCHITECTURES[arch](n_class, rng=np.random.RandomState(seed))


def name_of(model):
    """Return the name by which ``build`` makes a network like ``model``."""
    return next(name for name, network in ARCHITECTURES.items() if type(model) is network)


def set_batch_normalization_decay(model, decay):
    """Set the decay of all running statistics of ``model``; 0 makes them those of the last minibatch."""
    for link in model.links():
        if isinstance(link, L.BatchNormalization):
            link.decay = decay
