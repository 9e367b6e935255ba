"""Images made in memory: a training without a disk, to measure all the rest."""

from lib import constants
from lib.loader import SyntheticBatches


class SyntheticImages:
    """Stands in for ``lib.datasets.ImageList`` where no image is read.

    Args:
        n_images (int): Number of images.
    """

    n_class = constants.IMAGENET_CLASSES
    class_names = None

    def __init__(self, n_images):
        self._n_images = n_images

    def __len__(self):
        return self._n_images

    def fingerprint(self):
        return f'synthetic {self._n_images}'


def open_pair(n_train=None):
    """Training and validation sets of ImageNet's size, or of ``n_train`` and in its proportion."""
    n_train = n_train or constants.IMAGENET_TRAIN
    n_val = -(-n_train * constants.IMAGENET_VAL // constants.IMAGENET_TRAIN)
    return SyntheticImages(n_train), SyntheticImages(n_val)


def validation_batches(insize, seed, start, stop, batchsize):
    """As ``lib.loader.validation_batches``, of random pixels."""
    n_batches = -(-(stop - start) // batchsize)
    batches = SyntheticBatches(SyntheticImages.n_class, insize, seed, batchsize, 1, 0, 1, 0, n_batches)
    for number, (pixels, labels) in enumerate(batches):
        size = min(batchsize, stop - start - number * batchsize)
        yield pixels[:size], labels[:size]
