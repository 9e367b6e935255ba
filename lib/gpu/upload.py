"""Minibatches on their way to a GPU, which is still at work on the iteration before."""

import numpy as np
from chainer.backends import cuda


class Upload:
    """Sends minibatches to a device.

    To a GPU from pinned memory and on a stream of its own: the host is ahead of the GPU, whose copy does not
    wait for what it has still to compute. There are two places for minibatches, which take turns.

    Args:
        device (chainer.backend.Device): On a CPU nothing is copied.
    """

    def __init__(self, device):
        self._on_cpu = device.xp is np
        self._slots = []

    def send(self, images, labels):
        """Ask for a copy of a minibatch; wait only for a GPU that is several iterations behind.

        Args:
            images (numpy.ndarray): uint8; they and the labels may change once this has returned.
            labels (numpy.ndarray): int32.

        Returns:
            tuple: Both on the device, valid for what it is asked to do before the next call.
        """
        if self._on_cpu:
            return images, labels
        compute = cuda.cupy.cuda.get_current_stream()
        size = labels.nbytes + images.nbytes
        if not self._slots or size > self._slots[0].pinned.size:
            for slot in self._slots:
                slot.writable()  # before CuPy's pool, which gets it back, hands it out again
            self._slots = [_Slot(size), _Slot(size)]
            self._stream = cuda.cupy.cuda.Stream(non_blocking=True)
            self._used = compute.record()
        slot, other = self._slots
        self._slots = [other, slot]
        pinned, on_gpu = slot.writable(), slot.on_gpu
        pinned[:labels.nbytes].view(labels.dtype)[...] = labels
        pinned[labels.nbytes:size].reshape(images.shape)[...] = images
        self._stream.wait_event(self._used)  # by then nothing is asked of what lay here
        self._used = compute.record()
        on_gpu.data.copy_from_host_async(pinned.ctypes.data, size, self._stream)
        slot.copied.record(self._stream)
        compute.wait_event(slot.copied)
        return (on_gpu[labels.nbytes:size].reshape(images.shape),
                on_gpu[:labels.nbytes].view(labels.dtype))


class _Slot:
    """Pinned memory, and the GPU's for the same minibatch."""

    def __init__(self, size):
        import cupyx
        self.pinned = cupyx.empty_pinned(size, np.uint8)
        self.on_gpu = cuda.cupy.empty(size, np.uint8)
        self.copied = cuda.Event(disable_timing=True)

    def writable(self):
        """Return the pinned memory once its last copy is done."""
        if not self.copied.done:
            self.copied.synchronize()
        return self.pinned
