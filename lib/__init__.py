"""The method of the paper: mathematics, optimizer, communication, data and checkpoints."""

from lib import compat  # noqa: F401  (before anything that imports Chainer)
