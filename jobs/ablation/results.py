"""What is kept of runs: ``results/SET/ARM-SEED.json``, a file a run: those of several machines add up."""

import csv
import json
import math
import os
import pathlib
import statistics
import subprocess

from lib.errors import UserError

from jobs.ablation.claims import Choice
from jobs.ablation.sets import SETS
from jobs.ablation.verdicts import value
from jobs.tables import ACCURACY, LOSS, VAL_ACCURACY, VAL_LOSS

FORMAT = 2
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Columns of the log, and what of the plan is kept.
KEPT = ('epoch', 'iteration', LOSS, ACCURACY, VAL_LOSS, VAL_ACCURACY, 'lr', 'alpha_sgd')
PLAN = ('data', 'n_train', 'n_val', 'n_class', 'total_batch', 'epochs', 'iterations', 'eta_base',
        'beta_center', 'beta_period')
_NOTHING, _NUMBER = type(None), (int, float)
_TYPES = {'format': int, 'arm': str, 'seed': int, 'command': str, 'diverged': (int, _NOTHING), 'commit': str,
          'hardware': str, 'versions': dict, 'seconds': (*_NUMBER, _NOTHING), 'plan': dict, 'log': dict,
          'loss': (dict, _NOTHING), 'again': (dict, _NOTHING)}
POINTS = 400  # of the curve of training loss: each is the mean of as many iterations as that takes


def read_run(name, seed, command, out, diverged=None, commits=()):
    """A finished run, or one that ``diverged`` at that iteration, from what it left in ``out``."""
    plan = json.loads((out / 'plan.json').read_text())
    log = json.loads((out / 'log').read_text()) if (out / 'log').exists() else []
    return {
        'format': FORMAT, 'arm': name, 'seed': seed, 'command': command, 'diverged': diverged,
        'commit': ', then '.join(dict.fromkeys(commits)), 'hardware': f'{plan["hardware"]}, {vectors()}',
        'versions': {key: text for key, text in plan['software'].items() if key != 'host'},
        'seconds': round(log[-1]['elapsed_time'], 1) if log else None,
        'plan': {key: plan[key] for key in PLAN},
        'log': {key: [row[key] for row in log if key in row] for key in KEPT},
        'loss': read_loss(out / 'timing.csv', plan['iterations']), 'again': None}


def read_loss(path, iterations):
    """Training loss by iteration, thinned: means over blocks of ``every`` iterations, to 4 digits."""
    every = math.ceil(iterations / POINTS)
    with open(path, newline='') as file:
        losses = [float(row['loss']) for row in csv.DictReader(file) if row['loss']]
    return {'every': every, 'means': [round(statistics.fmean(losses[first:first + every]), 4)
                                      for first in range(0, len(losses), every)]}


def vectors():
    """The widest vectors that the processor has: which of them a library uses changes the digits."""
    try:
        flags = pathlib.Path('/proc/cpuinfo').read_text().split()
    except OSError:
        return 'vectors unknown'
    return 'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else 'no AVX2'


def commit():
    """The commit of the program, marked if files were changed since; ``unknown`` without git."""
    def git(*words):
        return subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True)
    try:
        found = git('rev-parse', '--short=12', 'HEAD')
        changed = git('diff', '--quiet', 'HEAD', '--', 'lib', 'models', 'extensions', 'train_imagenet.py')
    except OSError:
        return 'unknown'
    return 'unknown' if found.returncode else found.stdout.strip() + ' changed' * (changed.returncode != 0)


def differences(run, other):
    """Names of the curves in which two runs differ in any digit: list of str, empty if they are the same."""
    found = [key for key in KEPT if run['log'][key] != other['log'][key]]
    both = run['loss'] and other['loss']  # the oldest have none
    return found + ['loss by iteration'] if both and run['loss'] != other['loss'] else found


def _check(run, declared):
    """An exception of some kind if what is read is no run of the set."""
    missing = {*_TYPES} - {*run} or {*PLAN} - {*run['plan']} or {*KEPT} - {*run['log']}
    if missing:
        raise ValueError(f'it lacks {", ".join(sorted(missing))}')
    for part, expected in (run, _TYPES), (run['plan'], {**dict.fromkeys(PLAN, _NUMBER), 'data': str}):
        for key, types in expected.items():
            if not isinstance(part[key], types):
                raise TypeError(f'{key} is {part[key]!r}')
    compared = (comparison.measure for found in declared.comparisons.values() for comparison in found)
    for measure in {'final', 'mean', 'loss', 'start', *compared}:
        value(run, measure)


class Results:
    """The runs of all sets under a directory.

    Attributes:
        directory (pathlib.Path): Also the place of the report.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory).resolve()
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f'--results {directory}: a file; expected a directory, which may be new')
        for path in [self.directory / 'results.json', *(self.directory / 'results').glob('*.json')]:
            if path.exists():
                raise UserError(f'{path}: results of another format, expected results/SET/ARM-SEED.json; '
                                'move it away')
        if any(path.parent.name in SETS for path in self.directory.glob('*/*.json')):
            raise UserError(f'--results {directory}: holds sets of runs itself; expected the directory in '
                            f'which they are results/SET, here {self.directory.parent}')
        self._runs = {name: self._read(name) for name in SETS}

    def _path(self, name, run):
        return self.directory / 'results' / name / f'{run["arm"]}-{run["seed"]}.json'

    def _read(self, name):
        runs = []
        for path in sorted((self.directory / 'results' / name).glob('*.json')):
            try:
                run = json.loads(path.read_text(encoding='utf-8'))
                found = run['format']
                if found == FORMAT:
                    _check(run, SETS[name])
            except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
                raise UserError(f'{path}: no result of this program ({error!r}); move it away') from None
            if found != FORMAT:
                raise UserError(f'{path}: format {found!r}, expected {FORMAT}; move it away')
            runs.append(run)
            if run['plan']['data'] != runs[0]['plan']['data']:
                raise UserError(f'{path}: made of other images than {runs[0]["arm"]}-{runs[0]["seed"]}.json '
                                'beside it; keep them in a --results of their own')
        return runs

    def runs(self, name):
        """All runs of a set, as ``read_run`` gives them."""
        return self._runs[name]

    def find(self, name, command):
        """The run of a set that this command made, or None."""
        return next((run for run in self._runs[name] if run['command'] == command), None)

    def data(self, name):
        """Fingerprint of the images of a set's runs, or None if there are none."""
        return self._runs[name][0]['plan']['data'] if self._runs[name] else None

    def add(self, name, run):
        """Keep a run, in the place of an earlier one of the same arm and seed."""
        self._runs[name] = [other for other in self._runs[name]
                            if (other['arm'], other['seed']) != (run['arm'], run['seed'])] + [run]
        path = self._path(name, run)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix('.tmp')
        lines = ',\n'.join(f'{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}'
                           for key, value in run.items())
        temporary.write_text('{\n' + lines + '\n}\n', encoding='utf-8')
        os.replace(temporary, path)

    def candidates(self, declared, choice):
        """Accuracies at the end by which a rate is chosen: dict by factor, of those that were run."""
        name = choice.of or declared.name
        arm = next(arm for arm in SETS[name].arms.values() if isinstance(arm.eta_scale, Choice))
        runs = {eta_scale: self.find(name, SETS[name].command(arm, eta_scale, choice.seed))
                for eta_scale in choice.eta_scales}
        return {eta_scale: 1 / run['plan']['n_class'] if run['diverged'] else run['log'][VAL_ACCURACY][-1]
                for eta_scale, run in runs.items() if run}

    def eta_scale(self, declared, arm):
        """The arm's factor on the rate; None while it is not chosen yet."""
        if not isinstance(arm.eta_scale, Choice):
            return arm.eta_scale
        found = self.candidates(declared, arm.eta_scale)
        if len(found) < len(arm.eta_scale.eta_scales):
            return None
        return max(sorted(found), key=found.get)

    def by_arm(self, declared):
        """The runs that count: by the name of an arm of the set, dicts of runs by seed."""
        found = {}
        for name, arm in declared.arms.items():
            eta_scale = self.eta_scale(declared, arm)
            seeds = sorted({run['seed'] for run in self._runs[declared.name]} - {*declared.explored})
            runs = {} if eta_scale is None else {
                seed: self.find(declared.name, declared.command(arm, eta_scale, seed)) for seed in seeds}
            found[name] = {seed: run for seed, run in runs.items() if run}
        return found
