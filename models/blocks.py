"""What the networks have in common, with the initialization of Goyal et al. 2017 (section 5.1).

Convolutions, which have no bias, are normal with variance 2 / (k * k * output channels) (He et al. 2015,
fan-out), the classifier's weight is N(0, 0.01) and its bias 0; gamma is 0 in the last batch normalization of
each block, which makes every block start as its shortcut, and 1 elsewhere; beta is 0.
"""

from lib.constants import BN_DECAY, BN_EPS, FC_STD

import chainer
import chainer.functions as F
from chainer.initializers import HeNormal, Normal

from models import file_format
from models.batch_normalization import BatchNormalization
from models.convolution import Convolution2D
from models.linear import Linear


def convolution(in_channels, out_channels, ksize, stride, rng):
    """Make a convolution without bias that divides the side by ``stride``, rounded up (odd ``ksize``)."""
    return Convolution2D(in_channels, out_channels, ksize, stride, pad=ksize // 2,
                         initialW=HeNormal(fan_option='fan_out', rng=rng))


def batch_normalization(channels, initial_gamma=1):
    """Make a batch normalization with the recipe's eps and decay of the moving averages."""
    return BatchNormalization(channels, decay=BN_DECAY, eps=BN_EPS, initial_gamma=initial_gamma)


def classifier(in_channels, n_class, rng):
    """Make the fully connected layer that gives the logits."""
    return Linear(in_channels, n_class, initialW=Normal(FC_STD, rng=rng))


class Projection(chainer.Chain):
    """The shortcut where a block changes the shape: 1x1 convolution and batch normalization."""

    def __init__(self, in_channels, out_channels, stride, rng):
        super().__init__()
        with self.init_scope():
            self.conv = convolution(in_channels, out_channels, 1, stride, rng)
            self.bn = batch_normalization(out_channels)

    def forward(self, x):
        return self.bn(self.conv(x))


def shortcut(in_channels, out_channels, stride, rng):
    """Make the projection where the shape changes, the identity elsewhere."""
    if in_channels == out_channels and stride == 1:
        return lambda x: x  # Chainer's function would be one more to walk through
    return Projection(in_channels, out_channels, stride, rng)


class Stage(chainer.ChainList):
    """Blocks in a row, named in the order of execution (in a ``chainer.Sequential`` 7.8.1 they are not)."""

    def forward(self, x):
        for block in self:
            x = block(x)
        return x


def stage(block, n_blocks, in_channels, out_channels, stride, rng):
    """Make ``n_blocks`` blocks in a row; the first one changes the number of channels and the side."""
    blocks = [block(in_channels, out_channels, stride, rng)]
    blocks += [block(out_channels, out_channels, 1, rng) for _ in range(n_blocks - 1)]
    return Stage(*blocks)


class ResidualNetwork(chainer.Chain):
    """Base of the networks: ``conv1`` and ``bn1``, stages ``res2`` and on, ``fc`` on the mean over pixels."""

    @property
    def stages(self):
        """Steps of the network, first to last: pairs of a function of one variable and its links."""
        later = [link for link in self.children() if link.name.startswith('res')]
        return ((self._stem, (self.conv1, self.bn1)), *((link, (link,)) for link in later),
                (self._head, (self.fc,)))

    def forward(self, x):
        """Return the logits.

        Args:
            x: Normalized images, float32, (batch, 3, height, width); sides of ``min_insize`` or more.

        Returns:
            chainer.Variable: (batch, n_class), of the parameters' dtype.
        """
        for step, _ in self.stages:
            x = step(x)
        return x

    def _stem(self, x):
        return self.bn1(self.conv1(F.cast(x, self.conv1.W.dtype)), relu=True)

    def _head(self, h):
        return self.fc(F.average(h, axis=(2, 3)))

    def serialize(self, serializer):
        super().serialize(serializer)
        file_format.mark(serializer)
