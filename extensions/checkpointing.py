"""Writes a checkpoint of the whole job at the end of an epoch, at an interval and when asked to stop."""

from lib import errors
from lib.checkpoint import directory, state
from lib.checkpoint.writer import BackgroundWriter
from lib.communication.collectives import gather_rows

import numpy as np
from chainer import training

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
        network (dict): What the weights are of (:func:`lib.checkpoint.weights.describe`), stored likewise.

    Attributes:
        failed (bool): After a requested stop, whether its checkpoint could not be written, the same on every
            process.
    """

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
        self._writer = BackgroundWriter()
        self.failed = False

    def __call__(self, trainer):
        mpi_comm = self._comm.mpi_comm
        sums = mpi_comm.gather(self._job_log.sums)
        rows = None
        if self._plan.recipe.bn_statistics == 'moving':
            rows = gather_rows(self._comm, self._statistics.rows_on_host())
        if self._comm.rank == 0:
            self._submit(trainer, sums, rows)
        if trainer.updater.stopping:
            # Ranks that disagreed about the exit status would leave it to chance which one the job gets.
            failure = mpi_comm.bcast(self._writer.close())
            self.failed = failure is not None
            if failure and self._comm.rank == 0:
                errors.say_line(failure)

    def _submit(self, trainer, sums, rows):
        iteration = trainer.updater.iteration
        arrays = state.flatten(self._model, self._optimizer)
        arrays['log/sums'] = np.stack(sums)
        if rows is not None:
            arrays['workers/statistics'] = rows
        description = {
            'job': self._plan.identity(), 'iteration': iteration, 'epoch': trainer.updater.epoch_detail,
            'elapsed_time': trainer.elapsed_time, 'log': list(self._job_log.log), 'versions': self._versions,
            'network': self._network,
        }
        failure = self._writer.submit(directory.path_of(self._out, iteration), arrays, description,
                                      lambda path: directory.prune(self._out, _KEEP))
        if failure:
            errors.say_line(f'{failure}; training goes on')

    def finalize(self):
        failure = self._writer.close()
        if failure:
            errors.say_line(failure)
