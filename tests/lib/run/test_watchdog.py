"""A job that stands still, on two ranks and on one."""

import os
import re
import subprocess
import sys

from lib.run.watchdog import StallWatchdog

import numpy as np
import pytest

RANKS = os.path.join(os.path.dirname(__file__), 'ranks_watchdog.py')
HOST = re.escape(os.uname().nodename)


def test_a_stalled_job_ends_with_every_ranks_stacks(mpirun):
    done = mpirun(2, RANKS, check=False, timeout=60)
    assert done.returncode == 1
    for rank, function in ((0, '<module>'), (1, 'stand_still')):
        report = re.search(rf'^rank {rank} of 2 on host {HOST}: no iteration for \d+ s, last finished: 17; '
                           rf'ending the job\n(.*?)in {function}\n', done.stderr, re.MULTILINE | re.DOTALL)
        assert report, done.stderr
        assert 'MainThread' in report[1]


def test_a_stall_inside_c_code_that_keeps_the_interpreter_lock_ends_the_job(mpirun):
    done = mpirun(2, RANKS, 'with_lock', check=False, timeout=60)
    assert done.returncode != 0
    assert re.search(rf'File "rank 1 of 2 on host {HOST}", line \d+ in ', done.stderr), done.stderr
    assert 'in stand_still' in done.stderr


def test_a_process_that_keeps_the_interpreter_lock_ends_by_itself():
    program = '''
import ctypes, faulthandler, threading, types
from lib.run.watchdog import StallWatchdog
armed, arm = threading.Event(), faulthandler.dump_traceback_later
faulthandler.dump_traceback_later = lambda *when, **more: (arm(*when, **more), armed.set())
StallWatchdog(types.SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1), 1)
armed.wait()
ctypes.PyDLL(None).pause()
'''
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1 and done.stderr.startswith('Timeout (')


def test_a_beating_job_outlives_its_timeout_and_stop_ends_the_watch():
    # The clock and the timer are the program's own: a machine may let both threads wait.
    program = '''
import faulthandler, time, types
from lib.run import watchdog
now, armed = 0, []
watchdog.time = types.SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)
faulthandler.dump_traceback_later = lambda *when, **more: armed.append(when)
faulthandler.cancel_dump_traceback_later = armed.clear
watched = watchdog.StallWatchdog(types.SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1), 0.4)
for iteration in range(12):
    time.sleep(0.1)
    now += 0.1
    watched.beat(iteration)
print(bool(armed))
watched.stop()
print(armed)
'''
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ('True\n[]\n', '', 0)


@pytest.mark.parametrize('timeout', [0, -1, np.nan])
def test_a_timeout_is_positive(timeout):
    with pytest.raises(ValueError, match='timeout'):
        StallWatchdog(None, timeout)
