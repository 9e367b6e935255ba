"""Count what one training iteration asks of a GPU, and the time that asking takes the host.

    python -m jobs.bench.launches [--arch resnet50] [--insize 224] [-B 32] [-- OPTIONS]

On the stand-ins for CUDA (tests/cuda_on_cpu; with ``CUDA_ON_CPU_IDLE`` set nothing is computed) it prints,
for one iteration: kernels that CuPy launches, calls of cuDNN, cuBLAS and NCCL, copies, waits of the host,
allocations, and the host's CPU time: medians. On a GPU it prints the last alone.
"""

import argparse
import collections
import ctypes
import json
import statistics
import time

from lib.communication import communicators
from lib.run import devices

import chainer

from jobs import gpu_check

WARM_UP = 3
REPEATS = 15
# What the stand-ins call what they count, and what it is.
NAMES = {'device.cpp': 'kernels of CuPy', 'cudnn.cpp': 'calls of cuDNN', 'cublas.cpp': 'calls of cuBLAS',
         'nccl.cpp': 'calls of NCCL', 'wait': 'waits', 'allocation': 'allocations', 'event': 'events'}


def measure(updater):
    """Run iterations.

    Returns:
        dict: What is counted (str) to the median of the iterations' numbers; the host's milliseconds too.
    """
    found = collections.defaultdict(list)
    for number in range(WARM_UP + REPEATS):
        _counts()
        start = time.process_time()
        updater.update()
        milliseconds = 1e3 * (time.process_time() - start)
        if number >= WARM_UP:
            for what, count in {**_counts(), 'host milliseconds': milliseconds}.items():
                found[what].append(count)
        chainer.backends.cuda.Stream.null.synchronize()  # a GPU would be at it; nothing is to pile up here
    medians = {}
    for what, values in found.items():
        medians[what] = round(statistics.median(values + [0] * (REPEATS - len(values))), 1)
    return medians


def _counts():
    """Numbers of things counted since the last call; none without the stand-ins."""
    try:
        counts = ctypes.CDLL(None).cuda_on_cpu_counts
    except AttributeError:
        return {}
    counts.restype = ctypes.c_char_p
    pairs = [line.rsplit(' ', 1) for line in counts().decode().splitlines()]
    return {NAMES.get(what, what): int(number) for what, number in pairs}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--insize', type=int, default=224)
    parser.add_argument('-B', '--batchsize', type=int, default=32)
    parser.add_argument('options', nargs='*', help='of train_imagenet.py, behind --')
    args = parser.parse_args()
    comm = communicators.create_communicator('pure_nccl')
    device = devices.bind('pure_nccl', comm)
    chainer.global_config.type_check = False  # as lib.run.job has it
    updater = gpu_check.make_updater(device, comm, args.arch, args.insize, '-B', str(args.batchsize),
                                     *args.options)
    print(json.dumps(measure(updater), indent=1, sort_keys=True))


if __name__ == '__main__':
    main()
