"""A process's part of a job, and who watches it."""

import types

from lib.run.job import Job


def test_every_step_that_is_taken_together_is_a_beat_for_the_watchdog():
    beats = []
    alone = types.SimpleNamespace(rank=0, allgather=lambda own: [own], bcast=lambda value: value)
    job = Job(types.SimpleNamespace(rank=0, mpi_comm=alone), 'naive', None, None,
              types.SimpleNamespace(beat=lambda: beats.append(1)))
    assert (job.everyone(lambda: 5), job.first(lambda: 6)) == (5, 6)
    assert beats == [1, 1]


def test_the_watch_ends_with_the_job(mpirun):
    program = '''
import contextlib, threading
from lib.run import arguments, job
with contextlib.ExitStack() as stack:
    watchdog = job.join(arguments.parse(['--synthetic', '--stall-timeout', '60']), stack).watchdog
    print(watchdog._thread.is_alive())
print(watchdog._thread.is_alive())
'''
    assert mpirun(1, '-c', program).stdout == 'True\nFalse\n'
