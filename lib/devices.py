"""Which device a process computes on."""

import chainer
from chainer.backends import cuda

from lib.errors import UserError


def choose_communicator(name=None):
    """Communicator for what this machine has: ``pure_nccl`` on GPUs, ``naive`` on CPUs.

    Args:
        name (str or None): The user's choice, checked; None chooses.

    Raises:
        UserError: If ``pure_nccl`` is asked for and something that it needs is missing.
    """
    if name is None:
        return 'pure_nccl' if cuda.available else 'naive'
    if name == 'pure_nccl' and not cuda.available:
        raise UserError(f'--communicator pure_nccl: no usable GPU ({_reason()}); '
                        'install the extra "gpu" on a machine with a GPU, or choose naive')
    return name


def _reason():
    error = getattr(cuda, '_resolution_error', None)
    if error is not None:
        return str(error).strip().splitlines()[0]
    return 'CuPy finds no device'


def bind(communicator, comm):
    """Bind this process to its device: the GPU of its rank within the node, or the CPU.

    Args:
        communicator (str): ``pure_nccl`` or ``naive``.
        comm: ChainerMN communicator.

    Returns:
        chainer.backend.Device: In use from now on.
    """
    if communicator == 'naive':
        device = chainer.get_device('@numpy')
    else:
        device = chainer.get_device(f'@cupy:{comm.intra_rank}')
    device.use()
    return device
