"""train_imagenet.py with faults at chosen iterations: what tests and ``soak.py`` start on every rank.

    mpirun -np 2 python -m jobs.faults.injection '[{"options": [...], "faults": [["SIGTERM", 1, 5]]}]'

Each run has the program's options, its faults, ``[kind, rank, iteration]`` (a signal's name or a function of
this file; iterations count from 1, the fault comes before that iteration computes anything, 0 is the set-up),
and, if given, a file ``notes`` to which rank 0 adds the number of each iteration when it is done. Pictures,
which take a second each, are drawn if ``pictures`` is true. With ``between_hosts`` the exchange knows no
shared memory, and gradients travel in several parts, as those of a large network do. A run takes seconds.
Runs follow each other in the same processes, which saves starting them; each rank prints the exit status of
each run and ends with that of the last.
"""

import contextlib
import functools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import types
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


# Starting

def mpirun(ranks, *arguments):
    """Command that runs Python with these arguments on ``ranks`` ranks: mpirun beside Python, or on PATH."""
    beside = pathlib.Path(sys.executable).parent / 'mpirun'
    command = str(beside) if beside.exists() else shutil.which('mpirun')
    return [command, '--oversubscribe', '--bind-to', 'none', '-np', str(ranks), sys.executable,
            *map(str, arguments)]


def start(ranks, *runs):
    """Starts ``runs`` (dictionaries as above) on ``ranks`` ranks, in a session of their own.

    Returns:
        subprocess.Popen: mpirun, with pipes for its output, as text.
    """
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT='1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1',
                       OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1')
    command = mpirun(ranks, '-m', 'jobs.faults.injection', json.dumps(runs, default=str))
    return subprocess.Popen(command, cwd=ROOT, env=environment,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)


# Faults, called on their rank, with the updater before its iteration; at set-up with None.

def send(name, updater):
    """A signal to this rank."""
    os.kill(os.getpid(), getattr(signal, name))


def build(updater):
    """The network cannot be built."""
    import models

    def fail(*arguments):
        raise ValueError('injected into build')
    models.build = fail


def forward(updater):
    """An exception in the network."""
    def fail(x):
        raise ValueError('injected into forward')
    updater.model.fc.forward = fail


def backward(updater):
    """An exception in the middle of backward, when gradients of its first stages are under way."""
    def fail(params):
        raise ValueError('injected into backward')
    _after_the_first_part(updater, fail)


def kill_backward(updater):
    """SIGKILL in the middle of backward, when gradients of its first stages are under way."""
    _after_the_first_part(updater, lambda params: os.kill(os.getpid(), signal.SIGKILL))


def _after_the_first_part(updater, act):
    started = []

    def count(params):
        if started:
            act(params)
        started.append(params)
    _before_each_part(updater, count)


def _before_each_part(updater, act):
    """Calls ``act(params)`` when the gradients of a part are there and have not left."""
    start = updater.comm.start_mean_grad

    def act_and_start(params, *arguments):
        act(params)
        start(params, *arguments)
    updater.comm.start_mean_grad = act_and_start


def collective(updater):
    """An exception of MPI, while the others wait in the exchange of gradients."""
    updater.comm.finish_mean_grad = lambda: updater.comm.mpi_comm.bcast(None, root=99)


def decoder(updater):
    """A decoder process is killed."""
    _pools[-1]._decoder._processes[0].kill()


def stall(updater):
    """Stands still forever."""
    threading.Event().wait()


def stall_build(updater):
    """Stands still in the set-up."""
    import models
    models.build = lambda *arguments: stall(updater)


def nan_loss(updater):
    """The network's output is NaN."""
    true_forward = updater.model.fc.forward
    updater.model.fc.forward = lambda x: true_forward(x) * float('nan')


def nan_gradient(updater):
    """The loss is fine, the gradients of the last two parameters, by name, hold a NaN."""
    last = dict(sorted(updater.model.namedparams())[-2:])

    def spoil(params):
        for name, param in params:
            if name in last:
                param.grad.flat[0] = float('nan')
    _before_each_part(updater, spoil)


def full_disk(updater):
    """No file grows beyond 2000 bytes from now on."""
    _limit_files(2000)


def free_disk(updater):
    """The end of full_disk."""
    _limit_files(None)


def _limit_files(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def kill_before_rename(updater):
    """SIGKILL when a checkpoint is written and has not got its name."""
    from lib import files
    files.os = types.SimpleNamespace(
        **{**vars(os), 'replace': lambda *paths: os.kill(os.getpid(), signal.SIGKILL)})


# On each rank

_pools = []


def run(options, faults=(), notes=None, pictures=False, between_hosts=False):
    """One run of the program in this process; returns its exit status and the iterations done."""
    from lib import updater
    from lib.communication import allreduce, launcher
    from lib.run import job

    import train_imagenet
    from extensions import Plots
    from models import stages

    rank = launcher.launched_rank()
    due = {}
    for kind, of_rank, iteration in faults:
        if of_rank == rank:
            due.setdefault(iteration, []).append(globals().get(kind) or functools.partial(send, kind))

    done = 0

    class Updater(updater.WorkerUpdater):
        def update(self):
            nonlocal done
            for act in due.pop(self.iteration + 1, ()):
                act(self)
            super().update()
            done = self.iteration
            if notes and rank == 0:
                with open(notes, 'a') as file:
                    file.write(f'{self.iteration}\n')

    class Pool(job.ImagePool):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            _pools.append(self)

    with contextlib.ExitStack() as replaced:
        replaced.enter_context(mock.patch.object(train_imagenet, 'WorkerUpdater', Updater))
        replaced.enter_context(mock.patch.object(job, 'ImagePool', Pool))
        replaced.enter_context(mock.patch.object(sys, 'argv', ['train_imagenet.py', *options]))
        if not pictures:
            replaced.enter_context(mock.patch.object(Plots, '_save', lambda *arguments: None))
        if between_hosts:
            replaced.enter_context(mock.patch.object(allreduce, '_share_memory', lambda *arguments: None))
            replaced.enter_context(mock.patch.multiple(stages, _PART=1000, _PART_PER_PROCESS=0))
        for act in due.pop(0, ()):
            act(None)
        return train_imagenet.main(), done


def main():
    from lib.communication import launcher
    for number, described in enumerate(json.loads(sys.argv[1])):
        status, done = run(**described)
        print(f'run {number} on rank {launcher.launched_rank()}: exit {status}, iteration {done}',
              flush=True)
    return status


if __name__ == '__main__':
    sys.exit(main())
