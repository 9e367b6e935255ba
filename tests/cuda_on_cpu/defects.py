"""train_imagenet.py with a defect planted in its GPU path: ``python defects.py DEFECT OPTIONS``."""

import ctypes
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from lib.gpu import cudnn  # noqa: E402

import cupy  # noqa: E402
from cupy.cuda import nccl  # noqa: E402


def kernel():
    """The update divides by the second moment instead of its square root."""
    true_kernel = cupy.RawKernel

    def planted(source, name, *more, **options):
        if name == 'update':
            source = source.replace('sqrt(', '(')
        return true_kernel(source, name, *more, **options)
    cupy.RawKernel = planted


def order():
    """NCCL sums on a stream of its own, and no event makes the others wait for it."""
    streams = []

    def on_own_stream(send, receive, count, dtype, operation, stream):
        if not streams:
            streams.append(cupy.cuda.Stream(non_blocking=True))
        return send, receive, count, dtype, operation, streams[0].ptr
    _change_all_reduce(on_own_stream)


def count():
    """NCCL is told of half of the elements."""
    _change_all_reduce(lambda send, receive, count, *more: (send, receive, count // 2, *more))


def stream():
    """cuDNN works on a stream of its own, and no event makes the others wait for it."""
    own = cupy.cuda.Stream(non_blocking=True)
    call = cudnn._call

    def planted(function, *arguments):
        if function == 'cudnnSetStream':
            arguments = arguments[0], ctypes.c_void_p(own.ptr)
        call(function, *arguments)
    cudnn._call = planted


def operands():
    """A convolution's weights get the gradient of another image's pixels."""
    _change_convolution('BackwardFilter', lambda x, gy, *more: (cupy.roll(x, 1, axis=0), gy, *more))


def stride():
    """The gradient of a convolution's input is taken at every pixel."""
    _change_convolution('BackwardData', lambda w, gy, shape, stride, pad: (w, gy, shape, 1, pad))


def _change_convolution(direction, change):
    convolve = cudnn.convolve
    cudnn.convolve = lambda which, *arguments: convolve(
        which, *(change(*arguments) if which == direction else arguments))


def _change_all_reduce(change):
    """From the second call on: the first is the program's own check, of known values."""
    calls = []

    class Changed(nccl.NcclCommunicator):
        def allReduce(self, *arguments):  # noqa: N802  (CuPy's name)
            super().allReduce(*(change(*arguments) if calls else arguments))
            calls.append(arguments)
    nccl.NcclCommunicator = Changed


if __name__ == '__main__':
    defect = sys.argv.pop(1)
    {each.__name__: each for each in (kernel, order, count, stream, operands, stride)}[defect]()
    import train_imagenet
    sys.exit(train_imagenet.main())
