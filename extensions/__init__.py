"""Chainer trainer extensions."""

from lib import compat  # noqa: F401  (before anything that imports Chainer)
