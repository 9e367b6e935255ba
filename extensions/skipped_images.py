"""Says which images could not be decoded and were skipped."""

from lib import errors

import chainer
from chainer import training


class SkippedImages(training.Extension):
    """Names each skipped image once, and reports how many this run has met: ``skipped_images``.

    Runs on every process; the count in the log is rank 0's.

    Args:
        skipped (list of lists): Of tuples that begin with a path and a reason; they grow as training goes on.
        rank (int): This process.
    """

    default_name = 'SkippedImages'

    def __init__(self, skipped, rank):
        self._skipped = skipped
        self._rank = rank
        self._named = set()

    def __call__(self, trainer):
        for path, reason, *_ in (entry for entries in self._skipped for entry in entries):
            if path not in self._named:
                self._named.add(path)
                errors.say_line(f'rank {self._rank}: skipped {path} ({reason})')
        chainer.report({'skipped_images': sum(map(len, self._skipped))})
