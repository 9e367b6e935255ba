"""ResNet-50, -101 and -152 as Goyal et al. 2017 train them (section 5.1).

They are the networks of He et al. 2016 as fb.resnet.torch builds them: a bottleneck's stride is on its 3x3
convolution, and a shortcut is a projection (1x1 convolution and batch normalization) where the shape changes,
the identity elsewhere. Convolutions have no bias. Every number of input channels is given, so all parameters
exist from construction on.

Initialisation: convolutions are normal with variance 2 / (k * k * output channels) (He et al. 2015, fan-out),
the classifier's weight is N(0, 0.01) and its bias 0; gamma is 0 in the last batch normalization of each
block, which makes every block start as its shortcut, and 1 elsewhere; beta is 0.
"""

from lib import file_format
from lib.constants import BN_DECAY, BN_EPS, FC_STD, INSIZE

import chainer
import chainer.functions as F
import chainer.links as L
from chainer.initializers import HeNormal, Normal

from models.convolution import Convolution2D


def convolution(in_channels, out_channels, ksize, stride, rng):
    """A convolution without bias that divides the side by ``stride``, rounded up (odd ``ksize``)."""
    return Convolution2D(in_channels, out_channels, ksize, stride, pad=ksize // 2,
                         initialW=HeNormal(fan_option='fan_out', rng=rng))


def batch_normalization(channels, initial_gamma=1):
    """A batch normalization with the recipe's eps and decay of the moving averages."""
    return L.BatchNormalization(channels, decay=BN_DECAY, eps=BN_EPS, initial_gamma=initial_gamma)


def classifier(in_channels, n_class, rng):
    """The fully connected layer that gives the logits."""
    return L.Linear(in_channels, n_class, initialW=Normal(FC_STD, rng=rng))


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
    """The projection where the shape changes, the identity elsewhere."""
    if in_channels == out_channels and stride == 1:
        return F.identity
    return Projection(in_channels, out_channels, stride, rng)


class Stage(chainer.ChainList):
    """Blocks in a row, named in the order of execution (in a ``chainer.Sequential`` 7.8.1 they are not)."""

    def forward(self, x):
        for block in self:
            x = block(x)
        return x


def stage(block, n_blocks, in_channels, out_channels, stride, rng):
    """``n_blocks`` blocks in a row; the first one changes the number of channels and the side."""
    blocks = [block(in_channels, out_channels, stride, rng)]
    blocks += [block(out_channels, out_channels, 1, rng) for _ in range(n_blocks - 1)]
    return Stage(*blocks)


class Bottleneck(chainer.Chain):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the stride is on the 3x3 one."""

    expansion = 4

    def __init__(self, in_channels, out_channels, stride, rng):
        super().__init__()
        channels = out_channels // self.expansion
        with self.init_scope():
            self.conv1 = convolution(in_channels, channels, 1, 1, rng)
            self.bn1 = batch_normalization(channels)
            self.conv2 = convolution(channels, channels, 3, stride, rng)
            self.bn2 = batch_normalization(channels)
            self.conv3 = convolution(channels, out_channels, 1, 1, rng)
            self.bn3 = batch_normalization(out_channels, initial_gamma=0)
            self.shortcut = shortcut(in_channels, out_channels, stride, rng)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return F.relu(h + self.shortcut(x))


class BottleneckResNet(chainer.Chain):
    """Base of the three networks, which differ in their ``depths``.

    Args:
        n_class (int): Number of classes.
        rng (numpy.random.RandomState): Source of the initial weights; Chainer's global one if None.
    """

    insize = INSIZE
    depths = None  # bottlenecks per stage

    def __init__(self, n_class=1000, rng=None):
        super().__init__()
        with self.init_scope():
            self.conv1 = convolution(3, 64, 7, 2, rng)
            self.bn1 = batch_normalization(64)
            self.res2 = stage(Bottleneck, self.depths[0], 64, 256, 1, rng)
            self.res3 = stage(Bottleneck, self.depths[1], 256, 512, 2, rng)
            self.res4 = stage(Bottleneck, self.depths[2], 512, 1024, 2, rng)
            self.res5 = stage(Bottleneck, self.depths[3], 1024, 2048, 2, rng)
            self.fc = classifier(2048, n_class, rng)

    def forward(self, x):
        """Return the logits.

        Args:
            x: Normalized images, float32, (batch, 3, height, width); sides of 32 or more.

        Returns:
            chainer.Variable: (batch, n_class), of the parameters' dtype.
        """
        h = F.cast(x, self.conv1.W.dtype)
        h = F.relu(self.bn1(self.conv1(h)))
        h = F.max_pooling_2d(h, 3, stride=2, pad=1, cover_all=False)
        h = self.res5(self.res4(self.res3(self.res2(h))))
        return self.fc(F.average(h, axis=(2, 3)))

    def serialize(self, serializer):
        super().serialize(serializer)
        file_format.mark(serializer)


class ResNet50(BottleneckResNet):
    """The paper's network: 25,557,032 parameters for 1000 classes."""

    depths = (3, 4, 6, 3)


class ResNet101(BottleneckResNet):
    """44,549,160 parameters for 1000 classes."""

    depths = (3, 4, 23, 3)


class ResNet152(BottleneckResNet):
    """60,192,808 parameters for 1000 classes."""

    depths = (3, 8, 36, 3)
