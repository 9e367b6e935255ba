"""Run by test_gpu_check: the checks of jobs/gpu_check.py with the CPU in the place of the GPU."""

from lib.communication import communicators

import chainer

from jobs import gpu_check

comm = communicators.create_communicator('naive')
device = chainer.get_device('@numpy')
for check in gpu_check.CHECKS:
    check(device, comm)
plan, model, seconds = gpu_check.train(device, comm, 'resnet8', 16, 3)
if comm.rank == 0:
    print('\n'.join(gpu_check.report(plan, model, seconds)))
