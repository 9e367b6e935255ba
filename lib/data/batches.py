"""Batches of decoded images, read ahead of the training.

Which images a batch holds and how they are augmented is decided by :mod:`lib.sharding` and
:mod:`lib.data.augmentation` alone; an :class:`~lib.data.decoder_pool.ImagePool` decodes them, and the batches
are the same for every pool.
"""

import collections
import concurrent.futures
import functools
import itertools
import math

from lib.errors import BadImage
from lib.sharding import permutation, worker_batch

import numpy as np


class _Batch:
    """One batch under way."""

    def __init__(self, slot, indices, epochs, labels):
        self.slot = slot
        self.indices = indices   # list; a replacement takes the place of a bad image
        self.epochs = epochs
        self.labels = labels
        self.n_missing = 0       # images that are still being decoded
        self.failures = {}       # position: reason of the first image that was bad there
        self.errors = {}         # position: what to raise


class _Batches:
    """Iterator that keeps a ring of batches filled, in the order of a sequence.

    Args:
        pool (ImagePool): Decodes.
        images (lib.data.datasets.ImageList): Images to read.
        insize (int): Side of the network's input.
        batch (int): Images per batch, at most.
        sequence (iterable of tuple): ``(indices, epochs)`` of each batch, two lists.
        augmentation (tuple or None): As in :func:`lib.data.decoder_process.decode_images`.
        urgent (bool): Whether to go before other batches of the same pool.
    """

    def __init__(self, pool, images, insize, batch, sequence, augmentation, urgent):
        self._pool = pool
        self._images = images
        self._sequence = iter(sequence)
        self._augmentation = augmentation
        self._urgent = urgent
        # Small tasks spread a batch over all processes; larger ones save messages.
        self._task_size = batch if pool.jobs == 0 else min(max(batch // (2 * pool.jobs), 1), 8)
        ahead = 0 if pool.jobs == 0 else max(2, math.ceil(4 * pool.jobs * self._task_size / batch))
        self._ring = pool.allocate((ahead + 1, batch, insize, insize, 3))
        self._free = collections.deque(range(ahead + 1))
        self._pending = collections.deque()
        self._n_submitted = 0
        self._closed = False
        if ahead:
            self._fill()

    def __iter__(self):
        return self

    def __next__(self):
        self._fill()
        if not self._pending:
            self.close()
            raise StopIteration
        while self._pool.receive(wait=False):
            pass
        batch = self._pending[0]
        while batch.n_missing:
            self._pool.receive()
        self._pending.popleft()
        self._free.append(batch.slot)  # filled again by the next call, not before
        if batch.errors:
            raise batch.errors[min(batch.errors)]
        return self._deliver(batch, self._ring.pixels[batch.slot, :len(batch.indices)])

    def close(self):
        """Give the memory back to the pool, after the decoding that is under way."""
        if self._closed:
            return
        self._closed = True
        try:
            while self._n_submitted:
                self._pool.receive()
            self._pool.release(self._ring)
        except RuntimeError:
            pass  # the pool has ended, and its memory with it

    def _fill(self):
        while self._free and not self._closed:
            try:
                indices, epochs = next(self._sequence)
            except StopIteration:
                return
            batch = _Batch(self._free.popleft(), indices, epochs, self._images.labels[indices])
            self._pending.append(batch)
            positions = range(len(indices))
            for start in range(0, len(indices), self._task_size):
                self._submit(batch, positions[start:start + self._task_size], self._urgent)

    def _submit(self, batch, positions, urgent):
        entries = [(position, self._images.path(batch.indices[position]), batch.epochs[position],
                    batch.indices[position]) for position in positions]
        batch.n_missing += len(entries)
        self._n_submitted += 1
        self._pool.submit(functools.partial(self._decoded, batch, len(entries)), self._ring, batch.slot,
                          self._augmentation, entries, urgent)

    def _decoded(self, batch, n_images, failures):
        batch.n_missing -= n_images
        self._n_submitted -= 1
        for position, reason in failures:
            if not self._closed:
                self._failed(batch, position, reason)

    def _failed(self, batch, position, reason):
        raise NotImplementedError

    def _deliver(self, batch, pixels):
        raise NotImplementedError


class TrainingBatches(_Batches):
    """Training batches of one process: worker by worker, iteration by iteration.

    Iterating gives ``(pixels, labels)``: uint8 ``(batch, insize, insize, 3)``, valid until the next batch is
    asked for, and int32 ``(batch,)``. Decoding runs ahead of what is asked for, across epochs.

    Args:
        pool (ImagePool): Decodes.
        images (lib.data.datasets.ImageList): The training set.
        insize (int): Side of the network's input.
        share (lib.sharding.Share): Which minibatches.
        on_bad_image (str): ``'error'`` raises; ``'skip'`` takes the image at the next position of the same
            epoch's order instead, which is then seen twice, while no other image moves.
        jitter (bool): Whether to jitter colors.

    Attributes:
        skipped (list of tuple): ``(path, reason, epoch)`` of each image replaced in the batches so far.

    Raises:
        BadImage: On ``next``, for the first bad image of the batch; with ``'skip'``, when no image is good.
        RuntimeError: On ``next``, when a decoder process has died.
        UserError: When there is no memory for the batches.
    """

    def __init__(self, pool, images, insize, share, on_bad_image='error', jitter=False):
        self.skipped = []
        self._seed = share.seed
        self._skip = _skips(on_bad_image)
        self._bad = set()
        super().__init__(pool, images, insize, share.batch, _planned(share, len(images)),
                         (share.seed, jitter), urgent=False)

    def _failed(self, batch, position, reason):
        index = batch.indices[position]
        batch.failures.setdefault(position, (self._images.path(index), reason, batch.epochs[position]))
        if not self._skip:
            batch.errors[position] = BadImage(self._images.path(index), reason)
            return
        self._bad.add(index)
        replacement = self._next_good(index, batch.epochs[position])
        if replacement is None:
            path, reason, _ = batch.failures[position]
            batch.errors[position] = BadImage(path, f'{reason}; nor can any of {len(self._images)} be read')
            return
        batch.indices[position] = replacement
        batch.labels[position] = self._images.labels[replacement]
        self._submit(batch, [position], urgent=True)

    def _next_good(self, index, epoch):
        """The first image after ``index`` in that epoch's order that is not known to be bad, or None."""
        order = permutation(epoch, len(self._images), self._seed)
        place = int(np.flatnonzero(order == index)[0])
        following = itertools.chain(range(place + 1, len(order)), range(place))
        return next((int(order[i]) for i in following if int(order[i]) not in self._bad), None)

    def _deliver(self, batch, pixels):
        self.skipped.extend(batch.failures[position] for position in sorted(batch.failures))
        return pixels, batch.labels


def _planned(share, n_examples):
    """Generate ``(indices, epochs)`` of each minibatch of a share, two lists.

    The next epoch's order is drawn in a thread while this one's images are read: that of ImageNet takes
    longer than an iteration, for which all processes would wait at the beginning of every epoch.
    """
    def epoch_of(iteration, worker):
        """Return the epoch of the last image of a minibatch."""
        return ((iteration * share.workers + worker + 1) * share.batch - 1) // n_examples

    last_epoch = epoch_of(share.stop - 1, share.workers - 1)
    thread = concurrent.futures.ThreadPoolExecutor(1, 'order of the next epoch')
    try:
        newest, drawing = -1, None
        for iteration, worker in share.steps():
            epoch = epoch_of(iteration, worker)
            if epoch > newest and drawing:
                drawing.result()  # raises what the drawing has raised
            indices, epochs = worker_batch(iteration, worker, share.workers, share.batch, n_examples,
                                           share.seed)
            if newest < epoch < last_epoch:
                drawing = thread.submit(permutation, epoch + 1, n_examples, share.seed)
            newest = epoch
            yield indices.tolist(), epochs.tolist()
    finally:
        # Without waiting: an abandoned generator may be finalized anywhere, in a thread that is starting too.
        thread.shutdown(wait=False)


def validation_batches(pool, images, insize, start, stop, batchsize, on_bad_image='error', skipped=None):
    """Read the center crops of images ``start`` to ``stop - 1``, in order; decoding begins at once.

    May be used while training batches of the same pool are under way, which then wait.

    Args:
        pool (ImagePool): Decodes.
        images (lib.data.datasets.ImageList): The validation set.
        insize (int): Side of the network's input.
        start (int): First image.
        stop (int): The image before which to end.
        batchsize (int): Images per batch; the last may be smaller.
        on_bad_image (str): ``'error'`` raises; ``'skip'`` leaves bad images out of their batch.
        skipped (list or None): Where to append the ``(path, reason)`` of images left out.

    Returns:
        iterator of tuple: ``(pixels, labels)``: uint8 ``(m, insize, insize, 3)``, valid until the next batch
        is asked for, and int32 ``(m,)``, with ``m`` at least 1.

    Raises:
        BadImage: On ``next``, for the first bad image of a batch.
        RuntimeError: When a decoder process has died.
        UserError: When there is no memory for the batches.
    """
    if start >= stop:
        return iter(())
    return _without_empty(_ValidationBatches(pool, images, insize, start, stop, batchsize,
                                             _skips(on_bad_image), [] if skipped is None else skipped))


def _without_empty(batches):
    """Generate the batches of which an image is good."""
    try:
        for pixels, labels in batches:
            if len(labels):
                yield pixels, labels
    finally:
        batches.close()


class _ValidationBatches(_Batches):
    def __init__(self, pool, images, insize, start, stop, batchsize, skip, skipped):
        self._skip = skip
        self._skipped = skipped
        sequence = ((list(range(first, min(first + batchsize, stop))), [0] * batchsize)
                    for first in range(start, stop, batchsize))
        super().__init__(pool, images, insize, min(batchsize, stop - start), sequence, None, urgent=True)

    def _failed(self, batch, position, reason):
        path = self._images.path(batch.indices[position])
        batch.failures[position] = path, reason
        if not self._skip:
            batch.errors[position] = BadImage(path, reason)

    def _deliver(self, batch, pixels):
        if not batch.failures:
            return pixels, batch.labels
        self._skipped.extend(batch.failures[position] for position in sorted(batch.failures))
        good = [position for position in range(len(batch.indices)) if position not in batch.failures]
        return pixels[good], batch.labels[good]


def _skips(on_bad_image):
    if on_bad_image not in ('error', 'skip'):
        raise ValueError(f'on_bad_image is {on_bad_image!r}, not error or skip')
    return on_bad_image == 'skip'
