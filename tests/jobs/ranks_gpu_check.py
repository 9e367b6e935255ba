"""Run by test_gpu_check: the checks of jobs/gpu_check.py with the CPU in the place of the GPU.

With the argument ``differ`` the exchange gives rank 1 other means than the rest.
"""

import sys

from lib.communication import communicators

import chainer

from jobs import gpu_check

comm = communicators.create_communicator('naive')
device = chainer.get_device('@numpy')
if sys.argv[1:] == ['differ'] and comm.rank == 1:
    exchanged = gpu_check._exchanged

    def planted(*arguments):
        means, finite = exchanged(*arguments)
        return [mean + 1 for mean in means], finite
    gpu_check._exchanged = planted
lines = [line for line, _ in gpu_check.check_all(device, comm)]
updater, seconds = gpu_check.train(device, comm, 'resnet8', 16, 3)
seconds['update'] = gpu_check.time_update(updater)
if comm.rank == 0:
    print('\n'.join([*lines, *gpu_check.report(updater.plan, updater.model, seconds)]))
