"""What is seen of runs and their processes from outside. Linux only: it looks into /proc."""

import contextlib
import os
import pathlib
import signal
import time

from lib.checkpoint import directory, file

# Comparing runs

def state(out):
    """Arrays of the newest checkpoint in ``out``, and its log without what a clock has measured."""
    arrays, description = file.read(directory.list_checkpoints(out)[0])
    return arrays, description['iteration'], without_times(description['log'])


def without_times(log):
    return [{key: value for key, value in row.items()
             if not key.endswith('_time') and key != 'images_per_sec'} for row in log]


def differences(out, other):
    """Names of what differs between the newest checkpoints of two runs, in any bit; empty when nothing."""
    (arrays, iteration, log), (other_arrays, other_iteration, other_log) = state(out), state(other)
    names = [name for name in sorted(arrays.keys() | other_arrays.keys())
             if name not in arrays or name not in other_arrays
             or arrays[name].dtype != other_arrays[name].dtype
             or arrays[name].shape != other_arrays[name].shape
             or arrays[name].tobytes() != other_arrays[name].tobytes()]
    return names + ['iteration'] * (iteration != other_iteration) + ['log'] * (log != other_log)


# Killing

def processes_of(job):
    """Process numbers of mpirun's session, mpirun excepted, zombies not counted."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            status, _, _, session = path.read_text(errors='replace').rpartition(')')[2].split()[:4]
            if int(session) == job.pid and int(path.parent.name) != job.pid and status not in 'ZX':
                found.append(int(path.parent.name))
    return sorted(found)


def last_iteration(notes):
    """The last iteration done, of a run with ``notes``; 0 before the first."""
    return int((notes.exists() and notes.read_text().split() or [0])[-1])


def wait_for(condition, seconds, job=None):
    """Wait until the condition holds; return whether it does, at the latest when the job has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or (job is not None and job.poll() is not None):
            return condition()
        time.sleep(0.002)
    return True


def kill(job, target, bits):
    """SIGKILL to one rank, to mpirun or to all of a job."""
    ranks = processes_of(job)
    if target == 'rank' and ranks:
        victims = [bits.choice(ranks)]
    else:
        victims = [job.pid] * (job.poll() is None) + (ranks if target == 'all' else [])
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
