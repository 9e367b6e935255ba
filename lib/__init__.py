"""The method of the paper: mathematics, optimizer, communication, data and checkpoints."""

from lib.run import environment

environment.prepare()  # before NumPy is imported, here or anywhere

from lib import compat  # noqa: E402, F401  (before anything that imports Chainer)
