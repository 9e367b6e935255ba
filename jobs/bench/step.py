"""Time one training step of a network on one core of a CPU: forward, backward and update, images given.

    python -m jobs.bench.step [resnet8 resnet20 resnet50] [--side 32] [-B 32] [--vectors avx2]

Candidates: this program with the vectors of this machine (or of ``--vectors``, to which PyTorch is then
held too); the same without compiled layers (``none``); Chainer's own convolution and batch normalization;
and, where PyTorch is installed, the same network in its default layout with SGD and momentum. Times are CPU
times and the candidates take turns, because other programs may be running; printed are medians, of the times
and of the ratios within a turn. Takes two minutes.
"""

import argparse
import contextlib
import os
import time

os.environ.update(OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
from lib import compiled, optimizers

import chainer.functions as F
import chainer.links as L
import numpy as np

import models
from jobs.bench import torch_step

SIDES = {'resnet8': 32, 'resnet20': 32, 'resnet50': 224}
BATCHES = {'resnet8': 32, 'resnet20': 32, 'resnet50': 8}
N_CLASS = 16


def ours(arch, images, labels, vectors, links=None):
    """A step of this program's network; ``links`` replaces the classes of its links."""
    model = models.build(arch, N_CLASS)
    for link in model.links() if links else ():
        link.__class__ = links.get(type(link), type(link))
    optimizer = optimizers.RMSpropWarmup(lr=1e-3, alpha_sgd=0.5, alpha_rmsprop=1e-3, weight_decay=1e-4)
    optimizer.setup(model)

    def step():
        with using(vectors):
            model.cleargrads()
            loss = F.softmax_cross_entropy(model(images), labels)
            loss.backward()
            optimizer.update()
            return float(loss.array)
    return step


@contextlib.contextmanager
def using(vectors):
    """Let the layers compute with these vectors, as the environment variable would."""
    before = os.environ.get(compiled.VARIABLE)
    os.environ[compiled.VARIABLE] = vectors
    compiled.vectors.cache_clear()
    try:
        yield
    finally:
        os.environ[compiled.VARIABLE] = before or ''
        compiled.vectors.cache_clear()


class ChainersBatchNormalization(L.BatchNormalization):

    def forward(self, x, residual=None, relu=False):
        y = super().forward(x)
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y


def torchs(arch, images, labels):
    """A step of the same network in PyTorch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        print('PyTorch is not installed: left out')
        return None
    torch.set_num_threads(1)
    model = torch_step.network(arch, N_CLASS)
    assert sum(p.numel() for p in model.parameters()) == models.build(arch, N_CLASS).count_params()
    step = torch_step.training(model, torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
    return lambda: step().item()


def measure(arch, side, batch, vectors, repeats):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, side, side), np.float32)
    labels = rng.integers(0, N_CLASS, batch).astype(np.int32)
    chainers = {models.convolution.Convolution2D: L.Convolution2D,
                models.batch_normalization.BatchNormalization: ChainersBatchNormalization}
    candidates = {
        vectors: ours(arch, images, labels, vectors),
        'none': ours(arch, images, labels, 'none'),
        "Chainer's own": ours(arch, images, labels, 'none', chainers),
        'PyTorch': torchs(arch, images, labels),
    }
    candidates = {name: step for name, step in candidates.items() if step}
    per_turn = {'resnet8': 10, 'resnet20': 3}.get(arch, 1)
    seconds = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, step in candidates.items():
            start = time.process_time()
            for _ in range(per_turn):
                step()
            if repeat:  # the first allocates
                seconds[name].append((time.process_time() - start) / per_turn)

    print(f'{arch}, {batch} images of {side} x {side}: median of {repeats}')
    for name, times in seconds.items():
        ratios = ', '.join(f'{np.median(np.divide(times, seconds[other])):.2f} of {other}'
                           for other in seconds if other != name)
        print(f'  {name:14} {1000 * np.median(times):8.1f} ms   {ratios}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('archs', nargs='*', default=list(SIDES), metavar='ARCH', help='(all three)')
    parser.add_argument('--side', type=int, help='of the images (32; resnet50: 224)')
    parser.add_argument('-B', '--batchsize', type=int, help='(32; resnet50: 8)')
    parser.add_argument('--vectors', default=compiled.vectors(), help="(this machine's)")
    parser.add_argument('--repeats', type=int, default=9, help='turns (9)')
    args = parser.parse_args()
    if args.vectors == 'avx2':  # read when PyTorch is imported
        os.environ.update(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2')
    for arch in args.archs:
        measure(arch, args.side or SIDES[arch], args.batchsize or BATCHES[arch], args.vectors, args.repeats)


if __name__ == '__main__':
    main()
