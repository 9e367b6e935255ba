"""The order of training as a pure function of (seed, iteration, worker).

One permutation of the training set per epoch, drawn from (seed, epoch). The permutations laid end to end form
one stream of images; iteration ``t`` (from 0) takes the next ``n * b`` of them and worker ``w`` the ``w``-th
``b`` of those. No image is dropped, repeated or padded, a batch may span epochs, and nothing depends on how
many processes carry it out: this is Goyal et al., Remark 4 (one shuffling per epoch, divided among workers).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from fractions import Fraction

from lib import random_streams

import numpy as np


@dataclasses.dataclass(frozen=True)
class Share:
    """The minibatches of the run that one process reads: worker by worker, iteration by iteration.

    Attributes:
        seed (int): Seed of the run.
        batch (int): Images per worker b.
        workers (int): Workers n of the job.
        first_worker (int): First worker that this process plays.
        virtual_workers (int): Workers K that it plays.
        start (int): First iteration, from 0.
        stop (int): The iteration before which to end.
    """

    seed: int
    batch: int
    workers: int
    first_worker: int
    virtual_workers: int
    start: int
    stop: int

    def steps(self) -> Iterator[tuple[int, int]]:
        """Generate ``(iteration, worker)`` of each minibatch, in the order in which they are read."""
        for iteration in range(self.start, self.stop):
            for worker in range(self.first_worker, self.first_worker + self.virtual_workers):
                yield iteration, worker


@functools.lru_cache(maxsize=4)  # a batch spans two epochs, and a loader reads ahead of the training
def permutation(epoch, n_examples, seed):
    """Return the order in which ``epoch`` visits the training set.

    Sorts counter-based random numbers, so that every NumPy version gives the same order.

    Args:
        epoch (int): Epoch, from 0.
        n_examples (int): Size N of the training set.
        seed (int): Seed of the run, 0 to 2**64 - 1.

    Returns:
        numpy.ndarray: int64 indices, shape ``(n_examples,)``, read-only.
    """
    bits = random_streams.stream(seed, random_streams.ORDER, epoch)
    order = np.argsort(bits.random_raw(n_examples), kind='stable')
    order.flags.writeable = False
    return order


def worker_batch(iteration, worker, n_workers, batch, n_examples, seed):
    """Return the images that one worker trains on in one iteration.

    Args:
        iteration (int): Iteration t, from 0.
        worker (int): Worker w, 0 to ``n_workers - 1``.
        n_workers (int): Number of workers n.
        batch (int): Images per worker b.
        n_examples (int): Size N of the training set.
        seed (int): Seed of the run.

    Returns:
        tuple: ``(indices, epochs)``, two int64 arrays of shape ``(batch,)``: which image, and in which epoch
        of the stream it is visited.

    Raises:
        ValueError: If ``worker`` is out of range or a size is not positive.
    """
    if n_examples <= 0 or batch <= 0 or iteration < 0 or not 0 <= worker < n_workers:
        raise ValueError(f'no batch for iteration {iteration}, worker {worker} of {n_workers}, '
                         f'batch {batch}, {n_examples} examples')
    position = (iteration * n_workers + worker) * batch
    indices = np.empty(batch, np.int64)
    epochs = np.empty(batch, np.int64)
    filled = 0
    while filled < batch:
        epoch, offset = divmod(position + filled, n_examples)
        piece = permutation(epoch, n_examples, seed)[offset:offset + batch - filled]
        indices[filled:filled + len(piece)] = piece
        epochs[filled:filled + len(piece)] = epoch
        filled += len(piece)
    return indices, epochs


def n_iterations(epochs, n_examples, total_batch):
    """Return the length of a run: T = ceil(E * N / (n * b)).

    Args:
        epochs (int, float, str or Fraction): Epochs E; a decimal fraction is taken at its written value.
        n_examples (int): Size N of the training set.
        total_batch (int): n * b.

    Returns:
        int: Number of iterations.
    """
    images = Fraction(str(epochs)) * n_examples
    return math.ceil(images / total_batch)


def ends_epoch(iteration: int, n_examples: int, total_batch: int) -> bool:
    """Tell whether the ``iteration``-th iteration, counted from 1, reaches or crosses a multiple of N images.

    Validation, checkpoint and log row follow such an iteration, and the last.
    """
    seen = iteration * total_batch
    return seen // n_examples > (seen - total_batch) // n_examples


def block(part: int, n_parts: int, n_examples: int) -> tuple[int, int]:
    """Return the contiguous share of ``n_examples`` of ``part`` of ``n_parts``; sizes differ by at most 1.

    Consecutive workers hold consecutive blocks, so the K workers of one process hold one block together.

    Returns:
        tuple: ``(start, stop)``.
    """
    return part * n_examples // n_parts, (part + 1) * n_examples // n_parts
