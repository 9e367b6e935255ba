import os
import re
import subprocess
import sys
import time

import pytest

RANKS = os.path.join(os.path.dirname(__file__), 'ranks_excepthook.py')
HOST = re.escape(os.uname().nodename)


# On two ranks

@pytest.mark.parametrize('case, status, message', [
    ('exception', 1, rf'^rank 1 of 2 on host {HOST}: ValueError: a batch\nof nothing\nTraceback '),
    ('user_error', 2, rf'^rank 1 of 2 on host {HOST}: train.txt: 3 columns, expected 2\n'),
    ('shortage', 2, rf'^rank 1 of 2 on host {HOST}: out of memory \(98 MiB\); use a .*\n(?!Traceback)'),
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


# On one process

def run(code, **env):
    return subprocess.run([sys.executable, '-c', 'from lib.run import excepthook\n' + code],
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

excepthook.install_excepthook(Comm())
'''


ALONE = '''
class Comm:
    def Get_rank(self): return 0
    def Get_size(self): return 1

excepthook.install_excepthook(Comm())
'''


@pytest.mark.parametrize('code, status, message', [
    ('1 / 0', 1, 'ZeroDivisionError: division by zero'),
    ('raise KeyboardInterrupt', 1, 'KeyboardInterrupt'),
    ('raise LookupError', 1, 'LookupError'),
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
    done = run(ALONE + 'print("so far")\n1 / 0')
    assert (done.stdout, done.returncode) == ('so far\n', 1)
    assert done.stderr.startswith(f'rank 0 of 1 on host {os.uname().nodename}: ZeroDivisionError')


def test_system_exit_in_a_thread_ends_the_thread_only():
    done = run(ALONE + 'import sys, threading\n'
               'threading.Thread(target=sys.exit, args=(3,)).start()')
    assert (done.stderr, done.returncode) == ('', 0)
