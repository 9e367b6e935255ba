"""Sum of what all processes send, in turns.

On the CPU in float32, in the order of the ranks, rounded once. Each process adds one chunk of all payloads
(:func:`lib.communication.wire.sum_payloads`) and has the other chunks from the others. Processes on one host
read each other's payloads where they lie, in shared memory; others send them in one all-to-all, and the sums
in one all-gather. Both give the same bits.

In shared memory long payloads take several turns, so that what is packed, added and unpacked in a turn is
still in the cache. Between hosts they go in one: a sum is a generator, which yields the MPI requests that
have to complete before it goes on, so that the caller can compute meanwhile.
"""

import mmap
import os

from lib.communication import wire

import numpy as np

# Elements per turn in shared memory.
_TURN = 1 << 19

# Bytes by which a process knows another's memory.
_TOKEN = 16


def join(mpi_comm, size, dtype):
    """Make what adds up payloads of ``size`` elements. Called by every process.

    Args:
        mpi_comm: mpi4py communicator.
        size (int): Elements that every process will send, in turns of at most ``capacity``.
        dtype (dtype): Of the wire, float16 or float32.

    Returns:
        SharedMemorySum or AllToAllSum: The same on every process.

    Raises:
        ValueError: On every process, if they give different sizes.
    """
    capacity = min(max(size, 1), _TURN)
    memory = None
    if mpi_comm.size > 1:
        sizes = mpi_comm.allgather(size)
        if min(sizes) != max(sizes):
            raise ValueError(f'processes send {min(sizes)} to {max(sizes)} elements: expected the same '
                             'parameters on all')
        n_bytes = max(_TOKEN, (mpi_comm.size + 1) * capacity * np.dtype(dtype).itemsize)
        memory = _share_memory(mpi_comm, n_bytes)
    if memory is not None:
        return SharedMemorySum(mpi_comm, capacity, dtype, memory)
    return AllToAllSum(mpi_comm, max(size, 1), dtype)


class SharedMemorySum:
    """Adds up payloads of processes that share ``memory``, of P + 1 rows of ``capacity`` elements.

    A turn needs no more than two barriers: after the second, no process reads payloads any more, and none
    writes a sum of the next turn before all have passed its first, with the last sum unpacked.
    """

    in_background = False  # processors do all the work

    def __init__(self, mpi_comm, capacity, dtype, memory):
        self.capacity = capacity
        self._mpi_comm = mpi_comm
        rows = np.frombuffer(memory, dtype, (mpi_comm.size + 1) * capacity).reshape(-1, capacity)
        self._payloads, self._total = rows[:-1], rows[-1]

    def payload(self, n):
        """Where this process puts its ``n`` elements of the next turn."""
        return self._payloads[self._mpi_comm.rank, :n]

    def sum(self, n):
        """Add up all processes' ``n`` elements; valid until the next turn. Called by every process."""
        yield from ()
        chunk = -(-n // self._mpi_comm.size)
        mine = slice(chunk * self._mpi_comm.rank, min(chunk * (self._mpi_comm.rank + 1), n))
        self._mpi_comm.Barrier()
        wire.sum_payloads(self._payloads[:, mine], self._total[mine])
        self._mpi_comm.Barrier()
        return self._total[:n]


class AllToAllSum:
    """Adds up payloads of processes that have only MPI between them; with one process, its own payload."""

    in_background = True  # the network does most of it

    def __init__(self, mpi_comm, capacity, dtype):
        self.capacity = capacity
        # Of its own, since processes come to its calls at different times, between others.
        self._mpi_comm = mpi_comm.Dup() if mpi_comm.size > 1 else mpi_comm
        chunk = -(-capacity // mpi_comm.size)
        self._payload = np.empty(chunk * mpi_comm.size, dtype)  # sums of what pads the last chunk are dropped
        self._received = np.empty_like(self._payload)
        self._total = np.empty(chunk, dtype)

    def payload(self, n):
        """Where this process puts its ``n`` elements of the next turn."""
        return self._payload[:n]

    def sum(self, n):
        """Add up all processes' ``n`` elements; valid until the next turn. Called by every process."""
        size = self._mpi_comm.size
        if size > 1:
            chunk = -(-n // size)
            sent, total = self._payload[:chunk * size], self._total[:chunk]
            received = self._received[:chunk * size]
            yield self._mpi_comm.Ialltoall(_as_mpi(sent), _as_mpi(received))
            wire.sum_payloads(received.reshape(size, chunk), total)
            yield self._mpi_comm.Iallgather(_as_mpi(total), _as_mpi(sent))
        return self._payload[:n]


def _as_mpi(array):
    """MPI knows no float16: as unsigned integers of its size."""
    return array.view(np.uint16) if array.dtype == np.float16 else array


def _share_memory(mpi_comm, n_bytes):
    """Memory that all processes map, or None on all where they can not. Called by every process."""
    from mpi4py import MPI

    on_host = mpi_comm.Split_type(MPI.COMM_TYPE_SHARED)
    on_one_host = on_host.size == mpi_comm.size
    on_host.Free()
    if not on_one_host:
        return None
    descriptor = memory = path = token = None
    try:
        if mpi_comm.rank == 0:
            # Without a name, so that it vanishes with the last process that maps it, however that ends.
            descriptor = os.memfd_create('payloads')
            os.posix_fallocate(descriptor, 0, n_bytes)  # a shortage met later would be a SIGBUS
            memory = mmap.mmap(descriptor, n_bytes)
            memory[:_TOKEN] = token = os.urandom(_TOKEN)
            path = f'/proc/{os.getpid()}/fd/{descriptor}'
    except (AttributeError, OSError):  # not Linux, or no room
        memory = path = None
    path, token = mpi_comm.bcast((path, token))
    if mpi_comm.rank != 0 and path:
        memory = _map(path, n_bytes, token)
    shared_by_all = mpi_comm.allreduce(memory is not None, op=MPI.LAND)
    if descriptor is not None:
        os.close(descriptor)
    return memory if shared_by_all else None


def _map(path, n_bytes, token):
    """Map another process's memory; None if it may not be, or is not the one with ``token``."""
    try:
        with open(path, 'r+b') as file:
            memory = mmap.mmap(file.fileno(), n_bytes)
    except (OSError, ValueError):  # containers that hide their processes from each other
        return None
    return memory if memory[:_TOKEN] == token else None
