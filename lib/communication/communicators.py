"""Mean of the gradients over all workers, packed, with a float16 wire (paper section 2).

"While computation was generally done in single precision, in order to reduce the communication overhead
during all-reduce operations, we used half-precision floats for communication." ChainerMN's
``pure_nccl`` also *divides* in float16, which flushes most means of small gradients to zero at 1024 workers;
its ``naive`` knows no float16, and makes one MPI call per parameter. Here both send the gradients packed,
with the arithmetic of :mod:`lib.communication.wire`, and every rank computes the same bits.

Nothing here imports MPI before :func:`create_communicator` is called: importing mpi4py initialises MPI, and
processes that load data must have been started by then.
"""

import functools
import itertools
import math

import numpy as np
from chainer.backends import cuda
from chainer.serializers import NpzDeserializer, npz

from lib.communication import allreduce as payload_sum
from lib.communication import wire
from lib.errors import UserError


def world():
    """mpi4py's communicator of all processes. Initialises MPI.

    Raises:
        UserError: If MPI is missing.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(f'no MPI for Python ({error}): install the extra "mpi", or mpi4py with '
                        "the cluster's MPI") from error
    return MPI.COMM_WORLD


def create_communicator(name, allreduce_grad_dtype='float16', loss_scale=1.0, virtual_workers=1,
                        mpi_comm=None):
    """Make ChainerMN's communicator ``name`` with the exchange of gradients described above.

    Called by every process. Initialises MPI.

    Args:
        name (str): ``naive`` (arrays on the CPU, MPI) or ``pure_nccl`` (arrays on GPUs, NCCL).
        allreduce_grad_dtype (str): Wire format of gradients, ``float16`` or ``float32``.
        loss_scale (float): S, by which the loss was multiplied before backward; undone in float32. Not to be
            given to ``Variable.backward`` too: Chainer's update rules would divide by it a second time.
        virtual_workers (int): K, workers played by each process.
        mpi_comm: mpi4py communicator (all processes).

    Returns:
        MeanGradient: Also a ``chainermn.CommunicatorBase``.

    Raises:
        UserError: If MPI or NCCL is missing, or an argument is out of range.
    """
    if allreduce_grad_dtype not in ('float16', 'float32'):
        raise UserError(f'--allreduce-grad-dtype {allreduce_grad_dtype}: expected float16 or float32')
    if not 0 < loss_scale < float('inf'):
        raise UserError(f'--loss-scale {loss_scale}: expected a positive number')
    if virtual_workers < 1:
        raise UserError(f'--virtual-workers {virtual_workers}: expected at least 1')
    mpi_comm = mpi_comm or world()
    # Classes are made here because ChainerMN's communicators initialise MPI when they are imported.
    if name == 'naive':
        from chainermn.communicators.naive_communicator import NaiveCommunicator
        cls = type('PackedMpiCommunicator', (_MpiMeanGradient, NaiveCommunicator), {})
    elif name == 'pure_nccl':
        from chainermn import nccl
        from chainermn.communicators.pure_nccl_communicator import PureNcclCommunicator
        if not nccl._available:
            raise UserError('--communicator pure_nccl: CuPy has no NCCL here; install the extra "gpu", '
                            'or choose naive')
        cls = type('Float32MeanNcclCommunicator', (_NcclMeanGradient, PureNcclCommunicator), {})
    else:
        raise UserError(f'--communicator {name}: expected pure_nccl or naive')
    return cls(mpi_comm, allreduce_grad_dtype, loss_scale, virtual_workers)


class MeanGradient:
    """Mean of the gradients over all n = P K workers, sent packed: mixed into a communicator.

    After the exchange every ``param.grad`` is a view of one flat float32 buffer, which the next exchange
    overwrites. That holds for float16 parameters too (``mixed16``): in float16 the unscaled mean would lose
    what the loss scale has saved, before ``use_fp32_update`` casts it to float32.
    """

    def __init__(self, mpi_comm, wire_dtype='float16', loss_scale=1.0, virtual_workers=1):
        super().__init__(mpi_comm)
        self.wire_dtype = np.dtype(wire_dtype)
        self.loss_scale = float(loss_scale)
        self.virtual_workers = int(virtual_workers)
        self._exchange = None  # takes payloads and gives their sum, in turns
        self._mean = None      # float32, of which gradients are views
        self._local = []       # gradients before the exchange, for explain_non_finite
        self._finite = []      # whether each turn's mean is: bool, on a GPU an array

    def split(self, color, key):
        return type(self)(self.mpi_comm.Split(color, key), self.wire_dtype, self.loss_scale,
                          self.virtual_workers)

    def multi_node_mean_grad(self, model, zero_fill=False):
        """Replace each parameter's gradient, the sum over K workers, by the mean over all workers.

        Called by every process, after backward into cleared gradients. A parameter without a gradient counts
        as zero; it stays without unless ``zero_fill``, so it must then be without on every process.
        """
        params = _params(model)
        sizes = tuple(param.size for _, param in params)
        self._local = [param.grad for _, param in params]
        if self._mean is None or self._mean.size != sum(sizes):
            xp = cuda.get_array_module(*(param.array for _, param in params))
            self._mean = xp.empty(sum(sizes), np.float32)
            self._exchange = self._join(sum(sizes))
        flat = [None if gradient is None else gradient.reshape(-1) for gradient in self._local]
        self._finite = []
        for turn, pieces in _turns(sizes, self._exchange.capacity):
            length = turn.stop - turn.start
            payload = self._exchange.payload(length)
            for index, part, place in pieces:
                if flat[index] is None:
                    payload[place] = 0
                else:
                    self._pack(flat[index][part], payload[place])
            self._finite.append(self._unpack(self._exchange.sum(length), self._mean[turn]))
        for (_, param), span, gradient in zip(params, _spans(sizes), self._local):
            if gradient is not None or zero_fill:
                # The public setter refuses float32 gradients of float16 parameters.
                param._set_grad_without_check(self._mean[span].reshape(param.shape))

    def gradient_is_finite(self):
        """Whether the last exchange's mean is finite everywhere: the same answer on every process."""
        finite = all(map(bool, self._finite))  # on a GPU, here the host waits for the device
        if finite:
            self._local = []  # nothing to explain: free it before the next backward
        return finite

    def explain_non_finite(self, model):
        """Say where the last exchange's mean became NaN or infinite.

        Called by every process, after ``gradient_is_finite`` has said no.

        Returns:
            str: One line, the same on every process: the rank and the first parameter (in the order of their
            names) whose gradient was not finite before the exchange; or the one that the wire's dtype could
            not hold; or the element whose sum it could not hold, and what to do.
        """
        names = [name for name, _ in _params(model)]
        local = [None if gradient is None else cuda.to_cpu(gradient) for gradient in self._local]
        faults = self.mpi_comm.allgather(_find_fault(local, self.wire_dtype, self.virtual_workers))
        limit = float(np.finfo(self.wire_dtype).max)
        remedy = f'use a --loss-scale smaller than {self.loss_scale:g}'
        if self.wire_dtype == np.float16:
            remedy += ', or --allreduce-grad-dtype float32'

        broken = {rank: fault for rank, fault in enumerate(faults) if fault and fault[0] == 'local'}
        if broken:
            _, index, kind = min(broken.values(), key=lambda fault: fault[1])
            ranks = [rank for rank, fault in broken.items() if fault[1] == index]
            others = sorted(set(broken) - set(ranks))
            return (f'gradient of {names[index]} holds {kind} before the exchange, on rank {_listed(ranks)}'
                    + (f' (another parameter\'s on rank {_listed(others)})' if others else ''))

        overflowed = {rank: fault for rank, fault in enumerate(faults) if fault}
        if overflowed:
            rank, (_, index, largest) = min(overflowed.items(), key=lambda item: item[1][1])
            return (f'gradient of {names[index]} overflows {self.wire_dtype} on the wire, on rank {rank}: '
                    f'largest |g| {largest:.6g}, limit {limit:.6g}; {remedy}')

        mean = cuda.to_cpu(self._mean)
        element = int(np.flatnonzero(~np.isfinite(mean))[0])
        index, offset = _locate(element, [param.size for _, param in _params(model)])
        value = 0.0 if local[index] is None else float(local[index].flat[offset]) / self.virtual_workers
        total = sum(self.mpi_comm.allgather(value))
        return (f'sum over {self.size} processes of element {offset} of the gradient of {names[index]} '
                f'overflows {self.wire_dtype}: {total:.6g}, limit {limit:.6g}; {remedy}')


class _MpiMeanGradient(MeanGradient):
    """On the CPU: payloads are added in float32."""

    def _join(self, size):
        return payload_sum.join(self.mpi_comm, size, self.wire_dtype)

    def _pack(self, gradient, payload):
        wire.to_wire(gradient, payload, self.virtual_workers)

    def _unpack(self, total, mean):
        return wire.from_wire(total, self.size * self.loss_scale, mean)


class _NcclMeanGradient(MeanGradient):
    """On GPUs: one NCCL all-reduce, on the current stream. NCCL adds in the wire's dtype."""

    def _join(self, size):
        return _NcclSum(self, size, self.wire_dtype)

    def _pack(self, gradient, payload):
        cuda.elementwise(*wire.PACK_KERNEL)(gradient, np.float32(self.virtual_workers), payload)

    def _unpack(self, total, mean):
        finite = cuda.cupy.ones((), bool)  # read when it is asked for, not to wait for the device here
        cuda.elementwise(*wire.MEAN_KERNEL)(total, np.float32(self.size * self.loss_scale), mean, finite)
        return finite


class _NcclSum:
    """What :mod:`lib.communication.allreduce` is for MPI, in one turn."""

    def __init__(self, comm, size, dtype):
        self.capacity = max(size, 1)
        self._comm = comm
        self._payload = cuda.cupy.empty(size, dtype)

    def payload(self, n):
        return self._payload[:n]

    def sum(self, n):
        sum_over_processes(self._comm, self._payload)
        return self._payload[:n]


def _params(model):
    """Initialised parameters with their names, in the order of the names."""
    return sorted(((name, param) for name, param in model.namedparams() if param.array is not None),
                  key=lambda item: item[0])


def _spans(sizes):
    """Slices that arrays of ``sizes`` take when they are laid end to end."""
    return [slice(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes))]


@functools.lru_cache(maxsize=4)
def _turns(sizes, capacity):
    """Cut arrays of ``sizes``, laid end to end, into turns of ``capacity`` elements.

    Returns:
        list: Per turn its slice of the whole, and its pieces: the array's index, the slice of the array, and
        that slice's place in the turn.
    """
    turns = []
    for start in range(0, sum(sizes), capacity):
        stop = min(start + capacity, sum(sizes))
        pieces = []
        for index, span in enumerate(_spans(sizes)):
            first, end = max(span.start, start), min(span.stop, stop)
            if first < end:
                pieces.append((index, slice(first - span.start, end - span.start),
                               slice(first - start, end - start)))
        turns.append((slice(start, stop), pieces))
    return turns


def _find_fault(gradients, wire_dtype, virtual_workers):
    """First fault of one process's gradients: ``(kind, index of the parameter, what)`` or None."""
    for index, gradient in enumerate(gradients):
        if gradient is not None and not np.isfinite(gradient).all():
            return 'local', index, 'NaN' if np.isnan(gradient).any() else 'infinity'
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            payload = np.empty(gradient.size, wire_dtype)
            wire.to_wire(gradient, payload, virtual_workers)
            if not np.isfinite(payload).all():
                return 'wire', index, float(np.abs(gradient).max()) / virtual_workers
    return None


def _locate(element, sizes):
    """Array, and element in it, of an element of their concatenation."""
    return next((index, element - span.start) for index, span in enumerate(_spans(sizes))
                if element < span.stop)


def _listed(ranks):
    shown = ', '.join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f'{shown} and {len(ranks) - 8} more'


def agree(comm, *flags):
    """Whether a flag is set on any process, for each flag, in one all-reduce.

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


def sum_over_processes(comm, values):
    """Add ``values`` up over all processes, in place, in their own dtype, in one all-reduce.

    Args:
        comm: ChainerMN communicator.
        values: Contiguous float array: NumPy through MPI, or CuPy through NCCL on the current stream.
    """
    if isinstance(values, np.ndarray):
        if comm.size > 1:
            from mpi4py import MPI
            comm.mpi_comm.Allreduce(MPI.IN_PLACE, values)
    else:
        from chainermn import nccl
        from chainermn.communicators._communication_utility import _get_nccl_type_id
        comm._init_comms()
        pointer, dtype = values.data.ptr, _get_nccl_type_id(values.dtype)
        comm.nccl_comm.allReduce(pointer, pointer, values.size, dtype, nccl.NCCL_SUM,
                                 cuda.cupy.cuda.get_current_stream().ptr)


def check_sum(comm, xp):
    """Add known values up on the devices that train, and compare with the closed form, on every process.

    Args:
        comm: ChainerMN communicator.
        xp: NumPy or CuPy.

    Raises:
        RuntimeError: If the sum is wrong.
    """
    k = xp.arange(1, 1 << 10, dtype=np.float32)
    values = (comm.rank + 1) * k
    sum_over_processes(comm, values)
    if not bool((values == comm.size * (comm.size + 1) // 2 * k).all()):
        raise RuntimeError('an all-reduce of known values gave wrong sums: '
                           f'{"MPI" if xp is np else "NCCL"} or the network is at fault')


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
    comm.mpi_comm.Bcast(packed)
    return {name: part.view(dtype).reshape(shape) for part, (name, dtype, shape) in zip(parts, layout)}


def broadcast_model(comm, model):
    """Make parameters and persistent values equal to rank 0's on every process, through the host.

    Args:
        comm: ChainerMN communicator.
        model (chainer.Link): The same on every process but for the values.
    """
    if comm.size == 1:
        return
    arrays = {name: np.asarray(value) for name, value in npz.serialize(model).items()}
    # A parameter not yet initialised is stored as None.
    arrays = {name: array for name, array in arrays.items() if array.dtype != object}
    NpzDeserializer(broadcast_arrays(comm, arrays), strict=False).load(model)
