"""ResNet-8 and ResNet-20, for images of about 32 pixels and training on a CPU.

The networks of He et al. 2016, section 4.2 (CIFAR-10): a 3x3 stem and three stages of ``n`` basic blocks with
``width``, 2 ``width`` and 4 ``width`` channels, at full, half and quarter side. Initialization and projection
shortcuts are those of :mod:`models.blocks`.
"""

import chainer

from models.blocks import ResidualNetwork, batch_normalization, classifier, convolution, shortcut, stage


class BasicBlock(chainer.Chain):
    """Two 3x3 convolutions around a shortcut; the stride is on the first one."""

    def __init__(self, in_channels, out_channels, stride, rng):
        super().__init__()
        with self.init_scope():
            self.conv1 = convolution(in_channels, out_channels, 3, stride, rng)
            self.bn1 = batch_normalization(out_channels)
            self.conv2 = convolution(out_channels, out_channels, 3, 1, rng)
            self.bn2 = batch_normalization(out_channels, initial_gamma=0)
            self.shortcut = shortcut(in_channels, out_channels, stride, rng)

    def forward(self, x):
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h), residual=self.shortcut(x), relu=True)


class SmallResNet(ResidualNetwork):
    """Base of the networks, which differ in ``n``, their blocks per stage.

    Args:
        n_class (int): Number of classes.
        width (int): Channels of the first stage.
        rng (numpy.random.RandomState): Source of the initial weights; Chainer's global one if None.
    """

    insize = 32
    min_insize = 8
    n = None

    def __init__(self, n_class, width, rng=None):
        super().__init__()
        with self.init_scope():
            self.conv1 = convolution(3, width, 3, 1, rng)
            self.bn1 = batch_normalization(width)
            self.res2 = stage(BasicBlock, self.n, width, width, 1, rng)
            self.res3 = stage(BasicBlock, self.n, width, 2 * width, 2, rng)
            self.res4 = stage(BasicBlock, self.n, 2 * width, 4 * width, 2, rng)
            self.fc = classifier(4 * width, n_class, rng)


class ResNet8(SmallResNet):
    """8 layers, 20 thousand parameters: learns within minutes on one core."""

    n = 1

    def __init__(self, n_class=10, width=8, rng=None):
        super().__init__(n_class, width, rng)


class ResNet20(SmallResNet):
    """20 layers, 0.27 million parameters: He et al.'s smallest."""

    n = 3

    def __init__(self, n_class=10, width=16, rng=None):
        super().__init__(n_class, width, rng)
