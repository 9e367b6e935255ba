import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from lib.errors import UserError
from lib.run import excepthook as faults

RANKS = os.path.join(os.path.dirname(__file__), 'ranks_excepthook.py')
HOST = re.escape(os.uname().nodename)


# On two ranks

@pytest.mark.parametrize('case, status, message', [
    ('exception', 1, rf'^rank 1 of 2 on host {HOST}: ValueError: a batch\nof nothing\nTraceback '),
    ('user_error', 2, rf'^rank 1 of 2 on host {HOST}: train.txt: 3 columns, expected 2\n'),
    ('thread', 1, rf'^rank 1 of 2 on host {HOST}, thread loader: ValueError: in the loader\nTraceback '),
    ('exit_alone', 1, rf'^rank 1 of 2 on host {HOST}: left the job, and the others did not follow'),
    ('wrong_sums', 1, rf'^rank . of 2 on host {HOST}: RuntimeError: an all-reduce of known values'),
])
def test_one_ranks_end_is_the_jobs_end(mpirun, case, status, message):
    start = time.monotonic()
    done = mpirun(2, RANKS, case, check=False, timeout=60)
    assert time.monotonic() - start < 30
    assert done.returncode == status
    assert re.search(message, done.stderr, re.MULTILINE), done.stderr
    assert 'went on' not in done.stdout


def test_a_fault_in_a_common_step_is_reported_by_its_rank_alone(mpirun):
    done = mpirun(2, RANKS, 'fault_in_common_step', check=False, timeout=60)
    assert done.returncode == 1
    assert re.search(rf'^rank 1 of 2 on host {HOST}: ValueError: not the user$', done.stderr, re.MULTILINE)
    assert done.stderr.count('Traceback') == 1
    assert 'rank 0 of 2' not in done.stderr


def test_ranks_that_leave_together_keep_their_status(mpirun):
    done = mpirun(2, RANKS, 'exit_together', check=False, timeout=60)
    assert done.returncode == 75
    assert 'left the job' not in done.stderr


def test_a_stalled_job_ends_with_every_ranks_stacks(mpirun):
    done = mpirun(2, RANKS, 'stall', check=False, timeout=60)
    assert done.returncode == 1
    for rank, function in ((0, 'wait_for_the_other'), (1, 'stand_still')):
        report = re.search(rf'^rank {rank} of 2 on host {HOST}: no iteration for 2 s, last finished: 17; '
                           rf'ending the job\n(.*?)in {function}\n', done.stderr, re.MULTILINE | re.DOTALL)
        assert report, done.stderr
        assert 'MainThread' in report[1]


def test_a_stall_inside_c_code_that_keeps_the_interpreter_lock_ends_the_job(mpirun):
    done = mpirun(2, RANKS, 'stall', 'with_lock', check=False, timeout=60)
    assert done.returncode != 0
    assert re.search(rf'File "rank 1 of 2 on host {HOST}", line \d+ in ', done.stderr), done.stderr
    assert 'in stand_still' in done.stderr


def test_all_ranks_learn_the_same_of_a_step_that_failed_on_some(mpirun):
    lines = mpirun(2, RANKS, 'agreement').stdout.splitlines()
    first, second = lines[:8], lines[8:]
    assert (first[0], second[0]) == ('returned 0', 'returned 1')
    assert first[1:] == second[1:]
    host = os.uname().nodename
    assert first[1:4] == [
        f'UserError rank 1 (host {host}): no data',
        'UserError no data',
        f'UserError rank 0 (host {host}): no data 0; rank 1 (host {host}): no data 1',
    ]
    assert first[4] == 'returned None'
    assert first[5].startswith(f'UserError version differs between ranks: 1 on rank 0 (host {host}); '
                               f'2 on rank 1 (host {host})')
    assert first[6].startswith(f'UserError n_train differs between ranks: None on rank 0 (host {host}); '
                               f'5 on rank 1 (host {host})')
    assert re.match(r'mpi \S+', first[7])


# On one process

def run(code, **env):
    return subprocess.run([sys.executable, '-c', 'from lib.run import excepthook as faults\n' + code],
                          text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), **env})


RANK = '''
import os, sys, threading

class Comm:  # one of eight ranks, of which the others are not there
    def Get_rank(self): return 3
    def Get_size(self): return 8
    def Dup(self): return self
    def Abort(self, status):
        print('abort', status, flush=True)
        os._exit(9)

faults.install_excepthook(Comm())
'''


@pytest.mark.parametrize('code, status, message', [
    ('1 / 0', 1, 'ZeroDivisionError: division by zero'),
    ('raise KeyboardInterrupt', 1, 'KeyboardInterrupt'),
    ('raise MemoryError', 1, 'MemoryError'),
    ('from lib.errors import UserError; raise UserError("no such file")', 2, 'no such file'),
    ('sys.stderr.close(); sys.stdout.close(); sys.stdout = os.fdopen(1, "w"); raise ValueError(1)', 1,
     'ValueError: 1'),
])
def test_any_uncaught_exception_aborts_with_rank_and_host(code, status, message):
    done = run(RANK + code)
    assert done.stderr.startswith(f'rank 3 of 8 on host {os.uname().nodename}: {message}\n')
    assert done.stdout == f'abort {status}\n'
    assert ('Traceback' in done.stderr) == (status == 1)


def test_an_abort_that_fails_still_ends_the_process():
    done = run(RANK + 'def abort(status): raise RuntimeError\nComm.Abort = staticmethod(abort)\n1 / 0')
    assert done.returncode == 1
    assert 'ZeroDivisionError' in done.stderr


def test_an_abort_that_hangs_still_ends_the_process():
    code = RANK.replace("print('abort', status, flush=True)", 'threading.Event().wait()')
    code += ('import faulthandler\nlater = faulthandler.dump_traceback_later\n'
             'faulthandler.dump_traceback_later = lambda timeout, **more: later(timeout / 50, **more)\n')
    assert run(code + '1 / 0').returncode == 1


def test_what_was_printed_before_a_fault_is_not_lost():
    done = run('faults.install_excepthook(None)\nprint("so far")\n1 / 0')
    assert (done.stdout, done.returncode) == ('so far\n', 1)
    assert done.stderr.startswith(f'rank 0 of 1 on host {os.uname().nodename}: ZeroDivisionError')


def test_system_exit_in_a_thread_ends_the_thread_only():
    done = run('import sys, threading\nfaults.install_excepthook(None)\n'
               'threading.Thread(target=sys.exit, args=(3,)).start()')
    assert (done.stderr, done.returncode) == ('', 0)


def test_a_beating_job_outlives_its_timeout_and_stop_ends_the_watch():
    done = run('''
import time
watchdog = faults.StallWatchdog(None, 0.4)
for iteration in range(12):
    time.sleep(0.1)
    watchdog.beat(iteration)
watchdog.stop()
time.sleep(0.8)
print('finished')
''')
    assert (done.stdout, done.stderr, done.returncode) == ('finished\n', '', 0)


@pytest.mark.parametrize('timeout', [0, -1, np.nan])
def test_a_timeout_is_positive(timeout):
    with pytest.raises(ValueError, match='timeout'):
        faults.StallWatchdog(None, timeout)


class EightRanks:
    """Rank 0's view of eight ranks on two hosts, of which all but rank 0 gave the outcomes listed."""

    def __init__(self, outcomes):
        self.outcomes = outcomes

    def allgather(self, own):
        return [own, *self.outcomes]


def test_ranks_and_hosts_are_named_in_ranges():
    comm = EightRanks([(f'n{rank // 4}', False, 'no data' if rank in (1, 2, 3, 6) else None)
                       for rank in range(1, 8)])
    with pytest.raises(UserError, match=r'^ranks 1-3, 6 \(hosts n0, n1\): no data$'):
        faults.collectively(comm, lambda: None)


def test_many_different_failures_still_make_one_line():
    comm = EightRanks([('n', False, f'failure {rank}') for rank in range(1, 8)])
    with pytest.raises(UserError, match='^rank 1 .*failure 1; .*failure 3; 4 other failures on other'):
        faults.collectively(comm, lambda: None)


def test_a_communicator_of_chainermn_will_do():
    class FromChainerMN:
        mpi_comm = EightRanks([('n', False, None)] * 7)

    assert faults.collectively(FromChainerMN(), lambda: 5) == 5


def test_without_mpi_a_step_returns_or_raises_what_it_raised():
    assert faults.collectively(None, lambda: 5) == 5
    with pytest.raises(UserError, match='^no data$'):
        faults.raise_together(None, UserError('no data'))
    with pytest.raises(ZeroDivisionError):
        faults.collectively(None, lambda: 1 / 0)


@pytest.mark.parametrize('variable', ['OMPI_COMM_WORLD_SIZE', 'PMI_SIZE'])
def test_processes_that_do_not_know_of_each_other_are_found(monkeypatch, variable):
    monkeypatch.delenv('OMPI_COMM_WORLD_SIZE', raising=False)
    monkeypatch.delenv('PMI_SIZE', raising=False)
    faults.check_job(None, {'version': 1})
    monkeypatch.setenv(variable, '4')
    with pytest.raises(UserError, match='started 4 processes, but each takes itself for the only one'):
        faults.check_job(None, {'version': 1})


def test_versions_do_not_start_mpi():
    done = run('import sys\nfound = faults.versions()\nassert "mpi4py.MPI" not in sys.modules\nprint(found)')
    assert done.returncode == 0, done.stderr
    assert f"'numpy': '{np.__version__}'" in done.stdout and "'chainer': '7.8.1'" in done.stdout
