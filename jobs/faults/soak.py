"""Faults drawn by a seed, for as long as it is told; counts how many of each were survived.

    python -m jobs.faults.soak [--minutes 10] [--out DIR] [--seed 0]

A training is killed at random moments, asked to stop, or its disk is full for a while; checkpoints are
damaged or forged, images odd, archives hostile (``trials.py``). Nothing may hang, be left behind, be taken
for what it is not, or reach the terminal raw; what was interrupted has to end with the bytes of a run that
was not. Exit status 1 if anything was not survived. Linux only.

SIGKILL comes between the start of the processes and the end of an iteration, to one rank, to mpirun or to all
at once; with ``--checkpoint-interval 1`` many kills meet a checkpoint half written. After each one every file
that has a checkpoint's name must be whole and no process be left, and the next start must continue from the
newest. In the end parameters, optimizer state, statistics and log must be those of the uninterrupted run,
byte for byte.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time

from lib import errors
from lib.checkpoint import directory, file
from lib.data import sample_set
from lib.errors import printable

from jobs.faults import injection, trials
from jobs.faults.observation import differences, kill, last_iteration, processes_of, wait_for

PATIENCE = 30  # seconds within which nothing of a killed job may be left

# What of a job the kill takes; a rank that dies alone, and mpirun dying alone, must end the others.
TARGETS = ('rank', 'mpirun', 'all')

COLUMNS = '{:>4}  {:<7}{:>9}{:>6}{:>9}  {}'


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
        # However quick this start and its iterations are beside the first: the run must not end.
        if bits.random() < 0.2:
            wait_for(lambda: last_iteration(self._notes), bits.uniform(0, start_up), job)
        else:
            at = newest + bits.randint(0, 5)
            wait_for(lambda: last_iteration(self._notes) >= at, 600, job)
            wait_for(lambda: last_iteration(self._notes) > at + 1, bits.uniform(0, iteration), job)
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


# What is drawn, and how often; a run of several seconds counts as one trial, as does reading a file.
_KINDS = {'kill': 4, 'request to stop': 4, 'full disk': 2, 'hostile archive': 12, 'odd image': 200,
          'damaged checkpoint': 200}
_KILLS = 3  # of one run, which is then compared with one that was not killed


class Trials:
    """Faults drawn by a seed, counted by kind.

    Args:
        folder (pathlib.Path): Where runs and files go; what was survived is removed.
        seed (int): Of all that is drawn.
        report (callable): Called with a line for each trial that was not survived.

    Attributes:
        tried, survived (collections.Counter): Trials by kind.
    """

    def __init__(self, folder, seed, report):
        self._folder = folder
        self._bits = random.Random(seed)
        self._report = report
        self.tried = collections.Counter()
        self.survived = collections.Counter()
        small = ['--arch', 'resnet8', '--insize', '16', '-j', '1', '-B', 8, '-E']
        self._kill_options = [*small, (5 * _KILLS + 20) * 16 / sample_set.N_TRAIN]
        runs = trials.Runs(folder, [*small, 40 * 16 / sample_set.N_TRAIN])
        self._functions = {'kill': self._kill, 'request to stop': runs.request_to_stop,
                           'full disk': runs.full_disk, 'hostile archive': trials.hostile_archive,
                           'odd image': trials.odd_image, 'damaged checkpoint': trials.damaged_checkpoint}

    def _kill(self, bits, folder):
        soak = Soak(folder, self._kill_options, seed=bits.getrandbits(32)).run(_KILLS)
        return '; '.join(soak.problems)

    def run(self, seconds):
        """Draw and try until the time is over; returns ``self``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            kind, = self._bits.choices([*_KINDS], _KINDS.values())
            number = self.tried[kind]
            folder = self._folder / f'{kind.replace(" ", "-")}-{number}'
            folder.mkdir()
            problem = self._functions[kind](random.Random(self._bits.getrandbits(64)), folder)
            self.tried[kind] += 1
            if problem:
                self._report(f'{folder.name}: {printable(problem)}')
            else:
                self.survived[kind] += 1
                shutil.rmtree(folder)
        return self

    def summary(self):
        """A line per kind, and whether all was survived."""
        lines = [f'{kind:<20}{self.survived[kind]:>7} of {self.tried[kind]} survived' for kind in _KINDS]
        return '\n'.join([*lines, 'nothing lost' if self.survived == self.tried else 'FAILED'])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--out', type=pathlib.Path, help='keep what was not survived, in this new directory')
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn')
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.out or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        # Where a killed mpirun leaves its directory, which stops a later one of the same process number.
        os.environ['PRTE_MCA_prte_tmpdir_base'] = stack.enter_context(tempfile.TemporaryDirectory())
        began = time.monotonic()
        done = Trials(folder, args.seed, lambda line: print(line, flush=True)).run(60 * args.minutes)
        print(f'{done.summary()}\n{time.monotonic() - began:.0f} s, seed {args.seed}')
    return done.survived != done.tried


if __name__ == '__main__':
    sys.exit(main())
