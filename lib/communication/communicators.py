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
import functools
import os

from lib.communication import allreduce, launcher, layout, non_finite, wire
from lib.communication.collectives import sum_over_processes
from lib.errors import UserError
from lib.gpu import flat

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
    exchange overwrites; on a GPU it is asked for, and the host goes on. That holds for float16 parameters too
    (``mixed16``): in float16 the unscaled mean would lose what the loss scale has saved, before
    ``use_fp32_update`` casts it to float32.
    """

    guard = None  # on GPUs a lib.gpu.flat.Guard
    since_fault = 0  # exchanges after the one that was not finite

    def __init__(self, mpi_comm, wire_dtype='float16', loss_scale=1.0, virtual_workers=1):
        super().__init__(mpi_comm)
        self.wire_dtype = np.dtype(wire_dtype)
        self.loss_scale = float(loss_scale)
        self.virtual_workers = virtual_workers
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
            self._parts[layout_] = self._make_part(params)
        part = self._parts[layout_]
        part.load(params, timing)
        self._started.append(part)
        self._start(part)

    def finish_mean_grad(self, zero_fill=False):
        """Put the means of all parts that were started in place of the gradients."""
        self._wait()
        self._finished, self._started = self._started, []
        for part in self._finished:
            part.unload(zero_fill)

    def explain_non_finite(self):
        """Say where the mean became NaN or infinite, as ``non_finite.explain`` does.

        Called by every process, after ``gradient_is_finite`` has said no.
        """
        rows = sorted((row for part in self._finished for row in self._rows(part)), key=lambda row: row[0])
        return non_finite.explain(self, *map(list, zip(*rows)))


class _Part:
    """Parameters whose gradients travel together; ``spans`` are their places in its mean."""

    def __init__(self, params, spans, mean):
        self.names = [name for name, _ in params]
        self.sizes = tuple(param.size for _, param in params)
        self.mean = mean
        self.means = [mean[span].reshape(param.shape) for span, (_, param) in zip(spans, params)]

    def load(self, params, timing):
        self.params = [param for _, param in params]
        self.timing = timing
        self.local = [param.grad for param in self.params]  # before the exchange
        self.finite = []  # on the CPU whether each turn's mean is

    def unload(self, zero_fill):
        for param, gradient, mean in zip(self.params, self.local, self.means):
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
        self._exchange = None  # takes payloads and gives their sum, in turns
        self._size = -1        # elements that it was made for
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

    def _make_part(self, params):
        spans = layout.spans([param.size for _, param in params])
        return _Part(params, spans, np.empty(spans[-1].stop if spans else 0, np.float32))

    def _start(self, part):
        if part.mean.size > self._size:
            self._size = part.mean.size
            self._exchange = allreduce.join(self.mpi_comm, self._size, self.wire_dtype)
        self._waiting.append(self._steps(part, self._exchange))
        self._progress()

    def _steps(self, part, exchange):
        """Exchange a part; yields MPI requests, which have to complete before it goes on."""
        gradients = [None if gradient is None else gradient.reshape(-1) for gradient in part.local]
        with part.timing:
            for turn, pieces in layout.turns(part.sizes, exchange.capacity):
                length = turn.stop - turn.start
                payload = exchange.payload(length)
                for index, piece, place in pieces:
                    if gradients[index] is None:
                        payload[place] = 0
                    else:
                        wire.to_wire(gradients[index][piece], payload[place], self.virtual_workers)
                total = yield from exchange.sum(length)
                part.finite.append(wire.from_wire(total, self.size * self.loss_scale, part.mean[turn]))

    def is_known_to_have_failed(self):
        """Whether this process has learned of a mean that is not finite, without being asked to wait."""
        return False

    def gradient_is_finite(self):
        """Tell whether the last exchange's mean is finite everywhere: the same answer on every process."""
        finite = all(turn for part in self._finished for turn in part.finite)
        if finite:
            for part in self._finished:
                part.local = []  # nothing to explain: free it before the next backward
        return finite

    def _rows(self, part):
        """Name, largest gradient over K, ``value(offset)`` of a gradient over K, and mean, of each."""
        for name, gradient, mean in zip(part.names, part.local, part.means):
            values = np.zeros_like(mean) if gradient is None else gradient
            yield (name, float(np.abs(values).max(initial=0)) / self.virtual_workers,
                   lambda offset, values=values: float(values.flat[offset]) / self.virtual_workers, mean)


class _AfterEachFunction(chainer.FunctionHook):
    """Calls ``act`` after each function of a backward pass."""

    name = 'AfterEachFunction'

    def __init__(self, act):
        self._act = act

    def backward_postprocess(self, function, in_data, out_grad):
        self._act()


class _NcclMeanGradient(MeanGradient):
    """On GPUs: NCCL, on a stream of its own, which events order. NCCL adds in the wire's dtype.

    The host asks for everything and waits for nothing: :mod:`lib.gpu.flat`.
    """

    _stream = None  # made when this process is bound to its GPU
    _number = 1     # of the exchange under way

    @functools.cached_property
    def guard(self):
        return flat.Guard()

    def in_background(self):
        """A context in which nothing is to be done: NCCL needs no help."""
        return contextlib.nullcontext()

    def _make_part(self, params):
        payload = flat.Payload([param.size for _, param in params], self.wire_dtype, self.guard)
        mean = cuda.cupy.empty(payload.places.size, np.float32)
        part = _Part(params, payload.places.spans, mean)
        part.payload, part.total = payload, cuda.cupy.empty_like(payload.array)
        return part

    def _start(self, part):
        if self._stream is None:
            self._stream = cuda.cupy.cuda.Stream(non_blocking=True)
        # By then these gradients are there, and the last mean has been used.
        self._stream.wait_event(cuda.cupy.cuda.get_current_stream().record())
        with self._stream, part.timing:
            part.payload.pack(part.local, self.virtual_workers, self._number)
            sum_over_processes(self, part.payload.array, part.total)
            cuda.elementwise(*wire.MEAN_KERNEL)(
                part.total, np.float32(self.size * self.loss_scale), np.int32(self._number), part.mean,
                self.guard.failed_at)

    def _wait(self):
        cuda.cupy.cuda.get_current_stream().wait_event(self._stream.record())

    def finish_mean_grad(self, zero_fill=False):
        super().finish_mean_grad(zero_fill)
        for part in self._finished:
            part.local = []  # what reuses their memory comes behind the exchange
        self.guard.publish()
        self._number += 1

    def is_known_to_have_failed(self):
        return self.guard.is_known_to_have_failed()

    def gradient_is_finite(self):
        """Tell whether all means were finite so far, on every process. Called by all; waits for the GPUs."""
        # They have the same means, unless NCCL or a device is at fault; then, too, they have to go together.
        failed_at = min(self.mpi_comm.allgather(self.guard.wait()))
        if failed_at == flat.NEVER:
            return True
        self.since_fault = self._number - 1 - failed_at
        self.guard.forget()
        return False

    def _rows(self, part):
        payload = cuda.to_cpu(part.payload.array)
        not_held = part.payload.not_held(self._number - 1 - self.since_fault).tolist()
        for name, largest, span, mean in zip(part.names, not_held, part.payload.places.spans, part.means):
            yield name, largest, lambda offset, sent=payload[span]: float(sent[offset]), mean


def _params(model):
    """Initialized parameters with their names, in the order of the names."""
    return sorted(((name, param) for name, param in model.namedparams() if param.array is not None),
                  key=lambda item: item[0])
