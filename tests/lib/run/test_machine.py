"""What a job runs on, and whether its processes are one job: without a GPU."""

import subprocess
import sys
import types

from lib.errors import UserError
from lib.run import machine

import numpy as np
import pytest

from tests import ranks_cases

SCRIPT = 'tests/lib/run/ranks_machine.py'


@pytest.mark.parametrize('case', ranks_cases.names(SCRIPT))
def test_on_ranks(assert_on_ranks, case):
    assert_on_ranks(SCRIPT, 2, case)


ONE_PROCESS = types.SimpleNamespace(Get_size=lambda: 1)


@pytest.mark.parametrize('variable', ['OMPI_COMM_WORLD_SIZE', 'PMI_SIZE'])
def test_processes_that_do_not_know_of_each_other_are_found(monkeypatch, variable):
    monkeypatch.delenv('OMPI_COMM_WORLD_SIZE', raising=False)
    monkeypatch.delenv('PMI_SIZE', raising=False)
    machine.check_job(ONE_PROCESS, {'version': 1})
    monkeypatch.setenv(variable, '2')
    with pytest.raises(UserError, match='started 2 processes, but each takes itself for the only one'):
        machine.check_job(ONE_PROCESS, {'version': 1})


def test_versions_do_not_start_mpi():
    program = ('import sys\nfrom lib.run import machine\nfound = machine.versions()\n'
               'assert "mpi4py.MPI" not in sys.modules\nprint(found)')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"'numpy': '{np.__version__}'" in done.stdout and "'chainer': '7.8.1'" in done.stdout


def test_gpus_are_counted_by_name():
    assert machine.count_gpus(['P100'] * 3 + ['V100']) == '3 x P100, 1 x V100'


@pytest.mark.parametrize('hosts, text', [
    ([('a', '2-core Xeon')], '1 process on 2-core Xeon'),
    ([('a', '2-core Xeon')] * 2, '2 processes on 2-core Xeon'),
    ([('a', '2-core Xeon'), ('b', '2-core Xeon')] * 2, '4 processes on 2 x 2-core Xeon'),
    ([('a', '2-core Xeon'), ('b', '8-core EPYC')], '2 processes on 2-core Xeon, 8-core EPYC')])
def test_computers_are_counted_with_their_processes(hosts, text):
    assert machine.count_cpus(hosts) == text
