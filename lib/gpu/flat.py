"""Parameters, gradients and the optimizer's state on a GPU, end to end: few launches, and no wait.

A network keeps its parameters, and backward leaves their gradients, in hundreds of small arrays; a launch for
each costs the host more time than the GPU. Here one launch takes them all::

    gradients      wherever backward left them: their addresses are an argument of the kernel
        | pack     a launch for each part that travels
    payload        end to end in the wire's dtype; NCCL adds all processes' up into the total
        | unpack   a launch; tells the guard if something is not finite (lib.communication.wire)
    mean           end to end in float32
        | update   one launch for all parts; changes nothing once the guard knows of a fault
    theta, m, delta

The host asks for all of that without waiting for it, and so learns late of a mean that is not finite. Until
then the :class:`Guard` keeps the GPU from doing harm: no parameter changes any more, and the payloads, from
which the fault is explained, stay what they were.
"""

import collections

import numpy as np
from chainer import variable
from chainer.backends import cuda

# Elements of which each array begins at a multiple: cuDNN's quickest algorithms ask for 16 bytes, and an
# allocation of its own would have given more.
ALIGNMENT = 64

# A block of this many threads takes at most so many elements of one array.
THREADS = 256
CHUNK = 16 * THREADS

# Arrays per launch: their addresses are an argument, and all arguments together may have 4 KiB.
LIMIT = 480

NEVER = np.iinfo(np.int32).max

SOURCE = f'''
#include <cuda_fp16.h>
#define NEVER {NEVER}

struct Arrays {{ unsigned long long address[{LIMIT}]; }};  // odd: of float16, else of float32; 0: of zeros

// What a block is to do: elements of an array, and their place when all lie end to end.
struct Chunk {{ int array, first, place, size; }};

__device__ float element(unsigned long long address, int i) {{
  if (address == 0) return 0;
  return address & 1 ? __half2float(((const __half *)(address - 1))[i]) : ((const float *)address)[i];
}}
'''

# ``failed_at`` is the number of the first exchange whose mean was not finite. ``faults`` holds of each array
# the number of an exchange, and behind it what the wire could not hold: the largest, NaN above all.
PACK = SOURCE + r'''
extern "C" __global__ void pack(const Arrays gradients, const Chunk *chunks, int first_array, float workers,
                                int exchange, const int *failed_at, WIRE *payload,
                                unsigned long long *faults) {
  if (*failed_at < exchange) return;
  const Chunk chunk = chunks[blockIdx.x];
  const unsigned long long gradient = gradients.address[chunk.array - first_array];
  for (int k = threadIdx.x; k < chunk.size; k += blockDim.x) {
    const float value = element(gradient, chunk.first + k) / workers;
    const WIRE sent = value;
    payload[chunk.place + k] = sent;
    if (!isfinite((float)sent))
      atomicMax(faults + chunk.array,
                (unsigned long long)exchange << 32 | (unsigned)__float_as_int(fabsf(value)));
  }
}
'''

# ``decays`` holds each array's own weight decay, NaN where it has the common one.
UPDATE = SOURCE + r'''
typedef float T;
extern "C" __global__ void update(const Arrays means, const Chunk *chunks, int first_array, float eta,
                                  float alpha_sgd, float alpha_rmsprop, float mu1, float mu2,
                                  float one_minus_mu2, float eps, float common_decay, const float *decays,
                                  const int *failed_at, float *thetas, float *ms, float *deltas,
                                  __half *halves) {
  if (*failed_at != NEVER) return;
  const Chunk chunk = chunks[blockIdx.x];
  const unsigned long long mean = means.address[chunk.array - first_array];
  const float own_decay = decays[chunk.array], weight_decay = isnan(own_decay) ? common_decay : own_decay;
  for (int k = threadIdx.x; k < chunk.size; k += blockDim.x) {
    const int i = chunk.place + k;
    const float grad = element(mean, chunk.first + k);
    float theta = thetas[i], m = ms[i], delta = deltas[i];  // all read before the first is written
    RULE
    thetas[i] = theta, ms[i] = m, deltas[i] = delta;
    if (halves) halves[i] = __float2half_rn(theta);
  }
}
'''


def lay_out(sizes):
    """Lay arrays of these sizes end to end, and divide the work on them among blocks of threads.

    Returns:
        tuple: Each array's place (list of slice); elements of the whole, with those between arrays, which
        belong to none (int); and ``Chunk`` of each block, int32 ``(blocks, 4)``.
    """
    spans, chunks, end = [], [], 0
    for array, size in enumerate(sizes):
        spans.append(slice(end, end + size))
        chunks += [(array, first, end + first, min(CHUNK, size - first)) for first in range(0, size, CHUNK)]
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return spans, end, np.array(chunks, np.int32).reshape(-1, 4)


class Places:
    """Arrays of these sizes on the GPU, laid end to end; ``spans`` and ``size`` are :func:`lay_out`'s."""

    def __init__(self, sizes):
        self.spans, self.size, chunks = lay_out(sizes)
        # Of each launch the first array, and the chunks.
        self._launches = [(first, cuda.cupy.asarray(chunks[chunks[:, 0] // LIMIT == first // LIMIT]))
                          for first in range(0, len(sizes), LIMIT)]

    def launch(self, kernel, arrays, *arguments):
        """Launch a kernel for ``arrays`` of these sizes, anywhere on the GPU; None stands for zeros."""
        arrays = [_readable(array) for array in arrays]
        for first, chunks in self._launches:
            addresses = [_address(array) for array in arrays[first:first + LIMIT]]
            table = np.zeros((), [('address', np.uint64, LIMIT)])
            table['address'][:len(addresses)] = addresses
            kernel((len(chunks),), (THREADS,), (table, chunks, np.int32(first), *arguments))


def _readable(array):
    if array is None or array.dtype.char in 'ef' and array.flags.c_contiguous:
        return array
    return cuda.cupy.ascontiguousarray(array, 'e' if array.dtype.char == 'e' else 'f')


def _address(array):
    return 0 if array is None else array.data.ptr | (array.dtype.char == 'e')


class Guard:
    """Keeps a mean that is not finite from doing harm on a GPU whose host does not wait.

    Attributes:
        failed_at (cupy.ndarray): int32 ``(1,)``, which kernels read and write: number of the first exchange
            whose mean was not finite, ``NEVER`` until there is one.
    """

    def __init__(self):
        import cupyx
        self.failed_at = cuda.cupy.asarray(np.array([NEVER], np.int32))
        self._on_host = cupyx.empty_pinned(1, np.int32)
        self._on_host[0] = NEVER
        self._copied = collections.deque()  # an event for each copy that the host does not know to be done
        self.publish()

    def publish(self):
        """Let the host know of the exchanges asked for so far, as soon as the GPU does; wait for nothing."""
        stream = cuda.cupy.cuda.get_current_stream()
        self.failed_at.data.copy_to_host_async(self._on_host.ctypes.data, self._on_host.nbytes, stream)
        self._copied.append(stream.record())

    def is_known_to_have_failed(self):
        """Whether the host knows of a fault. May still say no when another process says yes."""
        while self._copied and self._copied[0].done:
            self._copied.popleft()
        # It does no harm that later copies are under way: a number that has come stays.
        return int(self._on_host[0]) != NEVER

    def wait(self):
        """Return ``failed_at`` once all exchanges published are done."""
        if self._copied:
            self._copied[-1].synchronize()
        return int(self._on_host[0])

    def forget(self):
        """Start anew after a fault that was told."""
        self.failed_at[...] = NEVER
        self.publish()
        self.wait()


class Payload:
    """Gradients of one part as they travel.

    Args:
        sizes (sequence of int): Of the gradients.
        dtype (dtype): Of the wire.
        guard (Guard): Keeps them as they are after a fault.

    Attributes:
        array (cupy.ndarray): What this process sends; zeros between gradients.
        places (Places): Where they lie in it.
    """

    def __init__(self, sizes, dtype, guard):
        self.places = Places(sizes)
        self.array = cuda.cupy.zeros(self.places.size, dtype)
        self._faults = cuda.cupy.zeros(len(sizes), np.uint64)
        self._guard = guard
        wire = {'float16': '__half', 'float32': 'float'}[np.dtype(dtype).name]
        self._kernel = cuda.raw(PACK, 'pack', options=(f'-DWIRE={wire}',))

    def pack(self, gradients, virtual_workers, exchange):
        """Ask for ``wire(gradient / virtual_workers)`` of each, end to end.

        Args:
            gradients (list): float32 or float16 arrays anywhere on the GPU, None for zeros; to be kept until
                the GPU has done it.
            virtual_workers (float): K.
            exchange (int): Number of the exchange.
        """
        self.places.launch(self._kernel, gradients, np.float32(virtual_workers), np.int32(exchange),
                           self._guard.failed_at, self.array, self._faults)

    def not_held(self, exchange):
        """Look up what of each gradient, divided by K, the wire could not hold in that exchange.

        Returns:
            numpy.ndarray: float32, the largest magnitude of each, NaN above all; 0 where all was held.
        """
        faults = cuda.to_cpu(self._faults)
        values = (faults & np.uint64(0xffffffff)).astype(np.uint32).view(np.float32)
        return np.where(faults >> np.uint64(32) == exchange, values, np.float32(0))


def _check(name, param):
    rule = param.update_rule
    own = set(vars(rule.hyperparam)) - {'_parent', 'weight_decay'}
    is_float32 = param.dtype == np.float32 or param.dtype == np.float16 and rule._use_fp32_update
    if own or not is_float32 or not rule.enabled or param.array is None:
        raise ValueError(f'{name} cannot be updated in one launch with others: expected float32 (or float16 '
                         'with use_fp32_update), and no hyperparameter of its own but weight_decay')


class State:
    """Parameters, m and delta of an optimizer, end to end; Chainer's parameters and update rules have views.

    In ``mixed16`` these are the float32 masters, and float16 parameters have views of a fourth array.

    Args:
        named (list): ``(name, parameter)`` of all that have an update rule.
        rule (str): CUDA source that updates theta, m and delta with the gradient.
        failed_at (cupy.ndarray): Of the :class:`Guard`.

    Raises:
        ValueError: If one of them cannot be updated like the others.
    """

    def __init__(self, named, rule, failed_at):
        for name, param in named:
            _check(name, param)
        self._params = [param for _, param in named]
        self._rules = [param.update_rule for param in self._params]
        self._places = Places([param.size for param in self._params])
        self._decays = cuda.cupy.asarray(np.array(
            [vars(rule.hyperparam).get('weight_decay', np.nan) for rule in self._rules], np.float32))
        self._failed_at = failed_at
        self._kernel = cuda.raw(UPDATE.replace('RULE', rule), 'update')
        self._lay()

    def _lay(self):
        """Lay all that there is end to end."""
        self._thetas, self._ms, self._deltas = (
            cuda.cupy.zeros(self._places.size, np.float32) for _ in range(3))
        has_halves = any(param.dtype == np.float16 for param in self._params)
        self._halves = cuda.cupy.zeros(self._places.size, np.float16) if has_halves else None
        self._laid = []
        for param, rule, span in zip(self._params, self._rules, self._places.spans):
            theta, *state = (array[span].reshape(param.shape)
                             for array in (self._thetas, self._ms, self._deltas))
            master = rule._fp32_param
            theta[...] = cuda.cupy.asarray(param.array if master is None else master.array)
            for name, array in zip(('m', 'delta'), state) if rule.state else ():
                array[...] = cuda.cupy.asarray(rule.state[name])
            rule._state = dict(zip(('m', 'delta'), state))
            if param.dtype == np.float16:
                rule._fp32_param = variable.Parameter(theta, name=param.name)
                half = self._halves[span].reshape(param.shape)
                half[...] = param.array
                param.array = half
            else:
                param.array = theta
            self._laid.append((param.array, rule.state, rule._fp32_param))

    def update(self, scalars):
        """Ask for one update of all parameters.

        Args:
            scalars (tuple of numpy.float32): The rule's hyperparameters, in the kernel's order.
        """
        if not all(param.array is array and rule.state is state and rule._fp32_param is master
                   for param, rule, (array, state, master) in zip(self._params, self._rules, self._laid)):
            self._lay()  # somebody has replaced one, as resuming does
        for rule in self._rules:
            rule.t += 1
        self._places.launch(
            self._kernel, [param.grad for param in self._params], *scalars, self._decays, self._failed_at,
            self._thetas, self._ms, self._deltas, np.uintp(0) if self._halves is None else self._halves)
