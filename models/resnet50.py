"""ResNet-50, -101 and -152 as Goyal et al. 2017 train them (section 5.1).

They are the networks of He et al. 2016 as fb.resnet.torch builds them: a bottleneck's stride is on its 3x3
convolution, and a shortcut is a projection (1x1 convolution and batch normalization) where the shape changes,
the identity elsewhere. Convolutions have no bias. Every number of input channels is given, so all parameters
exist from construction on. :mod:`models.blocks` says how they are initialized.
"""

from lib.constants import INSIZE

import chainer
import chainer.functions as F

from models.blocks import ResidualNetwork, batch_normalization, classifier, convolution, shortcut, stage


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
        h = self.bn1(self.conv1(x), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        return self.bn3(self.conv3(h), residual=self.shortcut(x), relu=True)


class BottleneckResNet(ResidualNetwork):
    """Base of the three networks, which differ in their ``depths``.

    Args:
        n_class (int): Number of classes.
        rng (numpy.random.RandomState): Source of the initial weights; Chainer's global one if None.
    """

    insize = INSIZE
    min_insize = 32  # of which the last stage sees one pixel
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

    def _stem(self, x):
        return F.max_pooling_2d(super()._stem(x), 3, stride=2, pad=1, cover_all=False)


class ResNet50(BottleneckResNet):
    """The paper's network: 25,557,032 parameters for 1000 classes."""

    depths = (3, 4, 6, 3)


class ResNet101(BottleneckResNet):
    """44,549,160 parameters for 1000 classes."""

    depths = (3, 4, 23, 3)


class ResNet152(BottleneckResNet):
    """60,192,808 parameters for 1000 classes."""

    depths = (3, 8, 36, 3)
