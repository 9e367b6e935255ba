"""Fixtures for tests that need several ranks: they start mpirun themselves, so that plain pytest runs all."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def rank_environment():
    """The environment of a launch on one small machine, as the scripts under ``jobs/`` set it."""
    environment = dict(os.environ)
    environment.update(
        OMPI_ALLOW_RUN_AS_ROOT='1',
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1',
        OPENBLAS_NUM_THREADS='1',
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT),
    )
    return environment


def mpirun_command():
    """``mpirun`` beside this Python (the wheel), else the one on the path."""
    beside = pathlib.Path(sys.executable).parent / 'mpirun'
    command = str(beside) if beside.exists() else shutil.which('mpirun')
    if command is None:
        pytest.fail('no mpirun: install the extra "mpi" (make test does), or load your MPI')
    return [command, '--oversubscribe']


@pytest.fixture
def mpirun(tmp_path):
    """``mpirun(n, *args)`` runs ``python *args`` on ``n`` ranks and returns the CompletedProcess."""

    def run(n, *args, check=True, timeout=120, cwd=ROOT, env=None):
        command = [*mpirun_command(), '-np', str(n), sys.executable, *map(str, args)]
        done = subprocess.run(command, cwd=cwd, env={**rank_environment(), **(env or {})}, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        if check and done.returncode != 0:
            pytest.fail(f'{" ".join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}')
        return done

    return run
