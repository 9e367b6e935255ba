"""Images made in memory: a training without a disk, to measure all the rest."""

from lib import constants, random_streams
from lib.sharding import Share

import numpy as np


class SyntheticBatches:
    """Training batches without files: random pixels, made once, as :class:`lib.data.batches.TrainingBatches`.

    Args:
        n_class (int): Number of classes that labels are drawn from.
        insize (int): Side of the network's input.
        share (lib.sharding.Share): Which minibatches they stand for.

    Attributes:
        skipped (list): Empty.
    """

    _N_DISTINCT = 4  # batches in memory; workers share them

    def __init__(self, n_class, insize, share):
        self.skipped = []
        workers = range(share.first_worker,
                        min(share.first_worker + share.virtual_workers, share.workers))
        made = {worker % self._N_DISTINCT: None for worker in workers[:self._N_DISTINCT]}
        for number in made:
            bits = random_streams.stream(share.seed, random_streams.SYNTHETIC, number)
            labels = (bits.random_raw(share.batch) % np.uint64(n_class)).astype(np.int32)
            pixels = random_streams.random_bytes(bits, share.batch * insize * insize * 3)
            made[number] = pixels.reshape(share.batch, insize, insize, 3), labels
        self._batches = (made[worker % self._N_DISTINCT] for _ in range(share.start, share.stop)
                         for worker in workers)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._batches)

    def close(self):
        """Do nothing: there is nothing to give back."""


class SyntheticImages:
    """Stands in for ``lib.data.datasets.ImageList`` where no image is read.

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
    """Return the training and validation sets of ImageNet's size, or of ``n_train`` and in its proportion."""
    n_train = n_train or constants.IMAGENET_TRAIN
    n_val = -(-n_train * constants.IMAGENET_VAL // constants.IMAGENET_TRAIN)
    return SyntheticImages(n_train), SyntheticImages(n_val)


def validation_batches(insize, seed, start, stop, batchsize):
    """As ``lib.data.batches.validation_batches``, of random pixels."""
    n_batches = -(-(stop - start) // batchsize)
    batches = SyntheticBatches(SyntheticImages.n_class, insize, Share(seed, batchsize, 1, 0, 1, 0, n_batches))
    for number, (pixels, labels) in enumerate(batches):
        size = min(batchsize, stop - start - number * batchsize)
        yield pixels[:size], labels[:size]
