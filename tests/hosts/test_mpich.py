"""The program under MPICH on two hosts. `make test-hosts` installs it."""

import hashlib
import os
import signal

import pytest

from tests.hosts.namespaces import ROOT, TINY, until

PYTHON = ROOT / '.venv-mpich/bin/python'
LONG = [*TINY, '--epoch', '5000', '--checkpoint-interval', '5']


@pytest.fixture(scope='module', autouse=True)
def mpich():
    if not PYTHON.exists():
        pytest.skip(f'no {PYTHON}: make test-hosts installs MPICH there')


def start(hosts, out, *options):
    """Start a long training, and wait for its first checkpoint."""
    job = hosts.launch((2, 2, 0), *LONG, *options, '--out', hosts.shared / out, python=PYTHON)
    until(lambda: list((hosts.shared / out / 'checkpoint').glob('*.npz')), 60, job)
    return job


@pytest.mark.parametrize('wire', ['float16', 'float32'])
def test_the_weights_are_those_of_open_mpi(three, wire):
    digests = set()
    for name, options in ('mpich', {'python': PYTHON}), ('open-mpi', {}):
        out = three.shared / f'{name}-{wire}'
        job = three.launch((2, 2, 0), *TINY, '--epoch', '1', '--allreduce-grad-dtype', wire, '--out', out,
                           **options)
        told = job.communicate(timeout=100)[0]
        assert job.returncode == 0, told
        digests.add(hashlib.sha256((out / 'model.npz').read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_signal_stops_all_hosts_and_the_next_start_continues_on_one(three):
    job = start(three, 'stopped')
    os.kill(job.inner, signal.SIGTERM)
    told = job.communicate(timeout=60)[0]
    assert job.returncode == 75, told
    job = three.launch((4, 0, 0), *LONG, '--out', three.shared / 'stopped', python=PYTHON)
    for line in job.stdout:
        if 'resumed from' in line:
            os.kill(job.inner, signal.SIGTERM)
    assert job.wait(timeout=60) == 75


@pytest.mark.parametrize('process', ['hydra_pmi_proxy', 'train_imagenet.py'])
def test_killed_processes_of_a_host_end_the_job(three, process):
    job = start(three, f'killed-{process}', '--stall-timeout', '10')
    three[1].kill(process)
    told = job.communicate(timeout=60)[0]
    assert job.returncode not in (0, 75), told
    until(lambda: not any(host.processes() for host in three), 20)
