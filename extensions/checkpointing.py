"""Writes a checkpoint of the whole job at the end of an epoch, at an interval and when asked to stop."""

import dataclasses
import sys

import numpy as np
from chainer import training

from lib import checkpoint, communicators, faults
from lib.errors import UserError

_KEEP = 3  # the newest; an older one serves when a disk has damaged the last


class Checkpointing(training.Extension):
    """Gathers the job's state on rank 0, which writes it in the background.

    Runs on every process, after validation and log; the model is then bound to the averaged batch
    normalization statistics. Moving averages differ between workers: a row per worker is stored beside. The
    last one before a requested stop is waited for.

    Args:
        plan (lib.plan.Plan): The job; its identity is stored and compared at a resume.
        model (chainer.Link): Network.
        optimizer (lib.optimizers.RMSpropWarmup): Its optimizer.
        comm: ChainerMN communicator.
        statistics (lib.batch_statistics.BatchStatistics): The workers' statistics.
        job_log (extensions.JobLog): The log.
        out (str): Output directory.
        versions (dict): Versions of the software, stored for the reader.
        network (dict): What the weights are of (:func:`lib.weights.describe`), stored likewise.

    Attributes:
        failed (bool): After a requested stop, whether its checkpoint could not be written, the same on every
            process.
    """

    priority = training.PRIORITY_READER - 100
    default_name = 'Checkpointing'

    def __init__(self, plan, model, optimizer, comm, statistics, job_log, out, versions, network):
        self._plan = plan
        self._model = model
        self._optimizer = optimizer
        self._comm = comm
        self._statistics = statistics
        self._job_log = job_log
        self._out = out
        self._versions = versions
        self._network = network
        self._writer = checkpoint.BackgroundWriter()
        self.failed = False

    def __call__(self, trainer):
        mpi_comm = self._comm.mpi_comm
        sums = mpi_comm.gather(self._job_log.sums)
        rows = None
        if self._plan.recipe.bn_statistics == 'moving':
            rows = communicators.gather_rows(self._comm, self._statistics.rows_on_host())
        if self._comm.rank == 0:
            self._submit(trainer, sums, rows)
        if trainer.updater.stopping:
            # Ranks that disagreed about the exit status would leave it to chance which one the job gets.
            failure = mpi_comm.bcast(self._writer.close())
            self.failed = failure is not None
            if failure and self._comm.rank == 0:
                print(failure, file=sys.stderr, flush=True)

    def _submit(self, trainer, sums, rows):
        iteration = trainer.updater.iteration
        arrays = checkpoint.flatten(self._model, self._optimizer)
        arrays['log/sums'] = np.stack(sums)
        if rows is not None:
            arrays['workers/statistics'] = rows
        description = {
            'job': self._plan.identity(), 'iteration': iteration, 'epoch': trainer.updater.epoch_detail,
            'elapsed_time': trainer.elapsed_time, 'log': list(self._job_log.log), 'versions': self._versions,
            'network': self._network,
        }
        failure = self._writer.submit(checkpoint.path_of(self._out, iteration), arrays, description,
                                      lambda path: checkpoint.prune(self._out, _KEEP))
        if failure:
            print(f'{failure}; training goes on', file=sys.stderr, flush=True)

    def finalize(self):
        failure = self._writer.close()
        if failure:
            print(failure, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint that was read.

    Attributes:
        path (str): Where it was found.
        arrays (dict): Its arrays by name.
        description (dict): What it says of the job.
    """

    path: str
    arrays: dict
    description: dict

    @property
    def iteration(self):
        """Iterations done when it was written."""
        return self.description['iteration']


def load(path, out, comm, plan):
    """Read a checkpoint on rank 0 and give it to every process.

    Args:
        path (str): A checkpoint file, or ``auto`` for the newest valid one in ``out``.
        out (str): Output directory.
        comm: ChainerMN communicator.
        plan (lib.plan.Plan): The job, which must be the one that wrote it.

    Returns:
        Found: On every process; None if ``auto`` finds no checkpoint.

    Raises:
        UserError: On every process, if the file is missing, damaged or another job's; the message spells out
            the differences.
    """
    def read():
        if comm.rank != 0:
            return None
        if path == 'auto':
            found = checkpoint.newest_valid(out, lambda line: print(line, file=sys.stderr, flush=True))
        else:
            found = (path, *checkpoint.read(path))
        if found is None:
            return None
        found = Found(str(found[0]), *found[1:])
        differences = checkpoint.compare_jobs(found.description['job'], plan.identity())
        if differences:
            raise UserError(f'{found.path}: checkpoint of another job ({"; ".join(differences)}); resume '
                            'with the options it was started with, or choose another --out')
        return found

    found = faults.collectively(comm.mpi_comm, read)
    told = comm.mpi_comm.bcast(found and (found.path, found.description))
    if told is None:
        return None
    return Found(told[0], communicators.broadcast_arrays(comm, found and found.arrays), told[1])


def restore(found, trainer, statistics):
    """Put a checkpoint that ``load`` gave into the trainer and all that it trains.

    Args:
        found (Found): Checkpoint.
        trainer (chainer.training.Trainer): With a ``lib.updater.WorkerUpdater`` and a ``JobLog``.
        statistics (lib.batch_statistics.BatchStatistics): The workers' statistics.
    """
    updater = trainer.updater
    plan, comm, arrays = updater.plan, updater.comm, found.arrays
    checkpoint.restore(arrays, updater.model, updater.get_optimizer('main'))
    rows = arrays.get('workers/statistics')
    if rows is not None:
        first = comm.rank * plan.virtual_workers
        statistics.restore_rows(rows[first:first + plan.virtual_workers])
    sums = arrays['log/sums']
    if len(sums) != comm.size:  # other processes: what counts is their sum, whoever holds it
        sums = np.concatenate([sums.sum(axis=0, keepdims=True), np.zeros((comm.size - 1, sums.shape[1]))])
    trainer.get_extension('LogReport').restore(found.description['log'], sums[comm.rank])
    updater.iteration = found.iteration
    trainer._snapshot_elapsed_time = found.description['elapsed_time']  # as Trainer.serialize sets it
