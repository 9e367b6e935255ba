"""What processes do together: agree, fail, add up, broadcast.

``mpi_comm`` is an mpi4py communicator throughout, ``comm`` a ChainerMN one, which has an ``mpi_comm``.
"""

import math
import platform

from lib.errors import UserError

import numpy as np
from chainer.backends import cuda
from chainer.serializers import NpzDeserializer, npz

# Elements that check_sum adds up.
_N_KNOWN = 1 << 10

# MPI counts in 32 bits, with a sign; a row of statistics for each of thousands of workers may be longer.
_MESSAGE_BYTES = 1 << 30


class FailedElsewhere(RuntimeError):
    """Another rank's fault, which that rank reports."""


def host():
    """Name this computer."""
    return platform.node() or 'unknown'


def collectively(mpi_comm, function, *arguments):
    """Run a set-up step on every rank; if it fails on any, it fails on all.

    Returns:
        What ``function(*arguments)`` returns on this rank.

    Raises:
        UserError: On every rank, if any rank raised one; the message names ranks and hosts unless all
            failed alike.
        Exception: Any other exception is raised on the rank where it happened, which ends the job
            (:func:`lib.run.excepthook.install_excepthook`).
    """
    result = error = None
    try:
        result = function(*arguments)
    except Exception as raised:
        error = raised
    raise_together(mpi_comm, error)
    return result


def first(mpi_comm, function, *arguments):
    """Run a set-up step on rank 0; its result, or its failure as for :func:`collectively`, is everyone's."""
    def step():
        return function(*arguments) if mpi_comm.rank == 0 else None

    return mpi_comm.bcast(collectively(mpi_comm, step))


def raise_together(mpi_comm, error):
    """Raise on every rank if any rank has an error. Called by all ranks together.

    Args:
        mpi_comm: mpi4py communicator of the job.
        error (Exception or None): This rank's.

    Raises:
        UserError, Exception: As :func:`collectively`.
    """
    fault = error is not None and not isinstance(error, UserError)
    outcomes = mpi_comm.allgather((host(), fault, None if error is None else str(error)))
    if fault:
        raise error
    faults = [rank for rank, (_, fault, _) in enumerate(outcomes) if fault]
    if faults:
        raise FailedElsewhere(f'ended by the fault of {name_ranks(faults, outcomes)}') from error
    failures = group((message, rank) for rank, (_, _, message) in enumerate(outcomes) if message is not None)
    if not failures:
        return
    if len(failures[0][1]) == len(outcomes):
        message = failures[0][0]
    else:
        message = '; '.join(f'{name_ranks(ranks, outcomes)}: {message}' for message, ranks in failures[:3])
        if len(failures) > 3:
            message += f'; {len(failures) - 3} other failures on other ranks'
    raise UserError(message) from error


def group(pairs):
    """Group ``(value, rank)`` pairs: ``[(value, [ranks with it])]``, in the order of first appearance.

    Values need not be hashable.
    """
    groups = {}
    for value, rank in pairs:
        groups.setdefault(repr(value), (value, []))[1].append(rank)
    return list(groups.values())


def name_ranks(ranks, outcomes):
    """Name ranks as ``ranks 0-2, 5 (hosts a, b)``; ``outcomes[rank][0]`` is a rank's host."""
    runs = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    hosts = list(dict.fromkeys(outcomes[rank][0] for rank in ranks))
    shown = ', '.join(hosts[:4]) + (f' and {len(hosts) - 4} more' if len(hosts) > 4 else '')
    numbers = ', '.join(str(first) if first == last else f'{first}-{last}' for first, last in runs[:8])
    numbers += ', ...' if len(runs) > 8 else ''
    return f'rank{"s" * (len(ranks) > 1)} {numbers} (host{"s" * (len(hosts) > 1)} {shown})'


def agree(comm, *flags):
    """Tell whether a flag is set on any process, for each flag, in one all-reduce.

    Args:
        comm: ChainerMN communicator.
        flags (bool): As many on every process.

    Returns:
        tuple: As many bool, the same on every process.
    """
    agreed = np.array(flags, np.int32)
    if comm.size > 1:
        from mpi4py import MPI
        comm.mpi_comm.Allreduce(MPI.IN_PLACE, agreed, op=MPI.MAX)
    return tuple(agreed.astype(bool).tolist())


def sum_over_processes(comm, values, out=None):
    """Add ``values`` up over all processes, in their own dtype, in one all-reduce.

    Args:
        comm: ChainerMN communicator.
        values: Contiguous float array: NumPy through MPI, or CuPy through NCCL on the current stream.
        out: Array of CuPy for the sums; None puts them in place of the values.
    """
    if isinstance(values, np.ndarray):
        if comm.size > 1:
            from mpi4py import MPI
            comm.mpi_comm.Allreduce(MPI.IN_PLACE, values)
    else:
        from chainermn import nccl
        from chainermn.communicators._communication_utility import _get_nccl_type_id
        comm._init_comms()
        out = values if out is None else out
        comm.nccl_comm.allReduce(values.data.ptr, out.data.ptr, values.size, _get_nccl_type_id(values.dtype),
                                 nccl.NCCL_SUM, cuda.cupy.cuda.get_current_stream().ptr)


def check_sum(comm, xp):
    """Add known values up on the devices that train, and compare with their sum, on every process.

    Args:
        comm: ChainerMN communicator.
        xp: NumPy or CuPy.

    Raises:
        RuntimeError: If the sum is wrong.
    """
    values = xp.asarray(_known_values(comm.rank), np.float32)
    sum_over_processes(comm, values)
    expected = np.zeros(_N_KNOWN, np.float32)
    for rank in range(comm.size):
        expected += _known_values(rank)
    if not np.array_equal(cuda.to_cpu(values), expected):
        raise RuntimeError('an all-reduce of known values gave wrong sums: '
                           f'{"MPI" if xp is np else "NCCL"} or the network is at fault')


def _known_values(rank):
    """What ``rank`` adds in ``check_sum``: uint8 ``(_N_KNOWN,)``.

    Up to 255, so that float32 holds the sums of any of 2^16 ranks exactly, in whatever order rings and trees
    add them. Odd, so that a rank too few shows in every element; random, so that no rank or element stands
    for another.
    """
    return np.random.Philox(key=rank).random_raw(_N_KNOWN // 8).view(np.uint8) | 1


def broadcast_arrays(comm, arrays):
    """Give rank 0's arrays to every process, packed into one buffer.

    Args:
        comm: ChainerMN communicator.
        arrays (dict): Names to NumPy arrays; ignored on the other ranks.

    Returns:
        dict: The same names and arrays on every process.
    """
    if comm.size == 1:
        return arrays
    layout = None
    if comm.rank == 0:
        layout = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    layout = comm.mpi_comm.bcast(layout)
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in layout]
    # Each starts at a multiple of 16 bytes, where NumPy expects numbers to lie.
    starts = np.cumsum([0] + [-(-size // 16) * 16 for size in sizes]).tolist()
    packed = np.empty(starts[-1], np.uint8)
    parts = [packed[start:start + size] for start, size in zip(starts, sizes)]
    if comm.rank == 0:
        for part, array in zip(parts, arrays.values()):
            part[...] = np.frombuffer(array.tobytes(), np.uint8)
    for start in range(0, len(packed), _MESSAGE_BYTES):
        comm.mpi_comm.Bcast(packed[start:start + _MESSAGE_BYTES])
    return {name: part.view(dtype).reshape(shape) for part, (name, dtype, shape) in zip(parts, layout)}


def gather_rows(comm, rows):
    """Stack the rows of all processes on rank 0, in the order of the ranks.

    One process after the other: a gather of a row for each of ten thousand workers is more than MPI counts.

    Args:
        comm: ChainerMN communicator.
        rows (numpy.ndarray): ``(K, S)``; K may differ between processes.

    Returns:
        numpy.ndarray: On rank 0; None on the others.
    """
    if comm.rank != 0:
        comm.mpi_comm.send(rows, 0)
        return None
    return np.concatenate([rows, *(comm.mpi_comm.recv(source=rank) for rank in range(1, comm.size))])


def broadcast_model(comm, model):
    """Make parameters and persistent values equal to rank 0's on every process, through the host.

    Args:
        comm: ChainerMN communicator.
        model (chainer.Link): The same on every process but for the values.
    """
    if comm.size == 1:
        return
    arrays = {name: np.asarray(value) for name, value in npz.serialize(model).items()}
    # A parameter not yet initialized is stored as None.
    arrays = {name: array for name, array in arrays.items() if array.dtype != object}
    NpzDeserializer(broadcast_arrays(comm, arrays), strict=False).load(model)
