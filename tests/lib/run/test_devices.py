"""Which GPU each rank takes, what is refused, and what is said of the machine: without a GPU."""

import importlib.metadata
import types

from lib.errors import UserError
from lib.run import devices, machine

import pytest

from tests import ranks_cases

SCRIPT = 'tests/lib/run/ranks_devices.py'


def test_ranks_of_a_host_take_its_gpus_in_turn():
    assert [devices.choose_gpu(rank, 8) for rank in range(8)] == list(range(8))


@pytest.mark.parametrize('case', ranks_cases.names(SCRIPT))
def test_on_ranks(assert_on_ranks, case):
    assert_on_ranks(SCRIPT, 2, case)


def test_rank_that_sees_one_gpu_takes_it_whatever_its_number():
    assert [devices.choose_gpu(rank, 1) for rank in range(8)] == [0] * 8


def test_ranks_that_see_half_of_the_gpus_each_count_from_the_first_again():
    assert [devices.choose_gpu(rank, 4) for rank in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_one_gpu_per_rank_is_accepted_however_many_each_sees():
    devices.refuse_shared([((0, 'a'), f'gpu {k}', 8) for k in range(8)])
    devices.refuse_shared([((0, 'a'), f'gpu {k}', 1) for k in range(8)])


def test_gpus_of_two_hosts_may_be_called_alike_and_the_hosts_too():
    devices.refuse_shared([((0, 'a'), '0000:3b:00.0', 1), ((1, 'a'), '0000:3b:00.0', 1)])


def test_two_ranks_on_one_gpu_are_refused_by_name():
    bindings = [((0, 'a'), 'x', 2), *(((1, 'b'), gpu, 2) for gpu in 'xyx')]
    with pytest.raises(UserError) as raised:
        devices.refuse_shared(bindings)
    message = str(raised.value)
    assert message.startswith('ranks 1 and 3 on host b share the GPU x: 3 processes there')
    assert 'rank 3 sees 2 GPUs' in message and '\n' not in message


def fake_cuda(count=1, capability='90', **attributes):
    def get_device_count():
        if isinstance(count, Exception):
            raise count
        return count
    runtime = types.SimpleNamespace(getDeviceCount=get_device_count)
    device = types.SimpleNamespace(compute_capability=capability)
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime, Device=lambda index: device))
    libcudnn = types.SimpleNamespace(getVersion=lambda: 8907)
    return types.SimpleNamespace(**{'available': True, 'cupy': cupy, 'cudnn_enabled': True,
                                    'libcudnn': libcudnn, **attributes})


@pytest.mark.parametrize('installed, extra', [
    (['cupy-cuda12x'], 'gpu'), (['cupy-cuda13x'], 'gpu13'), ([], 'gpu')])
def test_the_extra_that_is_advised_is_that_of_the_cupy_installed(monkeypatch, installed, extra):
    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return '1'
    monkeypatch.setattr(importlib.metadata, 'version', version)
    monkeypatch.setattr(devices, 'cuda', fake_cuda())
    monkeypatch.setattr(devices, '_nccl_available', lambda: False)
    monkeypatch.setattr(devices.cudnn, 'version', lambda: 91002)
    assert devices.missing_for_gpus() == f'CuPy finds no NCCL; install the extra "{extra}"'


def wrapped(message, cause):
    error = ImportError(message)
    error.__cause__ = ImportError(cause)
    return error


@pytest.mark.parametrize('cuda, nccl, expected', [
    (fake_cuda(available=False, _resolution_error=ModuleNotFoundError('x', name='cupy')), True,
     'cupy is not installed; install the extra "gpu"'),
    (fake_cuda(available=False, _resolution_error=wrapped('\n===\nadvice', 'libcublas.so.12: no such file')),
     True, 'CuPy does not load (libcublas.so.12: no such file); install the extra "gpu"'),
    (fake_cuda(RuntimeError('driver version\nis insufficient')), True,
     'no usable GPU (driver version is insufficient); run on a machine with an NVIDIA GPU and its driver'),
    (fake_cuda(0), True,
     'no GPU is visible; run on a machine with one, or correct CUDA_VISIBLE_DEVICES'),
    (fake_cuda(), False, 'CuPy finds no NCCL; install the extra "gpu"'),
    (fake_cuda(capability='100'), True,
     'cuDNN 8 has no code for GPUs of compute capability 10.0; install the extra "gpu13" in a new '
     'environment, without "gpu"')])
def test_what_is_missing_is_said_in_one_line_with_the_remedy(monkeypatch, cuda, nccl, expected):
    monkeypatch.setattr(devices, 'cuda', cuda)
    monkeypatch.setattr(devices.cudnn, 'version', lambda: 8907 if cuda.cudnn_enabled else None)
    monkeypatch.setattr(devices, '_nccl_available', lambda: nccl)
    assert devices.missing_for_gpus() == expected
    assert devices.choose_communicator() == 'naive'
    assert machine.notes('naive') == [f'computing on the CPU: {expected}']
    with pytest.raises(UserError) as raised:
        devices.choose_communicator('pure_nccl')
    assert str(raised.value) == f'--communicator pure_nccl: {expected}, or choose naive'


@pytest.mark.parametrize('cuda', [fake_cuda(), fake_cuda(capability='120', cudnn_enabled=False)])
def test_gpus_are_used_where_they_and_nccl_are(monkeypatch, cuda):
    monkeypatch.setattr(devices, 'cuda', cuda)
    monkeypatch.setattr(devices.cudnn, 'version', lambda: 8907 if cuda.cudnn_enabled else None)
    monkeypatch.setattr(devices, '_nccl_available', lambda: True)
    assert devices.missing_for_gpus() is None
    assert devices.choose_communicator() == devices.choose_communicator('pure_nccl') == 'pure_nccl'
    assert devices.choose_communicator('naive') == 'naive'


class Communicator:
    """Two ranks of one host, of which this is the first; the other has sent ``other``."""

    def __init__(self, *other):
        self.mpi_comm = self
        self._other = list(other)

    def allgather(self, value):
        return [value, self._other.pop(0)]


def test_ranks_that_chose_different_communicators_are_refused():
    with pytest.raises(UserError, match='^rank 0 has no usable GPU, rank 1 has: '):
        devices.bind('naive', Communicator('pure_nccl'))


def test_cpu_is_bound_and_described():
    device = devices.bind('naive', Communicator('naive'))
    assert device.name == '@numpy'
    text = machine.describe(device, Communicator(('elsewhere', '8-core EPYC')))
    assert text.startswith('2 processes on ') and '8-core EPYC' in text
