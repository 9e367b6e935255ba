"""What a process has to settle before it imports NumPy or MPI: BLAS's threads, malloc, networks.

``lib`` calls :func:`prepare` before it imports anything else, so that it holds however a process was started:
by Open MPI's mpirun, MPICH's or srun, as plain Python, as a decoder process, under pytest. What the user has
set in the environment is kept.
"""

import ctypes
import os
import re

_THREADS = ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS')

# Parameters of glibc's mallopt (malloc.h), and the environment's names for the same.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MALLOC = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_TOP_PAD_', 'MALLOC_MMAP_MAX_', 'MALLOC_MMAP_THRESHOLD_')


def prepare():
    """Give this process its share of the cores, let malloc keep large arrays, and start MPI at once."""
    set_threads()
    keep_memory()
    leave_out_networks()


def set_threads():
    """Set the number of BLAS's threads, which BLAS reads once, when NumPy loads it.

    More threads than cores make a training many times slower. If the user has set one of the variables, it
    counts for all.
    """
    given = next((os.environ[name] for name in _THREADS if os.environ.get(name)), None)
    for name in _THREADS:
        if not os.environ.get(name):
            # For the libraries of this process, but not in os.environ: ranks that are started with that are
            # not to take our choice for the user's.
            os.putenv(name, given or str(cores_of_this_rank()))


def cores_of_this_rank():
    """Return the number of cores for this process alone, at least 1.

    The ranks of a host share what their launcher may use; a rank that is bound to cores gets no more than
    these. A shell between the launcher and a bound rank hides that it is bound: its cores count as shared.
    """
    ranks = ranks_on_this_host()
    if not hasattr(os, 'sched_getaffinity'):
        return max(1, (os.cpu_count() or 1) // ranks)
    own = os.sched_getaffinity(0)
    try:
        shared = own | os.sched_getaffinity(os.getppid())
    except OSError:  # the launcher has ended, or must not be looked at
        shared = own
    return min(len(own), max(1, len(shared) // ranks))


def ranks_on_this_host():
    """Return the number of ranks that the launcher has started on this host; 1 when launched alone."""
    for name in ('OMPI_COMM_WORLD_LOCAL_SIZE', 'MPI_LOCALNRANKS'):  # Open MPI; MPICH and Intel MPI
        if os.environ.get(name, '').isdigit():
            return max(1, int(os.environ[name]))
    # Slurm's srun: '8(x128)', or '8(x2),3' for two hosts with 8 and one with 3.
    counts = re.findall(r'(\d+)(?:\(x\d+\))?', os.environ.get('SLURM_STEP_TASKS_PER_NODE', ''))
    return max(map(int, counts), default=1)


def keep_memory():
    """Make glibc keep the memory of large arrays; elsewhere do nothing.

    It hands them back to the system and has every page faulted in again at every iteration: 11-28 % of a
    ResNet-50 step on a CPU.
    """
    if any(os.environ.get(name) for name in _MALLOC):
        return
    if 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', ''):
        return
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (glibc has it, others do not)
    except (AttributeError, OSError, TypeError):
        return
    # Arrays stay inside the heap. A large M_MMAP_THRESHOLD would say the same, but mallopt(3) allows 32 MiB.
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_M_TOP_PAD, 512 << 20)


def leave_out_networks():
    """Have Open MPI start without libfabric where all ranks are on one host.

    It looks for networks as every rank starts, and sleeps for a second. Shared memory and TCP stay. What the
    environment says comes first; a ``btl`` in Open MPI's own files does not.
    """
    size = os.environ.get('OMPI_COMM_WORLD_SIZE')
    if size and size == os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') and 'OMPI_MCA_btl' not in os.environ:
        os.putenv('OMPI_MCA_btl', '^ofi')  # not in os.environ, as above
