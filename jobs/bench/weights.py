"""Compare what a GPU has trained with what the CPU trains, on one process.

    python -m jobs.bench.weights OUT [--communicator pure_nccl] [--cases float32 mixed16 ...]

Each case is trained twice on images made in memory, a few iterations on the GPU and on the CPU, and the
weights and statistics of both are compared, each array in parts of its largest element. Prints a line for
each case: the largest difference, in which array, and the bound. ``tests/cuda_on_cpu`` holds the stand-ins
for CUDA to these bounds or closer ones: beyond them is what a real card does otherwise. Writes
``weights.json``. Exit status 0 if all are within their bounds, 1 if not. Takes minutes.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

FLOAT32 = 1e-4   # of an array's largest element: sums are made in another order
RMSPROP = 1e-3   # likewise; it makes whole steps of tiny gradients: two CPUs differ by 8e-5
FLOAT16 = 2e-3   # on the wire, where NCCL adds in float16 and MPI in float32
MIXED16 = 5e-2   # float16's spacing, through 8 layers and 10 iterations
DEEP = 5e-3      # float32 through 50 layers and 10 iterations

WIDE = ['--allreduce-grad-dtype', 'float32']
# Name: options, bound. All but the last are of ResNet-8 at 16 pixels.
CASES = {
    'float32': ([*WIDE, '--virtual-workers', '2', '-B', '4'], RMSPROP),
    'float16 on the wire': (['--loss-scale', '128', '--bn-statistics', 'moving'], FLOAT16),
    'mixed16': (['--loss-scale', '128', '--dtype', 'mixed16', '--bn-statistics', 'last-local'], MIXED16),
    'pooled': ([*WIDE, '--bn-variance', 'pooled', '-B', '4'], RMSPROP),
    'goyal': ([*WIDE, '--recipe', 'goyal', '-B', '16'], FLOAT32),
}
SMALL = ['--arch', 'resnet8', '--insize', '16', '-j', '0', '-B', '8', '-E', '2']
LARGE = {'resnet50': ([*WIDE, '--arch', 'resnet50', '--insize', '64', '--recipe', 'goyal'], DEEP)}


def arrays(run):
    """Weights and statistics in a run's ``model.npz``, by name."""
    with np.load(pathlib.Path(run) / 'model.npz') as file:
        return {key: array for key, array in file.items() if array.dtype.kind == 'f'}


def differences(found, others):
    """Differences of two models' arrays, dict of the same names: each in parts of its own largest element."""
    assert found.keys() == others.keys() and len(found) > 30
    return {name: float(abs(array.astype(float) - others[name]).max() / abs(others[name]).max())
            for name, array in found.items()}


def largest_difference(found, others):
    """The largest of the ``differences``; NaN if there is one in an array."""
    return float(np.max(list(differences(found, others).values())))


def train(communicator, options, out):
    """Train on images made in memory, the output in ``out`` with ``.txt``; return the exit status."""
    command = [sys.executable, 'train_imagenet.py', '--synthetic', '--n-train', '40', *SMALL, *options,
               '--communicator', communicator, '--out', str(out), '--force']
    with open(f'{out}.txt', 'w') as output:
        return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output,
                              stderr=subprocess.STDOUT).returncode


def main():
    cases = CASES | LARGE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', metavar='OUT', help='folder for the runs')
    parser.add_argument('--communicator', default='pure_nccl', help='of what is compared (pure_nccl)')
    parser.add_argument('--cases', nargs='+', choices=cases, default=list(cases), metavar='CASE')
    args = parser.parse_args()
    out = pathlib.Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, name in enumerate(args.cases):
        options, bound = cases[name]
        runs = [out / f'{number}-{place}' for place in ('gpu', 'cpu')]
        failed = [f'{run}.txt' for run, communicator in zip(runs, (args.communicator, 'naive'))
                  if train(communicator, options, run)]
        if failed:
            found[name] = {'bound': bound, 'failed': failed}
            print(f'{name}: FAILED, see {" and ".join(failed)}', flush=True)
            continue
        by_array = differences(*map(arrays, runs))
        where = list(by_array)[int(np.argmax(list(by_array.values())))]  # NaN before all else
        difference = by_array[where]
        agrees = difference <= bound
        found[name] = {'difference': difference, 'where': where, 'bound': bound, 'agrees': agrees}
        print(f'{name}: {"as on the CPU" if agrees else "DIFFERENT FROM THE CPU"}: by {difference:.1e} in '
              f'{where}, at most {bound:.0e}', flush=True)
    (out / 'weights.json').write_text(json.dumps(found, indent=1))
    return 0 if all(case.get('agrees') for case in found.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
