"""A job that stands still ends, and says where each rank stood."""

import faulthandler
import sys
import threading
import time
import traceback
import types

from lib.errors import EXIT_FAULT
from lib.run.excepthook import end_job, say, where

_NETWORK = ('no iteration yet: do all hosts reach each other? A firewall between them holds messages up; so '
            'does a network that each has for itself under one address, such as docker0 (mpirun --mca '
            'btl_tcp_if_exclude lo,docker0); so do two hosts of one name\n')


class StallWatchdog:
    """End the job when no iteration has finished for ``timeout`` seconds.

    A thread watches: it says which rank stands still, since when and where (the stacks of all threads),
    leaves the other ranks a moment to say the same, and ends the job with status 1. If it cannot even run,
    because a C function keeps the interpreter lock, ``faulthandler`` writes the stacks instead and ends the
    process, at most a quarter of ``timeout`` later; the watching thread's own entry then names the rank.

    Args:
        mpi_comm: mpi4py communicator of the job.
        timeout (float): Seconds. A step of the set-up, the first iteration, a validation and a checkpoint
            have to fit in, or be accompanied by :meth:`beat`.
    """

    def __init__(self, mpi_comm, timeout):
        if not timeout > 0:
            raise ValueError(f'timeout={timeout}: expected a positive number of seconds')
        self.timeout = timeout
        self._mpi_comm = mpi_comm
        self._stopped = threading.Event()
        self._last = time.monotonic()
        self._iteration = None
        # faulthandler prints a frame's file name: this one says which rank it is.
        watch = types.FunctionType(_watch.__code__.replace(co_filename=where(mpi_comm)), globals())
        self._thread = threading.Thread(target=watch, args=(self,), name='stall watchdog', daemon=True)
        self._thread.start()

    def beat(self, iteration=None, ahead=0):
        """Note that the job moves.

        Args:
            iteration (int or None): The last one finished, if one was.
            ahead (float): Seconds that the next step may take beside the timeout.
        """
        if iteration is not None:
            self._iteration = iteration
        self._last = time.monotonic() + ahead

    def stop(self):
        """End the watch."""
        self._stopped.set()
        self._thread.join()

    def _report(self, idle):
        last = 'none' if self._iteration is None else self._iteration
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = [f'thread {names.get(ident, ident)}:\n' + ''.join(traceback.format_stack(frame))
                  for ident, frame in sys._current_frames().items() if ident != threading.get_ident()]
        return (f'{where(self._mpi_comm)}: no iteration for {idle:.0f} s, last finished: {last}; '
                f'ending the job\n{_NETWORK * (self._iteration is None)}' + ''.join(stacks))


def _watch(watchdog):
    while True:
        # Rearmed as long as this thread gets to run, at least every quarter of timeout.
        faulthandler.dump_traceback_later(1.25 * watchdog.timeout, exit=True, file=2)
        idle = time.monotonic() - watchdog._last
        if idle >= watchdog.timeout:
            break
        if watchdog._stopped.wait(min(watchdog.timeout - idle, watchdog.timeout / 4)):
            faulthandler.cancel_dump_traceback_later()
            return
    say(watchdog._report(idle))
    time.sleep(min(5, watchdog.timeout / 2))
    end_job(watchdog._mpi_comm, EXIT_FAULT)
