"""Count what a training iteration and a checkpoint ask of a GPU, and the time that asking takes the host.

    python -m jobs.bench.launches [--arch resnet50] [--insize 224] [-B 32] [-- OPTIONS]

On the stand-ins for CUDA (tests/cuda_on_cpu; with ``CUDA_ON_CPU_IDLE`` set nothing is computed) it prints the
medians of some iterations, of forward and backward alone, and of what copies a checkpoint to the host:
kernels that CuPy launches, and how often each outside of forward and backward; calls of cuDNN, cuBLAS and
NCCL; copies; waits of the host; allocations; and the host's CPU time in milliseconds.
"""

import argparse
import collections
import ctypes
import gc
import json
import statistics
import time

from lib.checkpoint import state
from lib.communication import communicators
from lib.run import devices

import chainer
import chainer.functions as F
from chainer.backends import cuda

from jobs import gpu_check

WARM_UP = 3
REPEATS = 15
# What the stand-ins call what they count, and what it is; the rest are kernels.
NAMES = {'cudnn.cpp': 'calls of cuDNN', 'cublas.cpp': 'calls of cuBLAS', 'nccl.cpp': 'calls of NCCL',
         'wait': 'waits', 'allocation': 'allocations', 'event': 'events', 'memset': 'memsets',
         **{what: what for what in ('copy to GPU', 'copy to host', 'copy to GPU, pageable',
                                    'copy to host, pageable')}}
KERNELS, MILLISECONDS = 'kernels of CuPy', 'host milliseconds'


def measure(act):
    """Call ``act`` some times.

    Returns:
        tuple of dict: Median number of each thing counted, and of launches of each kernel.
    """
    found = []
    for number in range(WARM_UP + REPEATS):
        counts()
        start = time.process_time()
        act()
        milliseconds = 1e3 * (time.process_time() - start)
        if number >= WARM_UP:
            found.append((counts(), milliseconds))
        cuda.Stream.null.synchronize()  # a GPU would be at it; nothing is to pile up here
    medians = {what: statistics.median(counts[what] for counts, _ in found)
               for what in sorted(set().union(*(counts for counts, _ in found)))}
    kernels = {what: number for what, number in medians.items() if what not in NAMES}
    things = {name: medians.get(what, 0) for what, name in NAMES.items()}
    return {**things, KERNELS: sum(kernels.values()),
            MILLISECONDS: round(statistics.median(time for _, time in found), 1)}, kernels


def counts():
    """Numbers of things that the stand-ins have counted since the last call."""
    try:
        read = ctypes.CDLL(None).cuda_on_cpu_counts
    except AttributeError:  # a GPU
        return collections.Counter()
    read.restype = ctypes.c_char_p
    pairs = [line.rsplit(' ', 1) for line in read().decode().splitlines()]
    return collections.Counter({what: int(number) for what, number in pairs})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--insize', type=int, default=224)
    parser.add_argument('-B', '--batchsize', type=int, default=32)
    parser.add_argument('options', nargs='*', help='of train_imagenet.py, behind --')
    args = parser.parse_args()
    comm = communicators.create_communicator('pure_nccl')
    device = devices.bind('pure_nccl', comm)
    chainer.global_config.type_check = False  # as lib.run.job has it, and train_imagenet.py this:
    gc.freeze()
    updater = gpu_check.make_updater(device, comm, args.arch, args.insize, '-B', str(args.batchsize),
                                     *args.options)
    model = updater.model
    x = device.xp.zeros((args.batchsize, 3, args.insize, args.insize), 'float32')
    t = device.xp.zeros(args.batchsize, 'int32')

    def forward_and_backward():
        model.cleargrads()
        F.softmax_cross_entropy(model(x), t).backward()

    iteration, kernels = measure(updater.update)
    bare, of_bare = measure(forward_and_backward)
    checkpoint, _ = measure(lambda: state.flatten(model, updater.get_optimizer('main')))
    print(json.dumps({
        'iteration': iteration, 'forward and backward': bare, 'checkpoint': checkpoint,
        'kernels outside': {name: number - of_bare.get(name, 0) for name, number in kernels.items()
                            if number > of_bare.get(name, 0)}}, indent=1))


if __name__ == '__main__':
    main()
