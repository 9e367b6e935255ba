"""All that has to be seen on a real GPU, in commands of a few minutes: checked, measured, and written down.

    python jobs/bench/gpu.py OUT [STEP ...] [--torch PYTHON] [--photographs TRAIN VAL] [--plan] [--small]

Run it again with the same OUT until its exit status is 0: each call goes on where the last one ended, within
``--minutes``. Installs into this Python what it lacks (``set-up``), then

* ``check``: jobs/gpu_check.py, the kernels against the CPU's, and the update's bandwidth beside a copy's;
* ``tests``: the tests marked ``gpu``;
* ``weights``: jobs/bench/weights.py, what trainings differ by from the CPU's, with bounds;
* ``scaling``: jobs/scaling.py on one GPU;
* ``torch``: ResNet-50, 32 and 256 images at a time, in turn with PyTorch on the same card;
* ``runs``: 90 epochs of the sample set, and of ``--photographs`` such as Tiny ImageNet.

Prints a line for each piece, and goes on when one fails. OUT holds figures in ``figures.json``, as tables
in ``figures.md``, and each piece's output in a ``.txt``. ``--plan`` prints the commands; ``--small`` makes
all of it tiny, to see that it runs.

The exit status is 0 when all is done, 75 when some is left for the next call, 2 for bad arguments, 1 when the
set-up failed, else the sum of the steps that failed: 4 check, 8 tests, 16 weights, 32 scaling, 64 torch, 128
runs. What failed is tried again with ``--retry``.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from jobs.bench import gpu_figures as figures  # noqa: E402

STEPS = 'check', 'tests', 'weights', 'scaling', 'torch', 'runs'
STATUS = {step: 4 << place for place, step in enumerate(STEPS)}
EXIT_SET_UP, EXIT_USER_ERROR, EXIT_STOPPED = 1, 2, 75

BATCHES = 32, 256
TURNS = 2
MIXED16 = ['--dtype', 'mixed16', '--loss-scale', '128']
# By cuDNN through Chainer, where CuPy has it, and through lib/gpu/cudnn.py: variables, options.
OWN = ['EXTREME_SGD_CUDNN=own']
OURS = {'float32': ([], []), 'tf32': ([], ['--tf32']), 'mixed16': ([], MIXED16),
        'own-float32': (OWN, []), 'own-mixed16': (OWN, MIXED16)}
GPU = ['--communicator', 'pure_nccl']  # named, lest a GPU that is not usable be replaced by the CPU
SECONDS_TO_STOP = 60  # that a training has for its checkpoint
NEWEST_OF_CUDNN_8 = 9.0  # compute capability, Hopper's


@dataclasses.dataclass
class Piece:
    """One command of a step.

    ``read(output)`` makes of what it printed and left a dict of figures, with a ``line`` that says them.
    ``seconds`` is what it may take; it is begun where so much is left, or nothing was done before. A
    ``training`` goes on in the next call from where it was stopped.
    """

    name: str
    step: str
    command: list
    read: Callable = lambda output: {'line': ''}
    seconds: int = 300
    training: bool = False


# What is run

def pieces(args):
    """All pieces in their order, as a list of :class:`Piece`."""
    work, python = args.out / 'work', sys.executable
    small = ['--arch', 'resnet8', '--insize', '16']

    def scaling(name, step, options, variables=()):
        folder = work / name.replace(' ', '-')
        return Piece(name, step, [
            'env', *variables, python, 'jobs/scaling.py', '--processes', '1', '--out', folder, '--', *GPU,
            *(small if args.small else ['--arch', 'resnet50']), *options], figures.of_scaling(folder))

    found = [
        Piece('check', 'check', [python, 'jobs/gpu_check.py',
                                 *([*small, '--iterations', '5'] if args.small else [])], figures.of_check),
        Piece('tests', 'tests', [python, '-m', 'pytest', '-m', 'gpu', '-p', 'no:cacheprovider',
                                 *(['tests/lib'] if args.small else ['tests'])], figures.of_tests, 400),
        Piece('weights', 'weights', [python, '-m', 'jobs.bench.weights', work / 'weights',
                                     *(['--cases', 'float32', 'goyal'] if args.small else [])],
              figures.of_weights(work / 'weights'), 400),
        scaling('scaling', 'scaling', ['-B', '8'] if args.small else []),
    ]
    for batch in (4,) if args.small else BATCHES:
        for turn in range(1, 2 if args.small else TURNS + 1):
            found += [scaling(f'ours {name} {batch} {turn}', 'torch', ['-B', str(batch), *options], variables)
                      for name, (variables, options) in OURS.items()]
            found.append(Piece(f'torch {batch} {turn}', 'torch', [
                args.torch, 'jobs/bench/torch_step.py', '-B', str(batch), '--device', args.torch_device,
                *(['--arch', 'resnet8', '--side', '16', '--iterations', '3'] if args.small else [])],
                figures.of_torch(batch)))
    trainings = {'sample': [*(['--insize', '16', '--epoch', '0.2'] if args.small else [])]}
    if args.photographs:
        trainings['photographs'] = [*args.photographs, *(
            [*small, '--epoch', '1'] if args.small else
            ['--arch', 'resnet50', '--insize', '64', '-B', '256', '--loss-scale', '128'])]
    return found + [Piece(name, 'runs', [
        'bash', 'jobs/launch.sh', '1', '--', *options, *GPU, '--loaderjob',
        str(max(1, len(os.sched_getaffinity(0)) - 2)), '--out', work / name], figures.of_run(work / name),
        training=True) for name, options in trainings.items()]


def set_up(args):
    """Pieces that install what this Python lacks: one, or none."""
    def lacks(module):
        return importlib.util.find_spec(module) is None

    extras = ['gpu' if compute_capability() <= NEWEST_OF_CUDNN_8 else 'gpu13'] if lacks('cupy') else []
    if shutil.which('mpirun', path=f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}') is None:
        extras.append('mpi')
    if lacks('pytest') or lacks('pytest_timeout'):
        extras.append('test')
    if not extras and not any(map(lacks, ('chainer', 'matplotlib', 'mpi4py', 'filelock', 'PIL'))):
        return []
    what = f'.[{",".join(extras)}]' if extras else '.'
    return [Piece('set-up', 'set-up', [sys.executable, '-m', 'pip', 'install', '--editable', what],
                  lambda output: {'line': f'installed {what} into {sys.executable}'})]


def compute_capability():
    """The newest GPU's as a number such as 9.0; 0 where no driver tells."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
        return max(map(float, subprocess.run(
            ['nvidia-smi', '--query-gpu=compute_cap', '--format=csv,noheader'], check=True, text=True,
            capture_output=True).stdout.split()))
    return 0.0


# Running

def run(piece, out, limit):
    """Run a piece for at most ``limit`` seconds: outcome ('done', 'failed' or 'left'), figures, seconds."""
    environment = {**os.environ, 'PYTHON': sys.executable}
    if piece.step == 'set-up':  # Chainer's build needs pkg_resources: README.md, "Installing"
        environment.update(dict.fromkeys(('PIP_CONSTRAINT', 'PIP_BUILD_CONSTRAINT'), 'build-constraints.txt'))
    path, start, timed_out = out / f'{piece.name.replace(" ", "-")}.txt', time.monotonic(), False
    with open(path, 'w') as file:
        process = subprocess.Popen(list(map(str, piece.command)), cwd=ROOT, env=environment, stdout=file,
                                   stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                end(process)
    seconds, output, status = time.monotonic() - start, path.read_text(errors='replace'), process.returncode
    if piece.training and status == EXIT_STOPPED:
        return 'left', {'line': f'stopped, with a checkpoint, after {seconds:.0f} s'}, seconds
    found, wrong = {}, [f'status {status}'] if status else []
    if timed_out:
        wrong = [f'not finished in {limit:.0f} s']
    try:
        found = piece.read(output)
    except Exception as error:  # a command that failed may have left anything
        wrong = wrong or [f'no figures ({type(error).__name__}: {error})']
    if wrong:
        last = [line for line in output.splitlines() if line.strip()][-1:]
        found['line'] = '; '.join([*filter(None, [found.get('line')]), *wrong, *last, f'see {path}'])
    return 'failed' if wrong else 'done', found, seconds


def end(process):
    """Ask a command and its children to end, and kill those that do not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Results:
    """What the pieces gave, by name, in ``figures.json`` and as tables in ``figures.md``."""

    def __init__(self, out):
        self._out = out
        path = out / 'figures.json'
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def add(self, piece, outcome, found, seconds):
        self.found[piece.name] = {
            'step': piece.step, 'outcome': outcome, 'wall_seconds': round(seconds, 1), **found,
            'command': shlex.join(map(str, piece.command))}
        texts = {'figures.json': json.dumps(self.found, indent=1), 'figures.md': figures.tables(self.found)}
        for name, text in texts.items():
            (self._out / f'{name}.tmp').write_text(text)
            os.replace(self._out / f'{name}.tmp', self._out / name)


def parse(argv):
    parser = argparse.ArgumentParser(prog='gpu.py', description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('out', metavar='OUT', type=pathlib.Path, help='folder of the results')
    add('steps', metavar='STEP', nargs='*', help=f'{", ".join(STEPS)} (all)')
    add('--minutes', type=float, default=9, metavar='M', help='for this call (9)')
    add('--torch', default=sys.executable, metavar='PYTHON', help='one that has PyTorch (this one)')
    add('--torch-device', choices=('cuda', 'cpu'), default='cuda', help='(cuda)')
    add('--photographs', nargs=2, metavar=('TRAIN', 'VAL'), help='images to train on, Tiny ImageNet say')
    add('--retry', action='store_true', help='what failed too')
    add('--plan', action='store_true', help='print the commands, and touch nothing')
    add('--small', action='store_true', help='tiny sizes: to see that it runs')
    args = parser.parse_intermixed_args(argv)
    unknown = set(args.steps) - set(STEPS)
    if unknown:
        parser.error(f'{", ".join(sorted(unknown))}: no such step; choose of {", ".join(STEPS)}')
    args.out = args.out.resolve()
    args.photographs = args.photographs and [os.path.abspath(path) for path in args.photographs]
    return args


def main(argv=None):
    args = parse(argv)
    chosen = [piece for piece in pieces(args) if piece.step in (args.steps or STEPS)]
    if args.plan:
        for piece in [*set_up(args), *chosen]:
            print(f'# {piece.name}\n{shlex.join(map(str, piece.command))}')
        return 0
    (args.out / 'work').mkdir(parents=True, exist_ok=True)
    results, deadline, begun = Results(args.out), time.monotonic() + 60 * args.minutes, False
    for piece in [*set_up(args), *chosen]:
        before = results.found.get(piece.name, {}).get('outcome')
        if piece.step != 'set-up' and (before == 'done' or before == 'failed' and not args.retry):
            print(f'{piece.name}: {before} before: {results.found[piece.name]["line"]}', flush=True)
            continue
        left = deadline - time.monotonic() - SECONDS_TO_STOP * piece.training
        if begun and left < (SECONDS_TO_STOP if piece.training else piece.seconds):
            results.add(piece, 'left', {'line': 'for the next call'}, 0)
        else:
            begun = True
            results.add(piece, *run(piece, args.out, max(left, 1)))
        found = results.found[piece.name]
        outcome = found['outcome']
        print(f'{piece.name}: {outcome} in {found["wall_seconds"]:.0f} s: {found["line"]}', flush=True)
        if piece.step == 'set-up':
            if outcome != 'done':
                return EXIT_SET_UP
            importlib.invalidate_caches()
    outcomes = {(piece.step, results.found[piece.name]['outcome']) for piece in chosen}
    failed = [step for step in STEPS if (step, 'failed') in outcomes]
    left = [step for step in STEPS if (step, 'left') in outcomes]
    print(f'{args.out / "figures.md"} written' + (f'; FAILED: {", ".join(failed)}' if failed else '')
          + (f'; left for the next call: {", ".join(left)}' if left else ''))
    return sum(STATUS[step] for step in failed) or (EXIT_STOPPED if left else 0)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))  # and the command under way is ended
    sys.exit(main())
