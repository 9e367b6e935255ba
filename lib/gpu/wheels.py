"""CUDA libraries out of pip's wheels, for CuPy 13, which looks for NCCL alone there.

CuPy 13.6 is linked against cuBLAS, cuDNN 8 and others by name, and expects them from a CUDA toolkit on the
loader's path. A library of the same name that the process has loaded already serves as well: this loads those
of the extra ``gpu`` (setup.py), where they are installed. CuPy 14 finds its own; :mod:`lib.gpu.cudnn` asks
here.

:mod:`lib.compat` loads them when Chainer imports CuPy; processes that do not, load nothing.
"""

import contextlib
import ctypes
import glob
import importlib.util
import os
import sys
import warnings

# What Chainer and this project use of CUDA, those that others need first. cuDNN is in several parts.
_LIBRARIES = (
    'cuda_nvrtc/lib/libnvrtc.so.12',
    'cublas/lib/libcublasLt.so.12',
    'cublas/lib/libcublas.so.12',
    'cudnn/lib/libcudnn*.so.8',
)


def preload():
    """Load what is installed; warnings of what is not give way to ``lib.run.devices.notes``."""
    # CuPy would write its reductions with CUB, whose kernels take six times as long to compile.
    os.environ.setdefault('CUPY_ACCELERATORS', '')
    warnings.filterwarnings('ignore', r'\s*(cudnn|nccl) library could not be loaded|cuDNN is not enabled',
                            UserWarning)
    for pattern in _LIBRARIES:
        for path in find(pattern):
            # One that does not load is missed, by name, when CuPy needs it.
            with contextlib.suppress(OSError):
                ctypes.CDLL(path, ctypes.RTLD_GLOBAL)


def find(pattern):
    """Return the paths of what NVIDIA's wheels installed: ``pattern`` is within their common folder."""
    spec = importlib.util.find_spec('nvidia')
    folders = spec.submodule_search_locations if spec else ()
    return [path for folder in folders for path in sorted(glob.glob(os.path.join(folder, pattern)))]


class _BeforeCupy:
    """Finds no module, but notices that CuPy is looked for."""

    def find_spec(self, name, path=None, target=None):
        if name == 'cupy' and self in sys.meta_path:
            sys.meta_path.remove(self)
            preload()


def preload_with_cupy():
    """Have :func:`preload` called when CuPy is about to be imported."""
    sys.meta_path.insert(0, _BeforeCupy())
