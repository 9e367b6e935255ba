"""How long the parts of an iteration take, without slowing it down."""

import contextlib
import time

from chainer.backends import cuda

# Spans of one name kept as events before the older half is read: an epoch on one GPU has 40,000 iterations.
EVENTS = 2048


class Timer:
    """Measures named spans of a program.

    ::

        timer = Timer(gpu)
        with timer('allreduce'):
            comm.multi_node_mean_grad(model)
        seconds = timer.collect()['allreduce']

    On the CPU by the clock. On a GPU, whose work is queued, by events on the current stream: recording one
    waits for nothing, and a span is the time by which it kept the stream occupied or idle.

    Args:
        gpu (bool): Whether the work timed is done by the current GPU.
    """

    def __init__(self, gpu):
        self._gpu = gpu
        self._spans = {}
        self._read = {}

    @contextlib.contextmanager
    def __call__(self, name):
        """Time a block; one that ends by an exception does not count."""
        start = self._now()
        yield
        spans = self._spans.setdefault(name, [])
        spans.append((start, self._now()))
        if self._gpu and len(spans) == EVENTS:
            self._read_oldest(name, EVENTS // 2)

    def collect(self):
        """Times since the last call; on a GPU waits until the work timed is done.

        Returns:
            dict: For each name, its spans in seconds (list of float) in the order in which they ended.
        """
        for name, spans in self._spans.items():
            self._read_oldest(name, len(spans))
        read, self._spans, self._read = self._read, {}, {}
        return read

    def _read_oldest(self, name, count):
        spans = self._spans[name]
        self._read.setdefault(name, []).extend(self._seconds(*span) for span in spans[:count])
        del spans[:count]

    def _now(self):
        if not self._gpu:
            return time.perf_counter()
        event = cuda.Event()
        event.record()
        return event

    def _seconds(self, start, stop):
        if not self._gpu:
            return stop - start
        stop.synchronize()
        return cuda.cupy.cuda.get_elapsed_time(start, stop) / 1000  # given in milliseconds
