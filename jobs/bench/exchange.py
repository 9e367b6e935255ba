"""Time the exchange of ResNet-50's gradients: 25.6 million values in 161 arrays.

    mpirun -np 4 python -m jobs.bench.exchange

Compares this program's exchange, with a float16 and a float32 wire, with ChainerMN's ``naive`` and with one
bare MPI all-reduce of as many bytes. The candidates take turns; a time is that of the slowest rank, and the
medians are printed with their ratio to ChainerMN's, below 1 for this program's own. Takes 10 seconds, on a
CPU; no other programs are needed.
"""

import argparse
import time

from lib.communication import communicators

import numpy as np

from models import ResNet50

_BASELINE = 'ChainerMN naive'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=9, help='exchanges of each kind (9)')
    repeats = parser.parse_args().repeats

    # ChainerMN's communicators initialize MPI when they are imported.
    from chainermn.communicators.naive_communicator import NaiveCommunicator
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    model = ResNet50()
    params = list(model.params())
    rng = np.random.default_rng(world.rank)
    # Small enough for a good share of float16 subnormals, as in training.
    gradients = [rng.standard_normal(param.shape, np.float32) * np.float32(1e-4) for param in params]
    size = sum(param.size for param in params)
    bare = {bits: np.zeros(size * bits // 32, np.float32) for bits in (16, 32)}

    def exchange(comm):
        return lambda: comm.multi_node_mean_grad(model)

    candidates = {
        'float16 wire': exchange(communicators.create_communicator('naive', 'float16')),
        'float32 wire': exchange(communicators.create_communicator('naive', 'float32')),
        _BASELINE: exchange(NaiveCommunicator(world)),
        'bare all-reduce, float16 bytes': lambda: world.Allreduce(MPI.IN_PLACE, bare[16]),
        'bare all-reduce, float32 bytes': lambda: world.Allreduce(MPI.IN_PLACE, bare[32]),
    }
    seconds = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            for param, gradient in zip(params, gradients):
                param.grad = gradient
            world.Barrier()
            start = time.perf_counter()
            run()
            slowest = world.allreduce(time.perf_counter() - start, op=MPI.MAX)
            if repeat:  # the first allocates buffers
                seconds[name].append(slowest)
    if world.rank == 0:
        medians = {name: float(np.median(times)) for name, times in seconds.items()}
        print(f'exchange of {size:,} gradients in {len(params)} arrays, {world.size} ranks, '
              f'median of {repeats}')
        for name, median in medians.items():
            print(f'  {name:31} {median * 1000:7.1f} ms   {median / medians[_BASELINE]:5.2f} of {_BASELINE}')


if __name__ == '__main__':
    main()
