"""Mean of the gradients over all workers, packed, with a float16 wire (paper section 3).

"While computation was generally done in single precision, in order to reduce the communication overhead
during all-reduce operations, we used half-precision floats for communication." ChainerMN's
``pure_nccl`` also *divides* in float16, which flushes most means of small gradients to zero at 1024 workers;
its ``naive`` knows no float16, and makes one MPI call per parameter. Here both send the gradients packed,
with the arithmetic of :mod:`lib.communication.wire`, and every rank computes the same bits.

Nothing here imports MPI before :func:`create_communicator` is called: importing mpi4py initializes MPI, and
processes that load data must have been started by then.
"""

import contextlib
import os

from lib.communication import allreduce, layout, non_finite, wire
from lib.errors import UserError
from lib.run import launcher

import numpy as np
from chainer.backends import cuda


def world():
    """mpi4py's communicator of all processes. Initializes MPI.

    Raises:
        UserError: If MPI is missing.
    """
    try:
        with _no_shared_memory_alone():
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = ' '.join(str(error).split())  # a line for every library that was tried
        raise UserError(f'no MPI for Python ({reason}): install the extra "mpi", or load the cluster\'s '
                        'MPI') from error
    return MPI.COMM_WORLD


@contextlib.contextmanager
def _no_shared_memory_alone():
    """Keep Open MPI from making a segment in /dev/shm that nobody removes when there is one process."""
    name = 'OMPI_MCA_btl'
    if launcher.is_launched() or name in os.environ:
        yield
        return
    os.environ[name] = 'self'
    try:
        yield
    finally:
        del os.environ[name]  # of jobs that this process may start


def create_communicator(name, allreduce_grad_dtype='float16', loss_scale=1.0, virtual_workers=1,
                        mpi_comm=None):
    """Make ChainerMN's communicator ``name`` with the exchange of gradients described above.

    Called by every process. Initializes MPI.

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
    # Classes are made here because ChainerMN's communicators initialize MPI when they are imported.
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
        for turn, pieces in layout.turns(sizes, self._exchange.capacity):
            length = turn.stop - turn.start
            payload = self._exchange.payload(length)
            for index, part, place in pieces:
                if flat[index] is None:
                    payload[place] = 0
                else:
                    self._pack(flat[index][part], payload[place])
            self._finite.append(self._unpack(self._exchange.sum(length), self._mean[turn]))
        for (_, param), span, gradient in zip(params, layout.spans(sizes), self._local):
            if gradient is not None or zero_fill:
                # The public setter refuses float32 gradients of float16 parameters.
                param._set_grad_without_check(self._mean[span].reshape(param.shape))

    def gradient_is_finite(self):
        """Tell whether the last exchange's mean is finite everywhere: the same answer on every process."""
        finite = all(map(bool, self._finite))  # on a GPU, here the host waits for the device
        if finite:
            self._local = []  # nothing to explain: free it before the next backward
        return finite

    def explain_non_finite(self, model):
        """Say where the last exchange's mean became NaN or infinite, as ``non_finite.explain`` does.

        Called by every process, after ``gradient_is_finite`` has said no.
        """
        return non_finite.explain(self, _params(model), self._local, self._mean)


class _MpiMeanGradient(MeanGradient):
    """On the CPU: payloads are added in float32."""

    def _join(self, size):
        return allreduce.join(self.mpi_comm, size, self.wire_dtype)

    def _pack(self, gradient, payload):
        wire.to_wire(gradient, payload, self.virtual_workers)

    def _unpack(self, total, mean):
        return wire.from_wire(total, self.size * self.loss_scale, mean)


class _NcclMeanGradient(MeanGradient):
    """On GPUs: one NCCL all-reduce, on the current stream. NCCL adds in the wire's dtype."""

    def _join(self, size):
        return allreduce.NcclSum(self, size, self.wire_dtype)

    def _pack(self, gradient, payload):
        cuda.elementwise(*wire.PACK_KERNEL)(gradient, np.float32(self.virtual_workers), payload)

    def _unpack(self, total, mean):
        finite = cuda.cupy.ones((), bool)  # read when it is asked for, not to wait for the device here
        cuda.elementwise(*wire.MEAN_KERNEL)(total, np.float32(self.size * self.loss_scale), mean, finite)
        return finite


def _params(model):
    """Initialized parameters with their names, in the order of the names."""
    return sorted(((name, param) for name, param in model.namedparams() if param.array is not None),
                  key=lambda item: item[0])
