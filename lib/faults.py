"""One rank's failure is the job's failure: at once, with a message that says which rank, where and why.

A rank that raises while the others wait in an all-reduce leaves them waiting for ever. What this module does
about it:

* :func:`install_excepthook`: an uncaught exception, or a rank that leaves alone, ends the job;
* :func:`collectively`, :func:`raise_together`: a step that fails on some ranks fails on all;
* :func:`check_job`: the ranks are one job, run the same program on the same data, and can add;
* :class:`StallWatchdog`: a job that stands still ends, and says where each rank stood.

``comm`` is a ChainerMN communicator throughout, or an mpi4py one, or ``None`` for one process without MPI.
"""

import atexit
import contextlib
import faulthandler
import os
import platform
import sys
import threading
import time
import traceback
import types

import numpy as np

from lib.compiled import loops, vectors
from lib.errors import EXIT_FAULT, EXIT_USER_ERROR, UserError
from lib.launcher import launched_size


class _FailedElsewhere(RuntimeError):
    """Another rank's fault, which that rank reports."""


def _mpi(comm):
    return getattr(comm, 'mpi_comm', comm)


def _host():
    return platform.node() or 'unknown'


def _where(comm):
    comm = _mpi(comm)
    rank, size = (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())
    return f'rank {rank} of {size} on host {_host()}'


def _say(text):
    """Writes to standard error in one piece, so that the ranks' messages do not interleave."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        os.write(2, text.encode('utf-8', 'backslashreplace'))


def _end_job(comm, status):
    """Ends every rank with ``status``, without a word more."""
    comm = _mpi(comm)
    if comm is not None and comm.Get_size() > 1:
        # mpirun drops what it has not read from a rank by the time of the abort; and other ranks may have the
        # same to say.
        time.sleep(1)
        # Should MPI itself be stuck, an exit without MPI_Finalize is what mpirun takes for a failure.
        faulthandler.dump_traceback_later(10, exit=True, file=2)
        with contextlib.suppress(Exception):
            comm.Abort(status)
    os._exit(status)


# Exceptions

def install_excepthook(comm, patience=120):
    """Makes the end of one rank the end of the job. Called by all ranks together.

    An uncaught exception, KeyboardInterrupt included, in the main or any other thread: one message with
    rank, host, exception and traceback, then ``MPI_Abort`` with status 1. A :class:`~lib.errors.UserError`:
    one line without a traceback, status 2.

    A rank that leaves otherwise (``sys.exit``, a return) meets the others at the exit: if they have not come
    within ``patience`` seconds it left alone, and ends the job with status 1.

    Args:
        comm: Communicator of the job, or ``None``.
        patience (float): Seconds by which ranks may end apart, for example while rank 0 writes its files.
    """
    comm, where = _mpi(comm), _where(comm)

    def end(error, thread=''):
        try:
            if isinstance(error, _FailedElsewhere):
                time.sleep(10)  # for the rank with the fault to report it and end the job
            status = EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAULT
            _say(_report(where + thread, error))
        finally:
            _end_job(comm, status)

    def excepthook(exc_type, error, trace):
        end(error)

    def thread_excepthook(args):
        if args.exc_type is not SystemExit:
            name = args.thread.name if args.thread else 'unknown'
            end(args.exc_value or args.exc_type(), f', thread {name}')

    sys.excepthook = excepthook
    threading.excepthook = thread_excepthook
    if comm is not None and comm.Get_size() > 1:
        # Messages of its own: another rank may be in the middle of a collective call on comm.
        atexit.register(_leave_together, comm, comm.Dup(), patience)


def _report(who, error):
    if isinstance(error, UserError):
        return f'{who}: {error}\n'
    message = f'{type(error).__name__}: {error}' if str(error) else type(error).__name__
    trace = traceback.format_exception(type(error), error, error.__traceback__)
    return f'{who}: {message}\n' + ''.join(trace)


def _leave_together(comm, private, patience):
    from mpi4py import MPI
    if MPI.Is_finalized():
        return
    arrival = private.Ibarrier()
    deadline = time.monotonic() + patience
    while not arrival.Test():
        if time.monotonic() > deadline:
            _say(f'{_where(comm)}: left the job, and the others did not follow within {patience} s; '
                 'ending them\n')
            _end_job(comm, EXIT_FAULT)
        time.sleep(0.01)


def collectively(comm, function):
    """Runs a set-up step on every rank; if it fails on any, it fails on all.

    Returns:
        What ``function()`` returns on this rank.

    Raises:
        UserError: On every rank, if any rank raised one; the message names ranks and hosts unless all
            failed alike.
        Exception: Any other exception is raised on the rank where it happened, which ends the job
            (:func:`install_excepthook`).
    """
    result = error = None
    try:
        result = function()
    except Exception as raised:
        error = raised
    raise_together(comm, error)
    return result


def raise_together(comm, error):
    """Raises on every rank if any rank has an error. Called by all ranks together.

    Args:
        comm: Communicator of the job, or ``None``.
        error (Exception or None): This rank's.

    Raises:
        UserError, Exception: As :func:`collectively`.
    """
    comm = _mpi(comm)
    fault = error is not None and not isinstance(error, UserError)
    outcome = (_host(), fault, None if error is None else str(error))
    outcomes = [outcome] if comm is None else comm.allgather(outcome)
    if fault:
        raise error
    faults = [rank for rank, (_, fault, _) in enumerate(outcomes) if fault]
    if faults:
        raise _FailedElsewhere(f'ended by the fault of {_name_ranks(faults, outcomes)}') from error
    failures = _group((message, rank) for rank, (_, _, message) in enumerate(outcomes) if message is not None)
    if not failures:
        return
    if len(failures[0][1]) == len(outcomes):
        message = failures[0][0]
    else:
        message = '; '.join(f'{_name_ranks(ranks, outcomes)}: {message}' for message, ranks in failures[:3])
        if len(failures) > 3:
            message += f'; {len(failures) - 3} other failures on other ranks'
    raise UserError(message) from error


def _group(pairs):
    """[(value, [ranks with it])] in the order of first appearance; values need not be hashable."""
    groups = {}
    for value, rank in pairs:
        groups.setdefault(repr(value), (value, []))[1].append(rank)
    return list(groups.values())


def _name_ranks(ranks, outcomes):
    """``ranks 0-2, 5 (hosts a, b)``; ``outcomes[rank][0]`` is a rank's host."""
    runs = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    hosts = list(dict.fromkeys(outcomes[rank][0] for rank in ranks))
    shown = ', '.join(hosts[:4]) + (f' and {len(hosts) - 4} more' if len(hosts) > 4 else '')
    numbers = ', '.join(str(first) if first == last else f'{first}-{last}' for first, last in runs[:8])
    numbers += ', ...' if len(runs) > 8 else ''
    return f'rank{"s" * (len(ranks) > 1)} {numbers} (host{"s" * (len(hosts) > 1)} {shown})'


# The start-up check

def check_job(comm, facts):
    """Checks that the ranks are one job before it starts. Called by all ranks together.

    Args:
        comm: Communicator of the job, or ``None``.
        facts (dict): What must be equal on every rank: versions, plan, sizes of the data.

    Raises:
        UserError: On every rank: a fact differs, or mpirun started more processes than MPI knows of.
        RuntimeError: An all-reduce of known values gives wrong sums.
    """
    comm = _mpi(comm)
    size = 1 if comm is None else comm.Get_size()
    launched = launched_size()
    if size == 1 and launched > 1:
        raise UserError(f'mpirun started {launched} processes, but each takes itself for the only one: '
                        "mpi4py is missing or found another MPI than mpirun's; install the extra mpi, or run "
                        'the mpirun that belongs to it')
    if size == 1:
        return
    outcomes = comm.allgather((_host(), facts))
    for name in dict.fromkeys(name for _, theirs in outcomes for name in theirs):
        groups = _group((theirs.get(name), rank) for rank, (_, theirs) in enumerate(outcomes))
        if len(groups) > 1:
            values = '; '.join(f'{value} on {_name_ranks(ranks, outcomes)}' for value, ranks in groups[:3])
            raise UserError(f'{name} differs between ranks: {values}; start every rank from the same '
                            'installation, with the same options and data')
    # Rank r gives (r + 1) k, in whole numbers that float64 holds exactly; long enough for MPI to send it the
    # way it sends gradients.
    k = np.arange(1, 1 << 16, dtype=np.float64)
    total = np.empty_like(k)
    comm.Allreduce((comm.Get_rank() + 1) * k, total)
    if not np.array_equal(total, size * (size + 1) / 2 * k):
        raise RuntimeError('an all-reduce of known values gave wrong sums: the MPI library or the network '
                           'is at fault')


def versions():
    """What runs here, by name: dict of str, in the order of interest.

    The MPI library is named only once MPI is in use, since asking would initialise it.
    """
    import chainer
    import PIL
    found = {'python': platform.python_version(), 'chainer': chainer.__version__, 'numpy': np.__version__,
             'pillow': PIL.__version__, 'loops': 'compiled' if loops else 'NumPy', 'vectors': vectors()}
    if 'mpi4py.MPI' in sys.modules:
        import mpi4py
        from mpi4py import MPI
        found['mpi4py'] = mpi4py.__version__
        found['mpi'] = MPI.Get_library_version().strip('\0 \n').splitlines()[0].split(', ')[0]
    with contextlib.suppress(Exception):  # CuPy without its CUDA libraries raises more than ImportError
        import cupy
        found['cupy'] = cupy.__version__
        from cupy.cuda import nccl
        found['nccl'] = str(nccl.get_version())
    found['host'] = _host()
    return found


# Standing still

class StallWatchdog:
    """Ends the job when no iteration has finished for ``timeout`` seconds.

    A thread watches: it says which rank stands still, since when and where (the stacks of all threads),
    leaves the other ranks a moment to say the same, and ends the job with status 1. If it cannot even run,
    because a C function keeps the interpreter lock, ``faulthandler`` writes the stacks instead and ends the
    process, at most a quarter of ``timeout`` later; the watching thread's own entry then names the rank.

    Args:
        comm: Communicator of the job, or ``None``.
        timeout (float): Seconds. The first iteration, a validation and a checkpoint have to fit in, or be
            accompanied by :meth:`beat`.
    """

    def __init__(self, comm, timeout):
        if not timeout > 0:
            raise ValueError(f'timeout={timeout}: expected a positive number of seconds')
        self.timeout = timeout
        self._comm = comm
        self._stopped = threading.Event()
        self._last = time.monotonic()
        self._iteration = None
        # faulthandler prints a frame's file name: this one says which rank it is.
        watch = types.FunctionType(_watch.__code__.replace(co_filename=_where(comm)), globals())
        self._thread = threading.Thread(target=watch, args=(self,), name='stall watchdog', daemon=True)
        self._thread.start()

    def beat(self, iteration=None):
        """The job moves; ``iteration``, if given, is the last one finished."""
        if iteration is not None:
            self._iteration = iteration
        self._last = time.monotonic()

    def stop(self):
        """Ends the watch."""
        self._stopped.set()
        self._thread.join()

    def _report(self, idle):
        last = 'none' if self._iteration is None else self._iteration
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = [f'thread {names.get(ident, ident)}:\n' + ''.join(traceback.format_stack(frame))
                  for ident, frame in sys._current_frames().items() if ident != threading.get_ident()]
        return (f'{_where(self._comm)}: no iteration for {idle:.0f} s, last finished: {last}; '
                'ending the job\n' + ''.join(stacks))


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
    _say(watchdog._report(idle))
    time.sleep(min(5, watchdog.timeout / 2))
    _end_job(watchdog._comm, EXIT_FAULT)
