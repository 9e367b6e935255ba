"""One decoding process: takes tasks from a socket and writes pixels into shared memory.

Started by :class:`lib.data.decoder_pool.ImagePool` as a plain process,
``python lib/data/decoder_process.py PARENT TASKS RESULTS MEMORY``, with the number of its parent and of three
inherited file descriptors. It imports neither Chainer nor MPI, and ends when the process that started it has
closed its ends of the sockets, or is gone.
"""

import os
import sys

# A task and a result are one packet each.
PACKET_BYTES = 1 << 16


def decode_images(pixels, augmentation, entries):
    """Decode images into their places in a batch.

    Args:
        pixels (numpy.ndarray): uint8 batch ``(b, insize, insize, 3)``, written to.
        augmentation (tuple or None): ``(seed, jitter)`` for training images, None for validation images.
        entries (list of tuple): ``(position, path, epoch, index)`` of each image.

    Returns:
        list of tuple: ``(position, reason)`` of each image that could not be decoded.
    """
    from lib.data.decoding import load_training, load_validation
    from lib.errors import BadImage

    insize = pixels.shape[1]
    failures = []
    for position, path, epoch, index in entries:
        try:
            if augmentation is None:
                pixels[position] = load_validation(path, insize)
            else:
                seed, jitter = augmentation
                pixels[position] = load_training(path, insize, seed, epoch, index, jitter)
        except BadImage as error:
            failures.append((position, error.reason))
    return failures


def map_pixels(memory, offset, shape):
    """uint8 array of ``shape`` over the shared memory from ``offset``, a multiple of the page size."""
    import math
    import mmap

    import numpy as np

    return np.frombuffer(mmap.mmap(memory, math.prod(shape), offset=offset), np.uint8).reshape(shape)


def die_with(parent):
    """Have the kernel kill this process with its parent, even while it hangs or is stopped; Linux only."""
    import ctypes
    import signal

    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError, TypeError):
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # gone before
        os._exit(0)


def main(tasks, results, memory):
    """Decode until the other end of the sockets is closed.

    A task is ``(number, offset, shape, slot, augmentation, entries)``: the place of a ring of batches in
    shared memory, which batch of it, and the arguments of :func:`decode_images`. Its result is ``(number,
    failures)``, ``(number, traceback)`` when decoding failed in a way that is not the image's fault, or
    ``(number, None)`` when memory was short.
    """
    import pickle
    import socket
    import traceback

    tasks = socket.socket(fileno=tasks)
    results = socket.socket(fileno=results)
    rings = {}
    while True:
        try:
            packet = tasks.recv(PACKET_BYTES)
        except ConnectionResetError:
            return
        if not packet:
            return
        number, offset, shape, slot, augmentation, entries = pickle.loads(packet)
        try:
            if (offset, shape) not in rings:
                rings[offset, shape] = map_pixels(memory, offset, shape)
            outcome = decode_images(rings[offset, shape][slot], augmentation, entries)
        except MemoryError:
            outcome = None
        except Exception:
            outcome = traceback.format_exc()[-10000:]
        try:
            results.send(pickle.dumps((number, outcome)))
        except (BrokenPipeError, ConnectionResetError):
            return


if __name__ == '__main__':
    # Run by path from any directory: find the package, and keep its modules from shadowing the library's.
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    sys.path[:] = [root] + [entry for entry in sys.path if os.path.abspath(entry) != here]
    parent, *descriptors = map(int, sys.argv[1:])
    die_with(parent)
    main(*descriptors)
