"""Images made in memory: a training without a disk, to measure all the rest."""

from lib import constants, random_streams

import numpy as np


class SyntheticBatches:
    """Training batches without files: random pixels, made once, as :class:`lib.data.batches.TrainingBatches`.

    Args:
        n_class (int): Number of classes that labels are drawn from.
        insize (int): Side of the network's input.
        seed (int): Seed of the run.
        batch (int): Images per worker b.
        n_workers (int): Number of workers n.
        first_worker (int): First worker that this process plays.
        n_local_workers (int): Number of workers K that it plays.
        start_iteration (int): First iteration, from 0.
        stop_iteration (int): The iteration before which to end.

    Attributes:
        skipped (list): Empty.
    """

    _N_DISTINCT = 4  # batches in memory; workers share them

    def __init__(self, n_class, insize, seed, batch, n_workers, first_worker, n_local_workers,
                 start_iteration, stop_iteration):
        self.skipped = []
        workers = range(first_worker, min(first_worker + n_local_workers, n_workers))
        made = {worker % self._N_DISTINCT: None for worker in workers[:self._N_DISTINCT]}
        for number in made:
            bits = random_streams.stream(seed, random_streams.SYNTHETIC, number)
            labels = (bits.random_raw(batch) % np.uint64(n_class)).astype(np.int32)
            pixels = random_streams.random_bytes(bits, batch * insize * insize * 3)
            made[number] = pixels.reshape(batch, insize, insize, 3), labels
        self._batches = (made[worker % self._N_DISTINCT] for _ in range(start_iteration, stop_iteration)
                         for worker in workers)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._batches)

    def close(self):
        """Nothing to give back."""


class SyntheticImages:
    """Stands in for ``lib.data.datasets.ImageList`` where no image is read.

    Args:
        n_images (int): Number of images.
    """

    n_class = constants.IMAGENET_CLASSES

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
    """As ``lib.data.batches.validation_batches``, of random pixels."""
    n_batches = -(-(stop - start) // batchsize)
    batches = SyntheticBatches(SyntheticImages.n_class, insize, seed, batchsize, 1, 0, 1, 0, n_batches)
    for number, (pixels, labels) in enumerate(batches):
        size = min(batchsize, stop - start - number * batchsize)
        yield pixels[:size], labels[:size]
