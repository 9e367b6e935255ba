"""One rank's failure is the job's failure: at once, with a message that says which rank, where and why.

A rank that raises while the others wait in an all-reduce leaves them waiting forever. An uncaught exception,
or a rank that leaves alone, therefore ends the job.
"""

import atexit
import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback

from lib.communication.collectives import FailedElsewhere, host
from lib.data.decoder_pool import kill_decoders
from lib.errors import EXIT_FAULT, EXIT_USER_ERROR, UserError, printable, printable_lines, shortage


def where(mpi_comm):
    """Name this process: ``rank 3 of 8 on host n17``."""
    return f'rank {mpi_comm.Get_rank()} of {mpi_comm.Get_size()} on host {host()}'


def say(text):
    """Write to standard error in one piece, so that the ranks' messages do not interleave."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        os.write(2, printable_lines(text).encode('utf-8', 'backslashreplace'))


def end_job(mpi_comm, status, grace=1):
    """End every rank with ``status``, without a word more, after ``grace`` seconds for the words before."""
    kill_decoders()
    if mpi_comm.Get_size() > 1:
        # mpirun drops what it has not read from a rank by the time of the abort; and other ranks may have the
        # same to say.
        time.sleep(grace)
        # Should MPI itself be stuck, an exit without MPI_Finalize is what mpirun takes for a failure.
        faulthandler.dump_traceback_later(10, exit=True, file=2)
        with contextlib.suppress(Exception):
            mpi_comm.Abort(status)
    os._exit(status)


def install_excepthook(mpi_comm, patience=120):
    """Make the end of one rank the end of the job. Called by all ranks together.

    An uncaught exception, KeyboardInterrupt included, in the main or any other thread: one message with
    rank, host, exception and traceback, then ``MPI_Abort`` with status 1. A :class:`~lib.errors.UserError`,
    or a lack of memory or threads: one line without a traceback, status 2.

    A rank that leaves otherwise (``sys.exit``, a return) meets the others at the exit: if they have not come
    within ``patience`` seconds it left alone, and ends the job with status 1.

    Args:
        mpi_comm: mpi4py communicator of the job.
        patience (float): Seconds by which ranks may end apart, for example while rank 0 writes its files.
    """
    who = where(mpi_comm)

    def end(error, thread=''):
        try:
            if isinstance(error, FailedElsewhere):
                time.sleep(10)  # for the rank with the fault to report it and end the job
            mendable = isinstance(error, UserError) or shortage(error)
            status = EXIT_USER_ERROR if mendable else EXIT_FAULT
            say(_report(who + thread, error))
        finally:
            end_job(mpi_comm, status)

    def excepthook(exc_type, error, trace):
        end(error)

    def thread_excepthook(args):
        if args.exc_type is not SystemExit:
            name = args.thread.name if args.thread else 'unknown'
            end(args.exc_value or args.exc_type(), f', thread {name}')

    sys.excepthook = excepthook
    threading.excepthook = thread_excepthook
    if mpi_comm.Get_size() > 1:
        # Messages of its own: another rank may be in the middle of a collective call on mpi_comm.
        atexit.register(_leave_together, mpi_comm, mpi_comm.Dup(), patience)


def _report(who, error):
    if isinstance(error, UserError):
        return f'{who}: {error}\n'
    if shortage(error):
        return f'{who}: {printable(shortage(error))}\n'
    message = f'{type(error).__name__}: {error}' if str(error) else type(error).__name__
    trace = traceback.format_exception(type(error), error, error.__traceback__)
    return f'{who}: {message}\n' + ''.join(trace)


def _leave_together(mpi_comm, private, patience):
    from mpi4py import MPI
    if MPI.Is_finalized():
        return
    arrival = private.Ibarrier()
    deadline = time.monotonic() + patience
    while not arrival.Test():
        if time.monotonic() > deadline:
            say(f'{where(mpi_comm)}: left the job, and the others did not follow within {patience} s; '
                'ending them\n')
            end_job(mpi_comm, EXIT_FAULT)
        time.sleep(0.01)
