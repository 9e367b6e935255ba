"""Make Chainer 7.8.1 importable on Python 3.9-3.13 and NumPy 1.22-2.x.

Chainer's last release predates NumPy 2 and the removal of ``pkg_resources`` and ``numpy.distutils``.
Three names are all that its import, and the parts used here, miss:

* ``chainer._environment_check`` imports ``numpy.distutils`` and ``pkg_resources`` only to warn about old
  installations: it is replaced by a module whose ``check`` does nothing;
* ``numpy.sctypes`` (removed in NumPy 2.0) is read by ``chainer.testing`` and ``chainer.utils.type_check``;
* ``numpy.float`` (removed in NumPy 1.24) is read by ``chainer.functions.resize_images``.

Chainer imports CuPy where it is installed; :mod:`lib.gpu.wheels` makes its libraries be found.

Imported by ``lib``, ``models`` and ``extensions`` before anything that imports Chainer.
It imports neither Chainer nor MPI, so that image-decoding processes may import ``lib`` freely.
"""

import sys
import types

from lib.gpu import wheels

import numpy as np


def _install_environment_check():
    name = 'chainer._environment_check'
    if name not in sys.modules:
        module = types.ModuleType(name, 'Stands in for the original, which cannot be imported any more.')
        module.check = lambda: None
        sys.modules[name] = module


def _restore_numpy_names():
    # hasattr on a removed name makes NumPy 1.24 warn or raise its own hint; __dict__ is silent.
    names = vars(np)
    if 'sctypes' not in names:
        np.sctypes = {
            'int': [np.int8, np.int16, np.int32, np.int64],
            'uint': [np.uint8, np.uint16, np.uint32, np.uint64],
            'float': [np.float16, np.float32, np.float64, np.longdouble],
            'complex': [np.complex64, np.complex128, np.clongdouble],
            'others': [bool, object, bytes, str, np.void],
        }
    if 'float' not in names:
        np.float = float


_install_environment_check()
_restore_numpy_names()
wheels.preload_with_cupy()
