"""Stopping on request: a signal asks for a checkpoint and an orderly end, it does not kill.

Under Open MPI 5's ``mpirun``, SIGUSR1 sent to mpirun reaches every rank, SIGTERM sent to mpirun ends the
ranks without their handlers running, and a signal sent to one rank reaches that rank alone. So the ranks have
to agree on :attr:`StopRequest.received` before they act on it.
"""

import signal


class StopRequest:
    """Notes that a signal has arrived which asks for the end.

    A second SIGINT is an impatient user's: it raises ``KeyboardInterrupt`` as Python does by default.

    Args:
        signals (sequence of int): Numbers of the signals.
        early (sequence of int): Numbers of signals that arrived before, in their order.
    """

    def __init__(self, signals, early=()):
        self._signals = signals
        self._received = signal.Signals(early[0]).name if early else None
        self._interrupted = False

    @property
    def received(self):
        """str or None: Name of the first signal that arrived, such as ``'SIGTERM'``."""
        return self._received

    def install(self):
        """Install the handlers; returns ``self``.

        Call it first thing: a signal that comes earlier kills the process. Call it again after libraries that
        may have set handlers of their own, such as MPI; nothing noted is lost by that. Main thread only.
        """
        for number in self._signals:
            if not (number == signal.SIGINT and self._interrupted):
                signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self._received is None:
            self._received = signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
