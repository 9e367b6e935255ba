"""Mean of the gradients over all workers, packed, with a float16 wire (paper section 3).

"While computation was generally done in single precision, in order to reduce the communication overhead
during all-reduce operations, we used half-precision floats for communication." ChainerMN's
``pure_nccl`` also *divides* in float16, which flushes most means of small gradients to zero at 1024 workers;
its ``naive`` knows no float16, and makes one MPI call per parameter. Here both send the gradients packed,
with the arithmetic of :mod:`lib.communication.wire`, and every rank computes the same bits.

Nothing here imports MPI before :func:`create_communicator` is called: importing mpi4py initializes MPI, and
processes that load data must have been started by then.
"""

import collections
import contextlib
import os

from lib.communication import allreduce, launcher, layout, non_finite, wire
from lib.errors import UserError

import chainer
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
        virtual_workers (float): n / P, workers per process: K where all play as many.
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
    """Mean of the gradients over all n workers, sent packed: mixed into a communicator.

    All together (:meth:`multi_node_mean_grad`), or in parts, while backward goes on::

        with comm.in_background():
            ...
            comm.start_mean_grad(params)  # whose gradients are there
            ...
        comm.finish_mean_grad()

    After the exchange every ``param.grad`` is a view of its part's flat float32 buffer, which the next
    exchange overwrites. That holds for float16 parameters too (``mixed16``): in float16 the unscaled mean
    would lose what the loss scale has saved, before ``use_fp32_update`` casts it to float32.
    """

    def __init__(self, mpi_comm, wire_dtype='float16', loss_scale=1.0, virtual_workers=1):
        super().__init__(mpi_comm)
        self.wire_dtype = np.dtype(wire_dtype)
        self.loss_scale = float(loss_scale)
        self.virtual_workers = virtual_workers
        self._exchange = None  # takes payloads and gives their sum, in turns
        self._size = -1        # elements that it was made for
        self._parts = {}       # by names and sizes of their parameters
        self._started = []     # parts under way
        self._finished = []    # parts of the last exchange

    def split(self, color, key):
        return type(self)(self.mpi_comm.Split(color, key), self.wire_dtype, self.loss_scale,
                          self.virtual_workers)

    def multi_node_mean_grad(self, model, zero_fill=False):
        """Replace each parameter's gradient, the sum over its workers, by the mean over all.

        Called by every process, after backward into cleared gradients. A parameter without a gradient counts
        as zero; it stays without unless ``zero_fill``, so it must then be without on every process.
        """
        self.start_mean_grad(_params(model))
        self.finish_mean_grad(zero_fill)

    def start_mean_grad(self, params, timing=contextlib.nullcontext()):  # noqa: B008
        """Start to exchange the gradients of ``params``; wait for none.

        Called by every process, with the same parts in the same order. The gradients are to be left alone
        until :meth:`finish_mean_grad`.

        Args:
            params (list): ``(name, chainer.Parameter)``.
            timing (context manager): Entered while these gradients are exchanged.
        """
        params = sorted(params, key=lambda item: item[0])
        layout_ = tuple((name, param.size) for name, param in params)
        if layout_ not in self._parts:
            self._parts[layout_] = _Part(params)
        part = self._parts[layout_]
        part.load(params, timing)
        if part.mean.size > self._size:
            self._size = part.mean.size
            self._exchange = self._join(self._size)
        self._started.append(part)
        self._start(part, self._steps(part, self._exchange))

    def finish_mean_grad(self, zero_fill=False):
        """Wait for the means of all parts that were started, and put them in place of the gradients."""
        self._wait()
        self._finished, self._started = self._started, []
        for part in self._finished:
            part.unload(zero_fill)

    def _steps(self, part, exchange):
        """Exchange a part; yields MPI requests, which have to complete before it goes on."""
        flat = [None if gradient is None else gradient.reshape(-1) for gradient in part.local]
        with part.timing:
            for turn, pieces in layout.turns(part.sizes, exchange.capacity):
                length = turn.stop - turn.start
                payload = exchange.payload(length)
                for index, piece, place in pieces:
                    if flat[index] is None:
                        payload[place] = 0
                    else:
                        self._pack(flat[index][piece], payload[place])
                total = yield from exchange.sum(length)
                part.finite.append(self._unpack(total, part.mean[turn]))

    def gradient_is_finite(self):
        """Tell whether the last exchange's mean is finite everywhere: the same answer on every process."""
        # On a GPU, here the host waits for the device.
        finite = all(bool(finite) for part in self._finished for finite in part.finite)
        if finite:
            for part in self._finished:
                part.local = []  # nothing to explain: free it before the next backward
        return finite

    def explain_non_finite(self):
        """Say where the last exchange's mean became NaN or infinite, as ``non_finite.explain`` does.

        Called by every process, after ``gradient_is_finite`` has said no.
        """
        rows = sorted((row for part in self._finished for row in part.rows()), key=lambda row: row[0])
        return non_finite.explain(self, *map(list, zip(*rows)))


class _Part:
    """Parameters whose gradients travel together."""

    def __init__(self, params):
        self.sizes = tuple(param.size for _, param in params)
        xp = cuda.get_array_module(*(param.array for _, param in params))
        self.mean = xp.empty(sum(self.sizes), np.float32)  # of which gradients are views

    def load(self, params, timing):
        self.params = params
        self.timing = timing
        self.local = [param.grad for _, param in params]  # before the exchange, for explain_non_finite
        self.finite = []  # whether each turn's mean is: bool, on a GPU an array

    def rows(self):
        """Name, gradient before the exchange and mean of each parameter."""
        for (name, param), gradient, span in zip(self.params, self.local, layout.spans(self.sizes)):
            yield name, gradient, self.mean[span].reshape(param.shape)

    def unload(self, zero_fill):
        for (_, param), (_, gradient, mean) in zip(self.params, self.rows()):
            if gradient is not None or zero_fill:
                # The public setter refuses float32 gradients of float16 parameters.
                param._set_grad_without_check(mean)


class _MpiMeanGradient(MeanGradient):
    """On the CPU: payloads are added in float32.

    Between hosts in the background, though MPI sends and receives only while it is called, and a thread would
    take the core from the computation: it is called after every function of backward. One part goes after the
    other, so that all processes make the same calls of MPI in the same order.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._waiting = collections.deque()  # parts, each as the rest of its steps
        self._request = None                 # for which the first of them waits

    def in_background(self):
        """While this context is entered, what was started moves on between the functions of backward."""
        return _AfterEachFunction(self._progress)

    def _progress(self):
        if self._exchange is not None and self._exchange.in_background:
            self._go_on(lambda request: request.Test())

    def _wait(self):
        self._go_on(lambda request: request.Wait())

    def _go_on(self, is_complete):
        while self._waiting and (self._request is None or is_complete(self._request)):
            self._request = next(self._waiting[0], None)
            if self._request is None:
                self._waiting.popleft()

    def _start(self, part, steps):
        self._waiting.append(steps)
        self._progress()

    def _join(self, size):
        return allreduce.join(self.mpi_comm, size, self.wire_dtype)

    def _pack(self, gradient, payload):
        wire.to_wire(gradient, payload, self.virtual_workers)

    def _unpack(self, total, mean):
        return wire.from_wire(total, self.size * self.loss_scale, mean)


class _AfterEachFunction(chainer.FunctionHook):
    """Calls ``act`` after each function of a backward pass."""

    name = 'AfterEachFunction'

    def __init__(self, act):
        self._act = act

    def backward_postprocess(self, function, in_data, out_grad):
        self._act()


class _NcclMeanGradient(MeanGradient):
    """On GPUs: NCCL, on a stream of its own, which events order. NCCL adds in the wire's dtype."""

    _stream = None  # made when this process is bound to its GPU

    def in_background(self):
        """A context in which nothing is to be done: NCCL needs no help."""
        return contextlib.nullcontext()

    def _start(self, part, steps):
        if self._stream is None:
            self._stream = cuda.cupy.cuda.Stream(non_blocking=True)
        # By then these gradients are there, and the last mean has been used.
        self._stream.wait_event(cuda.cupy.cuda.get_current_stream().record())
        with self._stream:
            collections.deque(steps, maxlen=0)

    def _wait(self):
        cuda.cupy.cuda.get_current_stream().wait_event(self._stream.record())

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
