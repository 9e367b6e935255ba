"""What test_excepthook.py runs on two ranks: ``ranks_excepthook.py CASE``."""

import sys
import threading
import time

from lib.communication.collectives import collectively
from lib.errors import UserError
from lib.run import excepthook, machine

import numpy as np
from mpi4py import MPI

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


def shortage():
    if rank == 1:
        try:
            raise MemoryError('98 MiB')
        finally:
            raise ImportError('failed to map segment')
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

    collectively(comm, step)


class ReduceThatLosesRanks:
    """A communicator whose sums miss what the last rank gives."""

    def __getattr__(self, name):
        return getattr(comm, name)

    def Allreduce(self, values, total):  # noqa: N802
        comm.Allreduce(values * (rank < comm.Get_size() - 1), total)


def wrong_sums():
    machine.check_job(ReduceThatLosesRanks(), {})


case = sys.argv[1]
excepthook.install_excepthook(comm, patience=2 if case == 'exit_alone' else 60)
globals()[case]()
