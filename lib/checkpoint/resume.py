"""Resuming: the checkpoint that belongs to this job, given to every process and put into the trainer."""

import dataclasses
import json

from lib import errors
from lib.checkpoint import directory, file, state
from lib.communication import collectives
from lib.errors import UserError

import numpy as np

_SUMS = 3  # of the row of the log under way: minibatches, loss, accuracy


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
            found = directory.newest_valid(out, errors.say_line)
        else:
            found = (path, *file.read(path))
        if found is None:
            return None
        found = Found(str(found[0]), *found[1:])
        differences = compare_jobs(found.description['job'], plan.identity())
        if differences:
            raise UserError(f'{found.path}: checkpoint of another job ({"; ".join(differences)}); resume '
                            'with the options it was started with, or choose another --out')
        _check_rows(found, plan)
        return found

    found = collectives.collectively(comm.mpi_comm, read)
    told = comm.mpi_comm.bcast(found and (found.path, found.description))
    if told is None:
        return None
    return Found(told[0], collectives.broadcast_arrays(comm, found and found.arrays), told[1])


def _check_rows(found, plan):
    """Refuse a checkpoint of this job whose rows per process or worker are missing or of another shape."""
    sums, rows = found.arrays.get('log/sums'), found.arrays.get('workers/statistics')
    if sums is None or sums.shape[1:] != (_SUMS,) or sums.dtype != np.float64:
        raise file.DamagedCheckpoint(found.path, 'without the sums of the log')
    needed = plan.recipe.bn_statistics == 'moving'
    if rows is None and needed or rows is not None and (
            rows.shape != (plan.workers, plan.n_statistics) or rows.dtype != np.float32):
        raise file.DamagedCheckpoint(found.path, "without the workers' statistics")


def restore(found, trainer):
    """Put a checkpoint that ``load`` gave into the trainer and all that it trains.

    Args:
        found (Found): Checkpoint.
        trainer (chainer.training.Trainer): With a ``lib.updater.WorkerUpdater`` and a ``JobLog``.
    """
    updater = trainer.updater
    plan, comm, arrays = updater.plan, updater.comm, found.arrays
    state.restore(arrays, updater.model, updater.get_optimizer('main'))
    rows = arrays.get('workers/statistics')
    if rows is not None:
        workers = plan.workers_of(comm.rank)
        updater.statistics.restore_rows(rows[workers.start:workers.stop])
    sums = arrays['log/sums']
    if len(sums) != comm.size:  # other processes: what counts is their sum, whoever holds it
        sums = np.concatenate([sums.sum(axis=0, keepdims=True), np.zeros((comm.size - 1, sums.shape[1]))])
    trainer.get_extension('LogReport').restore(found.description['log'], sums[comm.rank])
    updater.iteration = found.iteration
    trainer._snapshot_elapsed_time = found.description['elapsed_time']  # as Trainer.serialize sets it


def compare_jobs(saved, current):
    """Compare what must agree between a checkpoint's job and this one.

    Args:
        saved (dict): What the checkpoint's description says of its job.
        current (dict): The same of this job; dictionaries may be nested. Lists and tuples are alike, as JSON
            has it.

    Returns:
        list of str: A phrase for each difference, such as ``seed: 0 in the checkpoint, 1 now``.
    """
    saved, current = (dict(_leaves(json.loads(json.dumps(job)))) for job in (saved, current))
    return [f'{name}: {_phrase(saved, name)} in the checkpoint, {_phrase(current, name)} now'
            for name in dict.fromkeys([*current, *saved])
            if name not in saved or name not in current or saved[name] != current[name]]


def _leaves(job, prefix=''):
    for name, value in job.items():
        if isinstance(value, dict):
            yield from _leaves(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _phrase(job, name):
    if name not in job:
        return 'not given'
    value = job[name]
    return value if isinstance(value, str) else json.dumps(value)
