"""train_imagenet.py with a defect planted in its GPU path: ``python defects.py DEFECT OPTIONS``."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

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
    """NCCL is told of all elements but the last."""
    _change_all_reduce(lambda send, receive, count, *more: (send, receive, count - 1, *more))


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
    {'kernel': kernel, 'order': order, 'count': count}[defect]()
    import train_imagenet
    sys.exit(train_imagenet.main())
