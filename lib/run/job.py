"""The processes of a job: each on its device, joined by a communicator."""

import dataclasses
import functools
import sys
import threading
from typing import Any

from lib import errors
from lib.communication import collectives, communicators
from lib.data.decoder_pool import ImagePool
from lib.errors import UserError, shortage
from lib.run import devices, excepthook
from lib.run.watchdog import StallWatchdog

import chainer
import numpy as np

_MPI_THREADS = 8  # more than Open MPI starts of its own


@dataclasses.dataclass(frozen=True)
class Job:
    """This process's part of a job.

    Attributes:
        comm (lib.communication.communicators.MeanGradient): Joins the processes.
        communicator (str): Its name, ``pure_nccl`` or ``naive``.
        device (chainer.backend.Device): This process's.
        pool (ImagePool): Decodes this process's images.
        watchdog (StallWatchdog or None): Ends the job when it stands still.
    """

    comm: Any
    communicator: str
    device: Any
    pool: ImagePool
    watchdog: Any

    @property
    def on_cpu(self):
        """Whether the network computes on a CPU."""
        return self.device.xp is np

    def everyone(self, function, *arguments):
        """Call on every process; a failure of one is everyone's."""
        return self._step(collectives.collectively, function, *arguments)

    def first(self, function, *arguments):
        """Call on rank 0; the result, or the failure, is everyone's."""
        return self._step(collectives.first, function, *arguments)

    def _step(self, together, *call):
        result = together(self.comm.mpi_comm, *call)
        if self.watchdog:
            self.watchdog.beat()
        return result

    def say(self, text):
        """Print on rank 0, at once."""
        if self.comm.rank == 0:
            errors.say(text, sys.stdout)


def _check_threads():
    """Raise UserError unless threads can be started; where none can, MPI crashes without saying why."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(_MPI_THREADS)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise UserError(shortage(error)) from None
    finally:
        done.set()


def count_workers(args, processes):
    """Number of workers n that ``processes`` play.

    Raises:
        UserError: If there are fewer.
    """
    workers = args.workers or processes * args.virtual_workers
    if workers < processes:
        raise UserError(f'--workers {workers}: expected at least {processes}, one for each process; start '
                        f'{workers} processes')
    return workers


def join(args, stack, stop_request=None):
    """Join this process to its job. Called by every process; initializes MPI.

    Args:
        args (argparse.Namespace): The options.
        stack (contextlib.ExitStack): Closes in the end what has to be closed.
        stop_request (lib.run.signals.StopRequest or None): Heeds signals from here on.

    Returns:
        Job: With ``chainer.global_config.dtype`` set to the precision asked for.

    Raises:
        UserError: On every process, if one of them cannot take part.
    """
    # Processes that decode images start before MPI, which does not survive a fork on every network. Until
    # there is MPI, a process can only keep to itself that it has failed.
    pool = error = None
    try:
        _check_threads()
        pool = stack.enter_context(ImagePool(0 if args.synthetic else args.loaderjob, args.loader))
    except UserError as raised:
        error = raised
    world = communicators.world()
    watchdog = None
    if args.stall_timeout:  # from here on: the first message may already be stuck
        watchdog = StallWatchdog(world, args.stall_timeout)
        stack.callback(watchdog.stop)
    excepthook.install_excepthook(world)
    if stop_request:
        stop_request.joined(functools.partial(excepthook.end_job, world, grace=0.2))
    collectives.raise_together(world, error)
    name = collectives.collectively(world, devices.choose_communicator, args.communicator)
    comm = communicators.create_communicator(name, args.allreduce_grad_dtype, args.loss_scale,
                                             count_workers(args, world.size) / world.size, world)
    device = devices.bind(name, comm, args.tf32)
    collectives.check_sum(comm, device.xp)
    # Shapes are the program's own, and compared at every call of every function.
    chainer.global_config.type_check = False
    chainer.global_config.dtype = chainer.mixed16 if args.dtype == 'mixed16' else np.dtype(args.dtype)
    return Job(comm, name, device, pool, watchdog)
