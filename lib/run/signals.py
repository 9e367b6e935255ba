"""Stopping on request: a signal asks for a checkpoint and an orderly end, it does not kill.

Under Open MPI 5's ``mpirun``, SIGUSR1 sent to mpirun reaches every rank, SIGTERM sent to mpirun ends the
ranks without their handlers running, and a signal sent to one rank reaches that rank alone. So the ranks have
to agree on :attr:`StopRequest.received` before they act on it.

Until an iteration is done there is nothing to save: a signal then ends the process, whatever it waits for. A
second SIGTERM or SIGINT ends it at any time. (SIGUSR1 is repeated by the launch script until it is heeded.)

Of several ranks none heeds a first signal before MPI has started: when one ends, mpirun kills the others, and
that of Open MPI 5.0 stands still for good if one of them was just connecting.
"""

import os
import select
import signal
import threading
import time

from lib.communication import launcher
from lib.errors import EXIT_STOPPED

_INSISTENT = signal.SIGTERM, signal.SIGINT
_PATIENCE = 0.5  # seconds until a set-up has unwound, or the first iteration is done
_UNTIL_MPI = 30   # seconds; a large job's takes its time, and MPI may never start
_APART = 0.1     # seconds; GNU timeout sends a signal twice, to the process and to its group


class Stopped(BaseException):
    """A signal has come during the set-up; raised in the main thread wherever it is."""


class StopRequest:
    """Notes that a signal has arrived which asks for the end.

    Python runs handlers in the main thread, between two of its instructions; a thread of its own sees to it
    that the process also ends while the main thread waits in MPI or computes.

    Args:
        signals (sequence of int): Numbers of the signals.
    """

    def __init__(self, signals):
        self._signals = signals
        self._received = None
        self._setting_up = True
        self._joined = launcher.launched_size() == 1
        self._trained = False
        self._end = os._exit
        self._bell = None

    @property
    def received(self):
        """str or None: Name of the first signal that arrived, such as ``'SIGTERM'``."""
        return self._received

    def install(self):
        """Install the handlers; returns ``self``.

        Call it first thing: a signal that comes earlier kills the process, or, if the main thread has blocked
        it, comes now. Main thread only.
        """
        if self._bell is None:
            listener, self._bell = os.pipe()
            os.set_blocking(self._bell, False)
            threading.Thread(target=self._watch, args=(listener,), name='signals', daemon=True).start()
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        for number in self._signals:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        return self

    def joined(self, end):
        """Note that MPI has started, and install the handlers again: it may have set some of its own.

        Args:
            end (callable): Ends the process, from any thread, with the status that it is given.

        Raises:
            Stopped: A signal has come meanwhile.
        """
        self._end = end
        self._joined = True
        self.install()
        if self._received and self._setting_up:
            self._unwind()

    def close(self):
        """End the watch: signals are noted and do nothing more. Main thread only."""
        self._setting_up = False
        signal.set_wakeup_fd(-1)
        os.close(self._bell)

    def begin(self):
        """Note that the set-up is over: from now on the training asks for :attr:`received`."""
        self._setting_up = False

    def iteration_done(self):
        """Note that there is something to save."""
        self._trained = True

    def end(self, status):
        """End this process, and with it the job."""
        self._end(status)

    def _note(self, number, frame):
        if self._received is None:
            self._received = signal.Signals(number).name
        if self._setting_up and self._joined:
            self._unwind()

    def _unwind(self):
        self._setting_up = False  # a second one must not interrupt the unwinding
        raise Stopped(_too_early(self._received))

    def _watch(self, listener):
        first, deadline = {}, None
        while True:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            if not select.select([listener], [], [], left)[0]:
                if not self._trained:
                    self._end_with(EXIT_STOPPED, _too_early(signal.Signals(next(iter(first))).name))
                deadline = None
                continue
            rung = os.read(listener, 1)
            if not rung:
                os.close(listener)
                return
            number, now = rung[0], time.monotonic()
            if number in _INSISTENT and now - first.get(number, now) > _APART:
                name = signal.Signals(number).name
                self._end_with(128 + number, f'second {name}: ending at once, without a checkpoint')
            first.setdefault(number, now)
            if deadline is None and not self._trained:
                deadline = now + (_PATIENCE if self._joined else _UNTIL_MPI)

    def _end_with(self, status, why):
        # Not through sys.stderr, which the main thread may hold; nor into a pipe that nobody empties.
        if select.select([], [2], [], 0)[1]:
            os.write(2, f'rank {launcher.launched_rank()}: {why}\n'.encode())
        self._end(status)


def _too_early(name):
    return f'{name} before an iteration was done: nothing to save; start again with --resume auto'
