"""What was compiled when the project was installed.

``loops``: from ``loops.c``; None where that failed. :func:`layers`: from ``layers.c``, for the vectors that
this machine has, or those that the environment variable ``EXTREME_SGD_VECTORS`` names. Results with other
vectors differ by rounding; with the same they are the same on every machine.
"""

import functools
import importlib
import os

from lib.errors import UserError

try:
    from lib.compiled import _loops as loops
except ImportError:
    loops = None

VARIABLE = 'EXTREME_SGD_VECTORS'
WIDTHS = ('none', 'baseline', 'avx2', 'avx512')  # each machine has those up to its own


def available():
    """Return the names that :func:`vectors` may give here, the widest last."""
    baseline = _module('baseline')
    if not baseline:
        return ['none']
    widest = WIDTHS.index(baseline.machine())
    return ['none', *(name for name in WIDTHS[1:widest + 1] if _module(name))]


@functools.cache
def vectors():
    """Return the name of the vectors that the networks' layers compute with on a CPU.

    One of ``avx512``, ``avx2`` (with FMA), ``baseline`` (what every machine of this kind has: SSE2 on x86-64)
    and ``none``: NumPy and Chainer, as without a compiler.

    Raises:
        UserError: ``EXTREME_SGD_VECTORS`` names none of these, or one that this machine or installation
            lacks.
    """
    names = available()
    chosen = os.environ.get(VARIABLE) or names[-1]
    if chosen not in names:
        raise UserError(f'{VARIABLE}={chosen}: this machine and installation have {", ".join(names)}; '
                        'name one of them, or unset the variable')
    return chosen


def layers():
    """Return the compiled layers, for the vectors in use, or None: see ``layers.c``."""
    return _module(vectors())


@functools.cache
def _module(name):
    try:
        return importlib.import_module(f'lib.compiled._layers_{name}')
    except ImportError:
        return None
