"""Run by test_devices on several ranks: each case asserts on every rank, and rank 0 prints its name."""

import types
from unittest import mock

from lib.run import devices

from mpi4py import MPI

from tests import ranks_cases

world = MPI.COMM_WORLD


@ranks_cases.case
def gpus_are_counted_by_shared_memory_not_by_the_hosts_names():
    # ChainerMN counts by names: two hosts of one name are one to it, or, as here, one host is several.
    comm = types.SimpleNamespace(mpi_comm=world, rank=world.rank, intra_rank=0)
    with mock.patch.object(devices, 'cuda') as cuda, mock.patch('chainer.get_device') as get_device:
        cuda.cupy.cuda.runtime.getDeviceCount.return_value = 2
        cuda.cupy.cuda.runtime.getDeviceProperties.return_value = {}
        cuda.cupy.cuda.Device = lambda index: types.SimpleNamespace(pci_bus_id=f'0000:{index}b:00.0')
        devices.bind('pure_nccl', comm)
    get_device.assert_called_once_with(f'@cupy:{world.rank}')


if __name__ == '__main__':
    ranks_cases.run()
