"""cuDNN's convolution and batch normalization by ctypes, for CuPys that have no cuDNN of their own.

Chainer 7.8.1 reaches cuDNN through CuPy, which knows version 8 alone, and from CuPy 14 on none. Without it a
convolution is im2col and a matrix product. The functions that these networks need are called here as the C
library has them: "legacy" ones, the same in cuDNN 8 and 9 (9.28 has them). NVIDIA's package
``nvidia-cudnn-frontend`` speaks cuDNN's newer graphs instead. It needs CUTLASS's compiler, for kernels that
nothing here uses, and Python 3.10; and to build, plan and keep a graph for each shape takes more lines than
these calls.

cuDNN wants a descriptor (shape and type) beside each array's address; both are passed on. Work is put on
CuPy's current stream; its results, and the scratch memory that it needs, come from CuPy's pool. Arrays are
float16 or float32 in the order batch, channels, height, width, on the current device. Sums are in float32.

Where Chainer has cuDNN that one is used, unless the environment has ``EXTREME_SGD_CUDNN=own``.
"""

import contextlib
import ctypes
import functools
import os
from ctypes import byref, c_double, c_float, c_int, c_size_t, c_void_p

from lib.errors import UserError
from lib.gpu import wheels

import chainer
from chainer.backends import cuda

# Scratch memory that an algorithm may use, in bytes. Chainer's default of 8 MiB rules the quickest out.
WORKSPACE = 512 << 20

VARIABLE = 'EXTREME_SGD_CUDNN'

# cuDNN's constants.
_TYPES = {'f': 0, 'e': 2}  # of float32 and float16, as NumPy abbreviates them
# The default for float32 is TF32 on GPUs that can; float16 asks for tensor cores on every GPU.
_MATH = {'f': 0, 'e': 1}
_WITHOUT_TF32 = 3
_NCHW = 0
_CROSS_CORRELATION = 1
_PER_CHANNEL = 1
_ALGORITHMS = 16  # to choose from: as many as there are, with and without tensor cores

# Results are multiplied by 1, and added to 0 times what was there.
_ONE, _ZERO = byref(c_float(1)), byref(c_float(0))


class _Performance(ctypes.Structure):
    """cudnnConvolution{Fwd,BwdData,BwdFilter}AlgoPerf_t."""

    _fields_ = [('algorithm', c_int), ('status', c_int), ('milliseconds', c_float), ('memory', c_size_t),
                ('deterministic', c_int), ('math', c_int), ('reserved', c_int * 3)]


@functools.cache
def library():
    """Return the cuDNN that this module calls; None where Chainer has one, or none is found.

    Raises:
        UserError: ``EXTREME_SGD_CUDNN`` has a value that means nothing.
    """
    chosen = os.environ.get(VARIABLE) or 'chainer'
    if chosen not in ('chainer', 'own'):
        raise UserError(f'{VARIABLE}={chosen}: expected own, for lib/gpu/cudnn.py, or chainer')
    if not cuda.available or cuda._cudnn_disabled_by_user or (cuda.cudnn_enabled and chosen == 'chainer'):
        return None
    names = ['libcudnn.so.9', 'libcudnn.so.8']
    if cuda.cudnn_enabled:
        del names[0]  # two versions in one process could mistake each other's functions for their own
    elif cuda.cupy.cuda.runtime.runtimeGetVersion() >= 13000:
        del names[1]  # needs libraries of CUDA 12, and ends a process that does not find them
    for path in (path for name in names for path in (*wheels.find(f'cudnn/lib/{name}'), name)):
        with contextlib.suppress(OSError):
            loaded = ctypes.CDLL(path)
            loaded.cudnnGetVersion.restype = c_size_t
            loaded.cudnnGetErrorString.restype = ctypes.c_char_p
            return loaded
    return None


def version():
    """Return the version of the cuDNN in use, this module's or Chainer's, such as 8907 or 91002; or None."""
    if chainer.config.use_cudnn == 'never':
        return None
    if library():
        return library().cudnnGetVersion()
    return cuda.libcudnn.getVersion() if cuda.cudnn_enabled else None


def covers(*arrays):
    """Whether this module computes with these: CuPy's arrays of float16 or float32, not empty."""
    return library() is not None and chainer.config.use_cudnn != 'never' and all(
        isinstance(array, cuda.ndarray) and array.dtype.char in _TYPES and array.size for array in arrays)


def convolve(direction, first, second, shape, stride, pad):
    """Return a convolution, or its gradient with respect to one of its operands.

    Args:
        direction (str): ``Forward`` makes y of x and W; ``BackwardData`` gx of W and gy; ``BackwardFilter``
            gW of x and gy.
        first, second: These two.
        shape (tuple): Of the result.
        stride, pad (int): Of the convolution, in both directions of the image.

    Raises:
        RuntimeError: cuDNN fails; the message holds its own, or the shapes that it has no algorithm for.
    """
    first, second = map(cuda.cupy.ascontiguousarray, (first, second))
    result = cuda.cupy.empty(shape, first.dtype)
    filters = {'Forward': second, 'BackwardData': first, 'BackwardFilter': result}[direction]
    operands = [(_filter if array is filters else _tensor)(array.shape, array.dtype.char)
                for array in (first, second, result)]
    operands = [*zip(operands, map(_address, (first, second, result)))]
    key = (direction, first.shape, second.shape, shape, stride, pad, first.dtype.char,
           cuda.cupy.cuda.runtime.getDevice(), chainer.config.autotune, chainer.config.cudnn_deterministic)
    if key not in _chosen:
        _chosen[key] = _choose(direction, operands, stride, pad, first.dtype.char)
        if _chosen[key] is None:
            raise RuntimeError(f'cuDNN {version()} has no algorithm for a convolution ({direction}) of '
                               f'{first.shape} and {second.shape}, stride {stride}, pad {pad}, {first.dtype}')
    descriptor, algorithm, size = _chosen[key]
    workspace = cuda.cupy.cuda.alloc(size)
    _call(f'cudnnConvolution{direction}', _handle(), _ONE, *operands[0], *operands[1], descriptor, algorithm,
          c_void_p(workspace.ptr), c_size_t(size), _ZERO, *operands[2])
    return result


_chosen = {}  # by shape and what else matters: the convolution's descriptor, algorithm and scratch memory


def _choose(direction, operands, stride, pad, char):
    """The quickest algorithm that may be used: timed if Chainer's ``autotune`` says so, otherwise estimated.

    Timing overwrites the result.
    """
    descriptor = c_void_p()
    _call('cudnnCreateConvolutionDescriptor', byref(descriptor))
    _call('cudnnSetConvolution2dDescriptor', descriptor, pad, pad, stride, stride, 1, 1, _CROSS_CORRELATION,
          _TYPES['f'])
    forbidden = char == 'f' and os.environ.get('NVIDIA_TF32_OVERRIDE') == '0'  # by lib/run/devices.py
    _call('cudnnSetConvolutionMathType', descriptor, _WITHOUT_TF32 if forbidden else _MATH[char])
    found, quickest_first = c_int(), (_Performance * _ALGORITHMS)()
    into = _ALGORITHMS, byref(found), quickest_first
    first, second, result = operands
    if chainer.config.autotune:
        workspace = cuda.cupy.cuda.alloc(WORKSPACE)
        _call(f'cudnnFindConvolution{direction}AlgorithmEx', _handle(), *first, *second, descriptor, *result,
              *into, c_void_p(workspace.ptr), c_size_t(WORKSPACE))
    else:
        _call(f'cudnnGetConvolution{direction}Algorithm_v7', _handle(), first[0], second[0], descriptor,
              result[0], *into)
    for each in quickest_first[:found.value]:
        allowed = each.deterministic or not chainer.config.cudnn_deterministic
        if each.status == 0 and each.memory <= WORKSPACE and allowed:
            _call('cudnnSetConvolutionMathType', descriptor, each.math)
            return descriptor, each.algorithm, each.memory
    return None


def normalize(x, gamma, beta, running_mean, running_var, decay, eps):
    """Normalize each channel of a batch by its own statistics, and update the running ones in place.

    Args:
        gamma, beta: float32, one per channel.
        running_mean, running_var: The same; both None if nothing is to be updated. As in Chainer the variance
            kept is the unbiased one.
        decay (float): Part that is kept of them.

    Returns:
        tuple: y, and for :func:`normalize_backward` the mean and the standard deviation's inverse.
    """
    x, y = _with_result(x)
    mean, inverse = cuda.cupy.empty_like(gamma), cuda.cupy.empty_like(gamma)
    _call('cudnnBatchNormalizationForwardTraining', _handle(), _PER_CHANNEL, _ONE, _ZERO, *_tensors(x, y),
          _per_channel(gamma), *map(_address, (gamma, beta)), c_double(1 - decay),
          *map(_address, (running_mean, running_var)), c_double(eps), *map(_address, (mean, inverse)))
    return y, mean, inverse


def normalize_backward(x, gy, gamma, mean, inverse, eps):
    """Return the gradients with respect to x, gamma and beta of what :func:`normalize` did."""
    x, gx = _with_result(x)
    ggamma, gbeta = cuda.cupy.empty_like(gamma), cuda.cupy.empty_like(gamma)
    _call('cudnnBatchNormalizationBackward', _handle(), _PER_CHANNEL, _ONE, _ZERO, _ONE, _ZERO,
          *_tensors(x, cuda.cupy.ascontiguousarray(gy), gx), _per_channel(gamma),
          *map(_address, (gamma, ggamma, gbeta)), c_double(eps), *map(_address, (mean, inverse)))
    return gx, ggamma, gbeta


def normalize_by(x, gamma, beta, mean, var, eps):
    """Normalize each channel by the statistics given."""
    x, y = _with_result(x)
    _call('cudnnBatchNormalizationForwardInference', _handle(), _PER_CHANNEL, _ONE, _ZERO, *_tensors(x, y),
          _per_channel(gamma), *map(_address, (gamma, beta, mean, var)), c_double(eps))
    return y


def _with_result(x):
    x = cuda.cupy.ascontiguousarray(x)
    return x, cuda.cupy.empty_like(x)


def _tensors(*arrays):
    for array in arrays:
        yield _tensor(array.shape, array.dtype.char)
        yield _address(array)


def _per_channel(gamma):
    return _tensor((1, gamma.size, 1, 1), gamma.dtype.char)


@functools.cache
def _tensor(shape, char):
    descriptor = c_void_p()
    _call('cudnnCreateTensorDescriptor', byref(descriptor))
    _call('cudnnSetTensor4dDescriptor', descriptor, _NCHW, _TYPES[char], *shape)
    return descriptor


@functools.cache
def _filter(shape, char):
    descriptor = c_void_p()
    _call('cudnnCreateFilterDescriptor', byref(descriptor))
    _call('cudnnSetFilter4dDescriptor', descriptor, _TYPES[char], _NCHW, *shape)
    return descriptor


def _address(array):
    # A plain int would reach C as one of 32 bits.
    return c_void_p(None if array is None else array.data.ptr)


def _handle():
    """cuDNN's state on the current device, told of CuPy's current stream."""
    handle = _handle_on(cuda.cupy.cuda.runtime.getDevice())
    _call('cudnnSetStream', handle, c_void_p(cuda.cupy.cuda.get_current_stream().ptr))
    return handle


@functools.cache
def _handle_on(device):
    handle = c_void_p()
    _call('cudnnCreate', byref(handle))
    return handle


def _call(function, *arguments):
    status = getattr(library(), function)(*arguments)
    if status:
        message = library().cudnnGetErrorString(status).decode()
        raise RuntimeError(f'{function}: {message} (cuDNN {version()})')
