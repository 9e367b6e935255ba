"""What was compiled when the project was installed.

``loops``: from ``loops.c``; None where that failed. :func:`layers`: from ``layers.c``, for the vectors that
this machine has, or those that the environment variable ``EXTREME_SGD_VECTORS`` names. Results with other
vectors differ by rounding; with the same they are the same on every machine. What was compiled from other
sources than lie here now is not used (:data:`outdated`).
"""

import functools
import importlib
import os

from lib.compiled import sources
from lib.errors import UserError

outdated = []  # names of modules that were compiled from other sources than lie here


def _import(name, *names):
    """Import a module that was compiled from these sources, or return None."""
    try:
        module = importlib.import_module(f'lib.compiled.{name}')
    except ImportError:
        return None
    expected = sources.fingerprint(*names)
    if expected is None or getattr(module, 'sources', None) == expected:
        return module
    outdated.append(name)
    return None


loops = _import('_loops', *sources.LOOPS)

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
    return _import(f'_layers_{name}', *sources.LAYERS, *sources.LAYERS_HEADERS)
