"""What a job runs on: machines, devices, versions; and whether its processes are one job."""

import collections
import contextlib
import os
import platform
import sys

from lib.communication.collectives import group, host, name_ranks
from lib.communication.launcher import launched_size
from lib.compiled import loops, outdated, vectors
from lib.errors import UserError
from lib.gpu import cudnn
from lib.run.devices import CUDNN_8_CAPABILITY, compute_capability, in_one_line, missing_for_gpus

import chainer
import numpy as np
from chainer.backends import cuda


def check_job(mpi_comm, facts):
    """Check that the ranks are one job before it starts. Called by all ranks together.

    Args:
        mpi_comm: mpi4py communicator of the job.
        facts (dict): What must be equal on every rank: versions, plan, sizes of the data.

    Raises:
        UserError: On every rank: a fact differs, or mpirun started more processes than MPI knows of.
        RuntimeError: An all-reduce of known values gives wrong sums.
    """
    size = mpi_comm.Get_size()
    launched = launched_size()
    if size == 1 and launched > 1:
        raise UserError(f'mpirun started {launched} processes, but each takes itself for the only one: '
                        "mpi4py is missing or found another MPI than mpirun's; install the extra mpi, or run "
                        'the mpirun that belongs to it')
    if size == 1:
        return
    outcomes = mpi_comm.allgather((host(), facts))
    for name in dict.fromkeys(name for _, theirs in outcomes for name in theirs):
        groups = group((theirs.get(name), rank) for rank, (_, theirs) in enumerate(outcomes))
        if len(groups) > 1:
            values = '; '.join(f'{value} on {name_ranks(ranks, outcomes)}' for value, ranks in groups[:3])
            raise UserError(f'{name} differs between ranks: {values}; start every rank from the same '
                            'installation, with the same options and data')
    # Rank r gives (r + 1) k, in whole numbers that float64 holds exactly; long enough for MPI to send it the
    # way it sends gradients.
    k = np.arange(1, 1 << 16, dtype=np.float64)
    total = np.empty_like(k)
    mpi_comm.Allreduce((mpi_comm.Get_rank() + 1) * k, total)
    if not np.array_equal(total, size * (size + 1) / 2 * k):
        raise RuntimeError('an all-reduce of known values gave wrong sums: the MPI library or the network '
                           'is at fault')


def versions():
    """Name the versions of what runs here: dict of str, in the order of interest.

    The MPI library is named only once MPI is in use, since asking would initialize it.
    """
    import PIL
    found = {'python': platform.python_version(), 'chainer': chainer.__version__, 'numpy': np.__version__,
             'pillow': PIL.__version__, 'loops': 'compiled' if loops else 'NumPy', 'vectors': vectors()}
    if 'mpi4py.MPI' in sys.modules:
        import mpi4py
        from mpi4py import MPI
        found['mpi4py'] = mpi4py.__version__
        found['mpi'] = MPI.Get_library_version().strip('\0 \n').splitlines()[0].split(', ')[0]
    with contextlib.suppress(Exception):  # CuPy without its CUDA libraries raises more than ImportError
        import cupy
        found['cupy'] = cupy.__version__
        from cupy.cuda import nccl
        found['nccl'] = str(nccl.get_version())
        if cudnn.version():
            found['cudnn'] = _cudnn()
    found['host'] = host()
    return found


def describe(device, comm):
    """Describe the job's hardware, such as ``1024 x Tesla P100-SXM2-16GB``. Called by all ranks.

    Args:
        device (chainer.backend.Device): This process's.
        comm: ChainerMN communicator.

    Returns:
        str: The same on every rank.
    """
    if device.xp is cuda.cupy:
        name = cuda.cupy.cuda.runtime.getDeviceProperties(device.device.id)['name'].decode()
        return count_gpus(comm.mpi_comm.allgather(name))
    return count_cpus(comm.mpi_comm.allgather((host(), f'{os.cpu_count()}-core {_cpu_name()}')))


def count_gpus(names):
    """Say ``8 x Tesla V100, 8 x Tesla P100`` from each process's GPU."""
    return ', '.join(f'{count} x {name}' for name, count in collections.Counter(names).items())


def count_cpus(hosts):
    """Say ``3 processes on 2 x 8-core EPYC`` from each process's ``(host, what it is)``."""
    kinds = collections.Counter(kind for _, kind in dict.fromkeys(hosts))
    computers = ', '.join(f'{count} x {kind}' if count > 1 else kind for kind, count in kinds.items())
    return f'{len(hosts)} process{"es" * (len(hosts) != 1)} on {computers}'


def _cpu_name():
    try:
        with open('/proc/cpuinfo') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def notes(communicator):
    """Say what the device's software is, and what it lacks with the remedy: lines for the start of a run."""
    return [*_of_device(communicator), *(
        f'lib/compiled/{name} was compiled from other sources than lie here, and is not used: install again'
        for name in outdated)]


def _of_device(communicator):
    if communicator == 'naive':
        missing = missing_for_gpus()
        return [f'computing on the CPU: {missing}' if missing else
                'computing on the CPU, though a GPU is usable: --communicator pure_nccl']
    from cupy.cuda import nccl
    runtime = cuda.cupy.cuda.runtime
    versions = [f'CuPy {cuda.cupy.__version__}', f'CUDA {_version(runtime.runtimeGetVersion())}',
                f'driver for CUDA {_version(runtime.driverGetVersion())}', f'NCCL {nccl.get_version()}']
    if cudnn.version():
        return [', '.join([*versions, f'cuDNN {_cudnn()}'])]
    return [', '.join(versions),
            f'no cuDNN ({_why_no_cudnn()}): convolutions go through im2col, which is slower']


def _cudnn():
    return f'{cudnn.version()} through {"lib/gpu/cudnn.py" if cudnn.library() else "CuPy"}'


def _version(number):
    """Write CUDA's 12090 as 12.9."""
    return f'{number // 1000}.{number % 1000 // 10}'


def _why_no_cudnn():
    if cuda._cudnn_disabled_by_user:
        return 'CHAINER_CUDNN=0'
    if chainer.config.use_cudnn == 'never':
        return 'CHAINER_USE_CUDNN=never'
    with_cupy_14 = cuda._cupy_major > 13 or compute_capability() > CUDNN_8_CAPABILITY
    return f'{in_one_line(cuda._resolution_error)}; install the extra "{"gpu13" if with_cupy_14 else "gpu"}"'
