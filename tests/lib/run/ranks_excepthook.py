"""What test_faults.py runs on two ranks: ``ranks_faults.py CASE``."""

import ctypes
import sys
import threading
import time

import numpy as np
from mpi4py import MPI

from lib.errors import UserError
from lib.run import excepthook as faults

comm = MPI.COMM_WORLD
rank = comm.Get_rank()


def wait_for_the_other():
    """As in an all-reduce whose other side never comes; the sum would be wrong if it did."""
    total = np.zeros(1)
    comm.Allreduce(np.ones(1), total)
    print(f'rank {rank} went on', flush=True)


def exception():
    if rank == 1:
        raise ValueError('a batch\nof nothing')
    wait_for_the_other()


def user_error():
    if rank == 1:
        raise UserError('train.txt: 3 columns, expected 2')
    wait_for_the_other()


def thread():
    if rank == 1:
        def work():
            threading.current_thread().name = 'loader'
            raise ValueError('in the loader')
        threading.Timer(0.2, work).start()
        comm.recv()  # the main thread is in MPI meanwhile
    wait_for_the_other()


def exit_alone():
    if rank == 1:
        sys.exit(3)
    wait_for_the_other()


def exit_together():
    if rank == 1:
        time.sleep(0.5)
    sys.exit(75)


def fault_in_common_step():
    def step():
        if rank == 1:
            raise ValueError('not the user')

    faults.collectively(comm, step)


def stall():
    with_lock = len(sys.argv) > 2
    watchdog = faults.StallWatchdog(comm, 2)
    watchdog.beat(17)
    if rank == 1:
        stand_still(with_lock)
    wait_for_the_other()


def stand_still(with_lock):
    if with_lock:
        ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter lock
    time.sleep(60)


def told(function, *args):
    try:
        return f'returned {function(*args)}'
    except UserError as error:
        return f'UserError {error}'


def agreement():
    """Prints what each rank learns, one line per case, the ranks in turn."""
    def on(ranks, message):
        def step():
            if rank in ranks:
                raise UserError(message)
            return rank
        return step

    lines = [
        told(faults.collectively, comm, on([], '')),
        told(faults.collectively, comm, on([1], 'no data')),
        told(faults.collectively, comm, on([0, 1], 'no data')),
        told(faults.collectively, comm, on([0, 1], f'no data {rank}')),
        told(faults.check_job, comm, {'version': 1, 'sizes': [1, 2]}),
        told(faults.check_job, comm, {'version': 1 + rank, 'sizes': [1, 2]}),
        told(faults.check_job, comm, {'version': 1, **({'n_train': 5} if rank else {})}),
        f'mpi {faults.versions()["mpi"]}',
    ]
    gathered = comm.gather(lines)
    if rank == 0:
        for theirs in gathered:
            print(*theirs, sep='\n', flush=True)


class ReduceThatLosesRanks:
    """A communicator whose sums miss what the last rank gives."""

    def __getattr__(self, name):
        return getattr(comm, name)

    def Allreduce(self, values, total):  # noqa: N802
        comm.Allreduce(values * (rank < comm.Get_size() - 1), total)


def wrong_sums():
    faults.check_job(ReduceThatLosesRanks(), {})


faults.install_excepthook(comm, patience=2)
globals()[sys.argv[1]]()
