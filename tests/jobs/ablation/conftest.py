"""A set of two arms and a chosen one, runs made up, and a training that is none."""

import json

import pytest

from jobs.ablation import results, runs, sets
from jobs.ablation.claims import Arm, Choice, Comparison, Set
from jobs.tables import ACCURACY, LOSS, VAL_ACCURACY, VAL_LOSS

# Leaves what a training leaves. Accuracy: 0.4 and a bit by seed and rate, less without warm-up.
STAND_IN = '''
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
def option(name, default=None):
    return words[words.index(name) + 1] if name in words else default
out, seed = pathlib.Path(option('--out')), int(option('--seed'))
with open(os.environ['CALLS'], 'a') as file:
    file.write(json.dumps([out.name, os.environ['OPENBLAS_NUM_THREADS'], os.nice(0)]) + '\\n')
if option('--transition') == os.environ.get('BREAKS'):
    print('train_imagenet.py: no such images', file=sys.stderr)
    sys.exit(2)
if option('--transition') == os.environ.get('WAITS'):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    os.kill(int(os.environ['PARENT']), signal.SIGTERM)
    signal.pause()
out.mkdir(parents=True, exist_ok=True)
plan = {'n_class': 20, 'epochs': 2, 'n_train': 64, 'n_val': 10, 'data': 'a b', 'total_batch': 64,
        'eta_base': 0.2, 'iterations': 2, 'beta_center': 1.0, 'beta_period': 0.5,
        'software': {'python': '3', 'host': 'secret'}, 'hardware': '1 process on 2-core X'}
(out / 'plan.json').write_text(json.dumps(plan))
accuracy = 0.4 + 0.01 * seed - 0.1 * (option('--transition') == 'none') \\
    + 0.001 * (float(option('--eta-scale')) == 8)
log = [{'epoch': e, 'iteration': e, 'elapsed_time': 7.0 * e, 'main/loss': 3.0 / e, 'main/accuracy': 0.1,
        'validation/main/loss': 2.0, 'validation/main/accuracy': accuracy * e / 2, 'lr': 0.1,
        'alpha_sgd': 1.0, 'images_per_sec': 3.0} for e in (1, 2)]
diverges = option('--transition') == os.environ.get('DIVERGES')
(out / 'log').write_text(json.dumps(log[:1] if diverges else log))
rows = ['iteration,iteration_time,loss', '1,0.1,3.0', '2,0.1,1.5']
(out / 'timing.csv').write_text('\\n'.join(rows[:2] if diverges else rows))
if option('--transition') != os.environ.get('LOST'):
    (out / 'finished').touch()
if diverges:
    print('train_imagenet.py: iteration 2: gradient of /conv1/W holds NaN', file=sys.stderr)
    sys.exit(1)
'''

TINY = Set(
    'tiny', 'ResNet-8, 2 epochs', '--arch resnet8 --insize 16 --batchsize 32 --epoch 2',
    stages=((Arm('paper', 'the paper\'s recipe', '--recipe paper', 8),
             Arm('goyal', 'Goyal\'s recipe at its best rate', '--recipe goyal', Choice((4, 8), 100))),
            (Arm('no-warmup', 'paper without RMSprop', '--recipe paper --transition none', 8),
             Arm('once', 'paper at half the rate', '--recipe paper', 4, seeds=(0,)))),
    comparisons={2: (Comparison('paper', 'higher', 'no-warmup', 'final'),
                     Comparison('paper', 'lower', 'no-warmup', 'warmup')),
                 6: (Comparison('paper', 'holds', 'goyal', 'final'),)},
    margins={'final': 0.03, 'warmup': 0.05}, seeds=(0, 1), explored=(100,), transition=('paper', 'no-warmup'))


@pytest.fixture
def tiny():
    """The only set that there is."""
    declared = dict(sets.SETS)
    sets.SETS.clear()
    sets.SETS['tiny'] = TINY
    yield TINY
    sets.SETS.clear()
    sets.SETS.update(declared)


@pytest.fixture
def made_up():
    """``made_up(declared, arm, seed, accuracy)``: a run of two epochs, the second of that accuracy."""

    def make(declared, name, seed, accuracy, diverged=None, eta_scale=None):
        arm = declared.arms[name]
        log = {key: [1.0, 1.0] for key in results.KEPT}
        log.update({'epoch': [1.0, 2.0], VAL_ACCURACY: [0.1, accuracy], LOSS: [2.9, 2.5],
                    ACCURACY: [0.1, 0.2], VAL_LOSS: [2.8, 2.4]})
        plan = {'data': 'a b', 'n_train': 1000, 'n_val': 10, 'n_class': 20, 'total_batch': 100, 'epochs': 2,
                'iterations': 20, 'eta_base': 0.2, 'beta_center': 1.0, 'beta_period': 0.5}
        return {
            'format': results.FORMAT, 'arm': name, 'seed': seed, 'diverged': diverged, 'commit': 'abc',
            'command': declared.command(arm, eta_scale or arm.eta_scale, seed), 'hardware': 'some',
            'versions': {'python': '3'}, 'seconds': 60.0, 'plan': plan, 'log': log,
            'loss': {'every': 2, 'means': [3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.3, 2.2, 2.1]}, 'again': None}

    return make


@pytest.fixture
def calls(tmp_path, monkeypatch, tiny):
    """A training without training, on images that need not be there.

    Returns a function that gives the calls so far: (name of the output directory, BLAS threads, niceness).
    """
    (tmp_path / 'train_imagenet.py').write_text(STAND_IN)
    monkeypatch.setattr(runs, 'ROOT', tmp_path)
    monkeypatch.setattr(runs.input, 'open_sets', lambda *_: (Images(64, 'a'), Images(10, 'b')))
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    for name in ('BREAKS', 'DIVERGES', 'LOST', 'WAITS'):
        monkeypatch.setenv(name, 'nothing')

    def read():
        path = tmp_path / 'calls'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


class Images:
    """A list of images as far as it is asked."""

    def __init__(self, length, fingerprint):
        self._length = length
        self._fingerprint = fingerprint

    def __len__(self):
        return self._length

    def fingerprint(self):
        return self._fingerprint


@pytest.fixture
def ablation_main(tmp_path):
    """``ablation_main(*options)`` runs the command on made-up paths, under ``tmp_path``."""
    from jobs.ablation import __main__ as program

    def run(*options, at_a_time=1):
        return program.main(['train', 'val', '--set', 'tiny', '--runs', str(tmp_path / 'runs'), '--results',
                             str(tmp_path / 'kept'), '--at-a-time', str(at_a_time), *options])

    return run
