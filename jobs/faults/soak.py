"""Kill a training again and again, let it continue, and compare it with one that was never stopped.

    python -m jobs.faults.soak [--kills 50] [--out DIR] [--seed 0]

SIGKILL comes at random moments, between the start of the processes and the end of an iteration, to one rank,
to mpirun or to all at once; with ``--checkpoint-interval 1`` many kills meet a checkpoint half written. After
each one every file that has a checkpoint's name must be whole and no process be left, and the next start must
continue from the newest. In the end parameters, optimizer state, statistics and log must be those of the
uninterrupted run, byte for byte. Exit status 1 if anything was lost. A kill takes about six seconds on two
cores. Linux only: it looks into /proc.
"""

import argparse
import contextlib
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time

from lib import errors
from lib.checkpoint import directory, file
from lib.data import sample_set

from jobs.faults import injection

PATIENCE = 30  # seconds within which nothing of a killed job may be left

# What of a job the kill takes; a rank that dies alone, and mpirun dying alone, must end the others.
TARGETS = ('rank', 'mpirun', 'all')

COLUMNS = '{:>4}  {:<7}{:>9}{:>6}{:>9}  {}'


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
            status, _, _, session = path.read_text().rpartition(')')[2].split()[:4]
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


class Soak:
    """A training that is killed ``kills`` times.

    Args:
        folder (pathlib.Path): Where its output goes; empty.
        options (list of str): Data and options of the program, without ``--out``.
        ranks (int): Processes.
        seed (int): Of the moments and targets.
        report (callable): Called with a line per kill.

    Attributes:
        rows (list of dict): Of each kill: ``target``, iterations ``done`` by then, ``lost`` of them, whether
            a checkpoint was ``half_written``, ``seconds`` until nothing was left of the job.
        problems (list of str): What should not have happened.
    """

    def __init__(self, folder, options, ranks=2, seed=0, report=lambda line: None):
        self.out = folder / 'killed'
        self.uninterrupted = folder / 'uninterrupted'
        self.rows = []
        self.problems = []
        self._notes = folder / 'notes'
        self._options = [*map(str, options), '--checkpoint-interval', '1', '--resume', 'auto', '--out']
        self._ranks = ranks
        self._bits = random.Random(seed)
        self._report = report

    def _start(self, out):
        self._notes.write_text('')
        return injection.start(self._ranks, {'options': [*self._options, out], 'notes': self._notes})

    def run(self, kills):
        """The uninterrupted run, the one that is killed, and the comparison."""
        began = time.monotonic()
        job = self._start(self.uninterrupted)
        wait_for(lambda: last_iteration(self._notes), 600, job)
        start_up = time.monotonic() - began
        self._expect_success(job, self.uninterrupted)
        iteration = (time.monotonic() - began - start_up) / last_iteration(self._notes)
        self._report(COLUMNS.format('kill', 'target', 'at', 'lost', 'gone', 'then'))

        newest = 0
        for number in range(kills):
            newest = self._kill_once(number, newest, start_up, iteration)
        job = self._start(self.out)
        self._check_resumed(self._expect_success(job, self.out), newest)
        found = differences(self.out, self.uninterrupted)
        if found:
            self.problems.append(f'not the uninterrupted run: {", ".join(found)} differ')
        if any(self.out.rglob('*.partial-*')):
            self.problems.append('the half-written file of a killed process was not removed')
        return self

    def _expect_success(self, job, folder):
        out, err = job.communicate()
        if job.returncode or not (folder / errors.FINISHED_MARK).exists():
            raise RuntimeError(f'not finished, exit status {job.returncode}\n{out}\n{err}')
        return out + err

    def _kill_once(self, number, newest, start_up, iteration):
        """Start, kill, look at what is left; return the iteration of the newest checkpoint."""
        bits = self._bits
        target = bits.choice(TARGETS)
        job = self._start(self.out)
        if bits.random() < 0.2:
            wait_for(lambda: False, bits.uniform(0, start_up), job)
        else:
            more = bits.randint(0, 5)
            wait_for(lambda: last_iteration(self._notes) >= newest + more, 600, job)
            wait_for(lambda: False, bits.uniform(0, iteration), job)
        if job.poll() is not None:
            raise RuntimeError(f'kill {number}: the run ended before it: give it more epochs')
        kill(job, target, bits)
        killed = time.monotonic()
        if not wait_for(lambda: job.poll() is not None and not processes_of(job), PATIENCE):
            self.problems.append(f'kill {number} ({target}): still there after {PATIENCE} s')
            kill(job, 'all', bits)
        seconds = time.monotonic() - killed
        out, err = job.communicate()
        if job.returncode == 0:
            self.problems.append(f'kill {number} ({target}): exit status 0')
        self._check_resumed(out + err, newest)

        # All of what has the name of a checkpoint is one.
        done = last_iteration(self._notes) or newest
        paths = directory.list_checkpoints(self.out)
        for path in paths:
            try:
                file.read(path)
            except file.DamagedCheckpoint as error:
                self.problems.append(f'kill {number} ({target}): {error}')
        half_written = any(self.out.glob('checkpoint/*.partial-*'))
        now = int(re.search(r'(\d+)\.npz', paths[0].name)[1]) if paths else 0
        # The last iteration's checkpoint may be about to begin while the one before is being written.
        lost = max(done - now, 0)
        if lost > 2 or now < newest:
            self.problems.append(f'kill {number} ({target}): {done} iterations done, {now} kept')
        self.rows.append(dict(target=target, done=done, lost=lost, half_written=half_written,
                              seconds=seconds))
        self._report(COLUMNS.format(number + 1, target, done, lost, f'{seconds:.1f} s',
                                    'a checkpoint half written' if half_written else ''))
        return now

    def _check_resumed(self, text, newest):
        """A job that got as far as saying where it begins began with the newest checkpoint."""
        resumed = re.search(r'resumed from .* at iteration (\d+)', text)
        elsewhere = resumed and int(resumed[1]) != newest or newest and 'starting afresh' in text
        if 'passing over' in text or elsewhere:
            self.problems.append(f'iteration {newest} was there, but: {text[-2000:]}')

    def summary(self):
        """The table's last lines."""
        lost = [row['lost'] for row in self.rows]
        return '\n'.join([
            f'kills                     {len(self.rows)} (' + ', '.join(
                f'{target} {sum(row["target"] == target for row in self.rows)}' for target in TARGETS) + ')',
            f'met a half-written file   {sum(row["half_written"] for row in self.rows)}',
            f'iterations lost           {sum(lost)} in all, at most {max(lost)} by one kill',
            f'until nothing was left    at most {max(row["seconds"] for row in self.rows):.1f} s',
            f'problems                  {len(self.problems)}', *self.problems,
            'the same bytes as the uninterrupted run' if not self.problems else 'FAILED'])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--out', type=pathlib.Path, help='keep what the runs leave, in this new directory')
    parser.add_argument('--seed', type=int, default=0, help='of moments and targets')
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.out or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        # Where a killed mpirun leaves its directory, which stops a later one of the same process number.
        os.environ['PRTE_MCA_prte_tmpdir_base'] = stack.enter_context(tempfile.TemporaryDirectory())
        began = time.monotonic()
        # A kill comes after 2.5 further iterations on average; twice as many are there.
        epochs = (5 * args.kills + 20) * 16 / sample_set.N_TRAIN
        soak = Soak(folder, ['--arch', 'resnet8', '--insize', '16', '-j', '0', '-B', 8, '-E', epochs],
                    seed=args.seed, report=lambda line: print(line, flush=True)).run(args.kills)
        print(soak.summary())
        print(f'{time.monotonic() - began:.0f} s')
    return bool(soak.problems)


if __name__ == '__main__':
    sys.exit(main())
