"""Processes or threads that decode images.

The processes are plain ones that import neither Chainer nor MPI, started before MPI is: forking a process
that uses InfiniBand crashes, and ``multiprocessing`` would import the main module again. They all take small
tasks from one socket, whoever is free first, write pixels straight into shared memory, and answer on a socket
each, whose end tells at once that a process has died. Sending tasks never blocks, and answers are read
whenever something waits for one, so that several readers can share a pool without a deadlock.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import pickle
import queue
import selectors
import signal
import socket
import subprocess
import sys
import time
import weakref

from lib.data.decoder_process import PACKET_BYTES, decode_images
from lib.data.shared_memory import Ring, SharedMemory
from lib.errors import UserError

import numpy as np

# Signals that a launcher or a terminal sends to the whole group: the training process decides what they mean.
_GROUP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}

_DECODER_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'decoder_process.py')

# Seconds until a decoder process that was killed is gone, unless it hangs.
_PATIENCE = 1.0
# Seconds from the end of its sockets to its own, which on a loaded machine lie apart.
_LAST_MOMENTS = 10.0


_started = weakref.WeakSet()


def kill_decoders():
    """End all decoder processes of this process, whose end may else leave some that hang."""
    for decoder in list(_started):
        decoder.kill()


class ImagePool:
    """Processes or threads that decode images for :mod:`lib.data.batches`.

    To be used from one thread. Processes start at once: make the pool before initializing MPI.

    Args:
        jobs (int): Number of processes or threads; 0 decodes in the calling thread, when a batch is due.
        kind (str): ``'process'`` or ``'thread'``.

    Raises:
        UserError: If the system cannot start the processes.
    """

    def __init__(self, jobs, kind='process'):
        if jobs < 0 or kind not in ('process', 'thread'):
            raise ValueError(f'no pool of {jobs} jobs of kind {kind!r}')
        self.jobs = jobs
        if jobs == 0:
            self._decoder = _SerialDecoder()
        elif kind == 'thread':
            self._decoder = _ThreadDecoder(jobs)
        else:
            self._decoder = _ProcessDecoder(jobs)
        self._numbers = itertools.count()
        self._receivers = {}
        self._fault = None

    def close(self):
        """End the processes or threads; what they have under way is lost. May be called again."""
        if self._decoder is not None:
            self._fault = 'the image pool is closed'
            self._decoder.close()
            self._decoder = None
            self._receivers.clear()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def allocate(self, shape):
        """Return a :class:`Ring` of batches of ``shape = (slots, b, insize, insize, 3)``.

        Raises:
            UserError: If there is no memory for it.
        """
        self._check()
        return self._decoder.allocate(shape)

    def release(self, ring):
        """Take a ring back, none of whose images is being decoded."""
        self._check()
        self._decoder.release(ring)

    def submit(self, receiver, ring, slot, augmentation, entries, urgent):
        """Has images decoded into ``ring.pixels[slot]``.

        Args:
            receiver (callable): Called by :meth:`receive` with what
                :func:`lib.data.decoder_process.decode_images` returned.
            ring (Ring): Of this pool.
            slot (int): Batch of the ring.
            augmentation (tuple or None): As in :func:`lib.data.decoder_process.decode_images`.
            entries (list of tuple): The same.
            urgent (bool): Whether to go before tasks that are still here.
        """
        self._check()
        number = next(self._numbers)
        self._receivers[number] = receiver
        self._decoder.submit((number, ring, slot, augmentation, entries), urgent)

    def receive(self, wait=True):
        """Hand one result to its receiver.

        Returns:
            bool: False if there was none and ``wait`` was False.

        Raises:
            RuntimeError: If a decoder process has died, or the pool is closed.
        """
        self._check()
        try:
            result = self._decoder.receive(wait)
        except Exception as error:
            self._fault = str(error) or repr(error)
            raise
        if result is None:
            return False
        number, failures = result
        self._receivers.pop(number)(failures)
        return True

    def _check(self):
        if self._fault is not None:
            raise RuntimeError(self._fault)


class _SerialDecoder:
    """Decodes when asked for a result."""

    def __init__(self):
        self._tasks = collections.deque()

    def allocate(self, shape):
        return Ring(np.empty(shape, np.uint8))

    def release(self, ring):
        pass

    def submit(self, task, urgent):
        (self._tasks.appendleft if urgent else self._tasks.append)(task)

    def receive(self, wait):
        if not wait:
            return None
        number, ring, slot, augmentation, entries = self._tasks.popleft()
        return number, decode_images(ring.pixels[slot], augmentation, entries)

    def close(self):
        self._tasks.clear()


class _ThreadDecoder:
    """Decodes in threads; Pillow lets go of the interpreter lock while it decodes and resizes."""

    def __init__(self, jobs):
        self._executor = concurrent.futures.ThreadPoolExecutor(jobs, 'decoder')
        self._results = queue.SimpleQueue()

    def allocate(self, shape):
        return Ring(np.empty(shape, np.uint8))

    def release(self, ring):
        pass

    def submit(self, task, urgent):
        number, ring, slot, augmentation, entries = task
        future = self._executor.submit(decode_images, ring.pixels[slot], augmentation, entries)
        future.add_done_callback(lambda future: self._results.put((number, future)))

    def receive(self, wait):
        try:
            number, future = self._results.get(wait)
        except queue.Empty:
            return None
        return number, future.result()

    def close(self):
        self._executor.shutdown(cancel_futures=True)


class _ProcessDecoder:
    """Decodes in processes of their own."""

    def __init__(self, jobs):
        self._waiting = collections.deque()  # tasks that the socket has no room for yet
        self._results = collections.deque()
        self._selector = selectors.DefaultSelector()
        self._memory = SharedMemory()
        self._processes = []
        _started.add(self)
        try:
            # A queue in the kernel for all processes: whoever is free takes the next packet.
            self._tasks, their_tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise UserError(f'decoder processes need Unix sockets of packets, which this system lacks '
                            f'({error}); use --loader thread') from None
        self._tasks.setblocking(False)
        try:
            with their_tasks:
                for _ in range(jobs):
                    self._start(their_tasks)
        except BaseException:
            self.close()
            raise

    def _start(self, their_tasks):
        results, their_results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with their_results:
            descriptors = their_tasks.fileno(), their_results.fileno(), self._memory.descriptor
            arguments = map(str, (os.getpid(), *descriptors))
            # Blocked in the process from its birth, before a handler could be installed; here no longer than
            # one takes to start, lest a signal wait for hundreds.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
            try:
                process = subprocess.Popen(
                    [sys.executable, _DECODER_PROGRAM, *arguments], pass_fds=descriptors,
                    env=_decoder_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                self._processes.append(process)
            except OSError as error:
                results.close()
                raise UserError(f'decoder process {len(self._processes)} does not start ({error.strerror}); '
                                'use fewer -j') from None
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        # mpirun may have bound this rank to one core, which all its decoders would share.
        if hasattr(os, 'sched_setaffinity') and len(os.sched_getaffinity(0)) == 1:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(process.pid, range(os.cpu_count()))
        self._selector.register(results, selectors.EVENT_READ, process)

    def allocate(self, shape):
        return self._memory.allocate(shape)

    def release(self, ring):
        self._memory.release(ring)

    def submit(self, task, urgent):
        number, ring, *rest = task
        packet = pickle.dumps((number, ring.offset, ring.pixels.shape, *rest))
        (self._waiting.appendleft if urgent else self._waiting.append)(packet)
        self._send()

    def _send(self):
        # A socket without a reader any more is reported by receive.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._waiting:
                self._tasks.send(self._waiting[0])
                self._waiting.popleft()

    def receive(self, wait):
        self._send()
        if not self._results:
            for key, _ in self._selector.select(None if wait else 0):
                try:
                    packet = key.fileobj.recv(PACKET_BYTES)
                except ConnectionResetError:
                    packet = b''
                if not packet:
                    raise RuntimeError(self._obituary(key.data))
                self._results.append(pickle.loads(packet))
        if not self._results:
            return None
        number, outcome = self._results.popleft()
        if outcome is None:
            raise MemoryError('in a decoder process')
        if isinstance(outcome, str):
            raise RuntimeError(f'a decoder process failed:\n{outcome}')
        return number, outcome

    def _obituary(self, process):
        name = f'decoder process {self._processes.index(process)} (pid {process.pid})'
        try:
            status = process.wait(_LAST_MOMENTS)
        except subprocess.TimeoutExpired:
            return f'{name} has closed its connection'
        if status >= 0:
            return f'{name} ended with status {status}; its message is above'
        cause = '; was memory short? then use fewer -j' if status == -signal.SIGKILL else ''
        return f'{name} was killed by {signal.Signals(-status).name}{cause}'

    def close(self):
        self._tasks.close()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()
        self.kill()
        # One that hangs in a file system is not waited for.
        deadline = time.monotonic() + _PATIENCE
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
        self._memory.close()

    def kill(self):
        """End the processes, which have nothing to lose, also those that are stopped."""
        for process in self._processes:
            process.kill()


def _decoder_environment():
    """Without the launcher's variables, which would make an MPI library take the process for a rank."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('OMPI_', 'PMIX_', 'PMI_', 'SLURM_'))}
    environment.update(OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    return environment
