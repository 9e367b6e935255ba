"""Which device a process computes on, and what its software can do."""

import importlib.metadata
import os
import platform

from lib.errors import UserError
from lib.gpu import cudnn

import chainer
from chainer.backends import cuda

# The newest GPUs that cuDNN 8 knows: Hopper.
CUDNN_8_CAPABILITY = 90


def choose_communicator(name=None):
    """Return the communicator for what this machine has: ``pure_nccl`` on GPUs, ``naive`` on CPUs.

    Args:
        name (str or None): The user's choice, checked; None chooses.

    Raises:
        UserError: If ``pure_nccl`` is asked for and something that it needs is missing.
    """
    if name not in (None, 'pure_nccl'):
        return name
    missing = missing_for_gpus()
    if name is None:
        return 'naive' if missing else 'pure_nccl'
    if missing:
        raise UserError(f'--communicator pure_nccl: {missing}, or choose naive')
    return name


def missing_for_gpus():
    """Tell in one line what keeps this process from training on a GPU, with the remedy; None if nothing."""
    if not cuda.available:
        error = cuda._resolution_error
        if isinstance(error, ModuleNotFoundError):
            return f'{error.name} is not installed; {_remedy()}'
        # CuPy wraps the reason in advice of several lines.
        return f'CuPy does not load ({in_one_line(error.__cause__ or error)}); {_remedy()}'
    try:
        count = cuda.cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f'no usable GPU ({in_one_line(error)}); run on a machine with an NVIDIA GPU and its driver'
    if count == 0:
        return 'no GPU is visible; run on a machine with one, or correct CUDA_VISIBLE_DEVICES'
    if not _nccl_available():
        return f'CuPy finds no NCCL; {_remedy()}'
    if (cudnn.version() or 9000) < 9000:
        newest = max(compute_capability(index) for index in range(count))
        if newest > CUDNN_8_CAPABILITY:
            return (f'cuDNN 8 has no code for GPUs of compute capability {newest / 10}; '
                    'install the extra "gpu13" in a new environment, without "gpu"')
    return None


def _remedy():
    """The extra with the CuPy that is installed: the other one has files of the same names."""
    try:
        importlib.metadata.version('cupy-cuda13x')
    except importlib.metadata.PackageNotFoundError:
        return 'install the extra "gpu"'
    return 'install the extra "gpu13"'


def compute_capability(index=None):
    """Look up a GPU's compute capability, the current one's without an index, times 10: 90 on Hopper."""
    return int(cuda.cupy.cuda.Device(index).compute_capability)


def _nccl_available():
    try:
        from cupy.cuda import nccl
    except ImportError:
        return False
    return hasattr(nccl, 'NcclCommunicator')


def in_one_line(error):
    return ' '.join(str(error).split()) or type(error).__name__


def choose_gpu(intra_rank, visible):
    """Return the index of a process's GPU among those that it sees.

    All processes of a host may see all of its GPUs, or each a part of them, down to one
    (``CUDA_VISIBLE_DEVICES`` set by rank, Slurm's ``--gpus-per-task=1``): counted from the first again.

    Args:
        intra_rank (int): Rank of the process within its host, whoever launched it.
        visible (int): GPUs that the process sees, at least one.
    """
    return intra_rank % visible


def refuse_shared(bindings):
    """Refuse two processes on one GPU.

    Args:
        bindings (list): By rank: ``((first, host), identity, visible)``: the host's first rank and name,
            identity of the GPU, equal on a host for one GPU only, and how many GPUs the process sees.

    Raises:
        UserError: Names the ranks, the host and the GPU.
    """
    ranks = {}
    for rank, (node, identity, visible) in enumerate(bindings):
        first = ranks.setdefault((node, identity), rank)
        if first != rank:
            processes = sum(other == node for other, _, _ in bindings)
            raise UserError(
                f'ranks {first} and {rank} on host {node[1]} share the GPU {identity}: {processes} processes '
                f'there, of which rank {rank} sees {visible} GPU{"s" * (visible != 1)}; start one process '
                'per GPU, and --virtual-workers for more workers')


def bind(communicator, comm, tf32=False):
    """Bind this process to its device, the GPU of its rank within the host or the CPU. Called by all ranks.

    Args:
        communicator (str): ``pure_nccl`` or ``naive``.
        comm: ChainerMN communicator.
        tf32 (bool): Whether GPUs that can may multiply float32 in TF32, rounded to 10 bits of fraction.

    Returns:
        chainer.backend.Device: In use from now on.

    Raises:
        UserError: On every rank, if the ranks chose different communicators, or two are on one GPU.
    """
    chosen = comm.mpi_comm.allgather(communicator)
    if len(set(chosen)) > 1:
        rank = chosen.index('naive')
        raise UserError(f'rank {rank} has no usable GPU, rank {chosen.index("pure_nccl")} has: choose one '
                        '--communicator for all, or mend the host of the first')
    if communicator == 'naive':
        device = chainer.get_device('@numpy')
    else:
        from mpi4py import MPI
        visible = cuda.cupy.cuda.runtime.getDeviceCount()
        # By shared memory: two hosts may have one name.
        neighbors = comm.mpi_comm.Split_type(MPI.COMM_TYPE_SHARED)
        index = choose_gpu(neighbors.Get_rank(), visible)
        node = neighbors.bcast(comm.rank), platform.node()
        refuse_shared(comm.mpi_comm.allgather((node, _identity(index), visible)))
        neighbors.Free()
        device = chainer.get_device(f'@cupy:{index}')
        # Read at the first product and convolution. cuDNN uses TF32 unless forbidden, CuPy's products do not
        # unless asked to.
        os.environ.update({'CUPY_TF32': '1'} if tf32 else {'NVIDIA_TF32_OVERRIDE': '0'})
        # cuDNN times its algorithms once per shape of convolution, and keeps the quickest. Memory comes from
        # CuPy's pool, Chainer's default.
        chainer.global_config.autotune = True
        cuda.set_max_workspace_size(cudnn.WORKSPACE)
    device.use()
    return device


def _identity(index):
    """A GPU's UUID, and its PCI address: the first alone tells the parts of a divided GPU apart."""
    uuid = cuda.cupy.cuda.runtime.getDeviceProperties(index).get('uuid', b'')
    return f'{cuda.cupy.cuda.Device(index).pci_bus_id} {bytes(uuid).hex()}'.strip()
