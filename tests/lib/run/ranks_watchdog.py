"""What test_watchdog.py runs on two ranks: one of them stands still, with ``with_lock`` in C code."""

import ctypes
import sys
import time

from lib.run.watchdog import StallWatchdog

from mpi4py import MPI

comm = MPI.COMM_WORLD


def stand_still(with_lock):
    if with_lock:
        ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter lock
    time.sleep(60)


watchdog = StallWatchdog(comm, 2)
watchdog.beat(17)
if comm.Get_rank() == 1:
    stand_still('with_lock' in sys.argv)
comm.Barrier()
print('went on', flush=True)
