"""Batches of pixels in memory that decoder processes share."""

import collections
import math
import mmap
import os
import tempfile

from lib.data.decoder_process import map_pixels
from lib.errors import UserError


class Ring:
    """A number of batches in memory: ``pixels`` is uint8, ``(slots, b, insize, insize, 3)``."""

    def __init__(self, pixels, offset=0, n_bytes=0):
        self.pixels = pixels
        self.offset = offset
        self.n_bytes = n_bytes


class SharedMemory:
    """Memory without a name, which the decoder processes inherit and which vanishes with the last user."""

    def __init__(self):
        if hasattr(os, 'memfd_create'):
            self.descriptor = os.memfd_create('decoded images')
        else:
            directory = '/dev/shm' if os.path.isdir('/dev/shm') else None
            with tempfile.TemporaryFile(dir=directory) as file:
                self.descriptor = os.dup(file.fileno())
        self._size = 0
        self._released = collections.defaultdict(list)  # bytes: offsets

    def allocate(self, shape):
        n_bytes = -(-math.prod(shape) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if self._released.get(n_bytes):
            offset = self._released[n_bytes].pop()
        else:
            offset = self._size
            self._grow(n_bytes)
        return Ring(map_pixels(self.descriptor, offset, shape), offset, n_bytes)

    def _grow(self, n_bytes):
        try:
            if n_bytes > _available_memory():
                raise OSError(0, 'more than is free')
            if hasattr(os, 'posix_fallocate'):
                # Takes the pages now: a shortage met later would kill a process with SIGBUS.
                os.posix_fallocate(self.descriptor, self._size, n_bytes)
            else:
                os.ftruncate(self.descriptor, self._size + n_bytes)
        except OSError as error:
            raise UserError(f'no room for decoded images: {n_bytes} bytes of shared memory are needed '
                            f'({error.strerror}); use fewer -j or a smaller --val-batchsize') from None
        self._size += n_bytes

    def release(self, ring):
        self._released[ring.n_bytes].append(ring.offset)

    def close(self):
        os.close(self.descriptor)


def _available_memory():
    """Bytes that can be had without swapping; infinity where the system does not say."""
    try:
        with open('/proc/meminfo') as file:
            fields = dict(line.split(':') for line in file)
        return int(fields['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return math.inf
