"""Time one update of ResNet-50's 25.6 million parameters, in 161 arrays, on one core of a CPU.

    python -m jobs.bench.optimizer

The floor is a single C loop over the same arrays, compiled here with ``cc``; without a compiler the ratios
are to Chainer's MomentumSGD. Times are CPU times and the candidates take turns, because other programs may be
running; printed are medians, of the times and of the ratios within a turn. Takes 10 seconds; expect
1.0 to 1.3 times the floor. No other programs are needed.
"""

import argparse
import ctypes
import os
import pathlib
import subprocess
import tempfile
import time

os.environ['OPENBLAS_NUM_THREADS'] = '1'
from lib import optimizers

import chainer
import numpy as np

from models import ResNet50

HYPERPARAMETERS = dict(lr=1e-3, alpha_sgd=0.3, alpha_rmsprop=1e-3, mu1=0.9, mu2=0.99, eps=1e-8)

C_SOURCE = '''
#include <math.h>
#include <stddef.h>

void update(size_t n, float *restrict theta, const float *restrict grad, float *restrict m,
            float *restrict delta, float eta, float alpha_sgd, float alpha_rmsprop, float mu1, float mu2,
            float one_minus_mu2, float eps)
{
    for (size_t i = 0; i < n; i++) {
        float g = grad[i];
        m[i] = mu2 * m[i] + one_minus_mu2 * g * g;
        delta[i] = mu1 * delta[i] - (alpha_sgd + alpha_rmsprop / (sqrtf(m[i]) + eps)) * g;
        theta[i] += eta * delta[i];
    }
}
'''


def compiled_loop(arrays):
    """The update as one C loop per parameter, or None without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder, 'update.c'), pathlib.Path(folder, 'update.so')
        source.write_text(C_SOURCE)
        command = ['cc', '-O3', '-march=native', '-fno-math-errno', '-fno-trapping-math', '-shared', '-fPIC',
                   str(source), '-o', str(library), '-lm']
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f'fused C loop skipped: {error}')
            return None
        update = ctypes.CDLL(str(library)).update
    update.argtypes = [ctypes.c_size_t, *[ctypes.c_void_p] * 4, *[ctypes.c_float] * 7]
    hp = HYPERPARAMETERS
    scalars = (hp['lr'], hp['alpha_sgd'], hp['alpha_rmsprop'], hp['mu1'], hp['mu2'], 1 - hp['mu2'], hp['eps'])
    calls = [(theta.size, *(array.ctypes.data for array in (theta, grad, m, delta)), *scalars)
             for theta, grad, m, delta in arrays]

    def run():
        for call in calls:
            update(*call)
    return run


def naive_numpy(arrays):
    """The update as section A.1 reads, with a new array for every operation."""
    lr, alpha_sgd, alpha_rmsprop, mu1, mu2, eps = HYPERPARAMETERS.values()

    def run():
        for theta, grad, m, delta in arrays:
            m[...] = mu2 * m + (1 - mu2) * grad ** 2
            delta[...] = mu1 * delta - (alpha_sgd + alpha_rmsprop / (np.sqrt(m) + eps)) * grad
            theta[...] = theta + lr * delta
    return run


def chainers(method, arrays):
    """An optimizer of Chainer's on the same parameters and gradients."""
    model = chainer.Link()
    with model.init_scope():
        for i, (theta, *_) in enumerate(arrays):
            setattr(model, f'p{i}', chainer.Parameter(theta))
    method.setup(model)
    for i, (_, grad, *_) in enumerate(arrays):
        getattr(model, f'p{i}').grad = grad
    return method.update


def ours(updater, **hyperparameters):
    def run():
        for name, value in {**HYPERPARAMETERS, 'weight_decay': 0.0, **hyperparameters}.items():
            setattr(updater, name, value)
        updater.update()
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=15, help='updates of each kind (15)')
    args = parser.parse_args()

    model = ResNet50()
    updater = optimizers.RMSpropWarmup(**HYPERPARAMETERS).setup(model)
    rng = np.random.default_rng(0)
    for param in model.params():
        param.grad = rng.standard_normal(param.shape, np.float32) * np.float32(1e-3)
    updater.update()
    arrays = [(param.array, param.grad, param.update_rule.state['m'], param.update_rule.state['delta'])
              for param in model.params()]

    def with_numpy(run):
        def run_with_numpy():
            loops, optimizers.loops = optimizers.loops, None
            run()
            optimizers.loops = loops
        return run_with_numpy

    candidates = {
        'fused C loop': compiled_loop(arrays),
        'RMSprop warm-up': ours(updater),
        'RMSprop warm-up, weight decay': ours(updater, weight_decay=1e-4),
        'RMSprop warm-up, plain SGD': ours(updater, alpha_sgd=1.0, alpha_rmsprop=0.0),
        'RMSprop warm-up, plain SGD, decay': ours(updater, alpha_sgd=1.0, alpha_rmsprop=0.0,
                                                  weight_decay=1e-4),
        'RMSprop warm-up, not compiled': with_numpy(ours(updater)),
        'Chainer RMSprop': chainers(chainer.optimizers.RMSprop(lr=1e-6), arrays),
        'Chainer MomentumSGD': chainers(chainer.optimizers.MomentumSGD(lr=1e-6), arrays),
        'naive NumPy': naive_numpy(arrays),
    }
    candidates = {name: run for name, run in candidates.items() if run}
    floor = next(name for name in ('fused C loop', 'Chainer MomentumSGD') if name in candidates)
    seconds = {name: [] for name in candidates}
    for repeat in range(args.repeats + 1):
        for name, run in candidates.items():
            start = time.thread_time()
            run()
            if repeat:  # the first allocates states and touches all memory
                seconds[name].append(time.thread_time() - start)

    print(f'update of {model.count_params():,} parameters in {len(arrays)} arrays, median of {args.repeats}')
    for name, times in seconds.items():
        ratio = np.median(np.divide(times, seconds[floor]))
        print(f'  {name:34} {1000 * np.median(times):7.1f} ms   {ratio:5.2f} of {floor}')


if __name__ == '__main__':
    main()
