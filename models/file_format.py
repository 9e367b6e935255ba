"""The format of weights files and checkpoints, and today's names for what older ones hold.

A network writes its format as one more value, wherever its values go: an entry ``format`` in weights,
``model/format`` in a checkpoint. ``load_npz``, which asks for the values it knows, never looks at it.

* 2: the blocks of a stage are named in the order of execution.
* 1, without the entry: they are not. Chainer 7.8.1's ``Sequential.insert`` lacks a ``break``, and put every
  further block right behind the first one.
"""

import re

from lib.errors import UserError

import chainer
import numpy as np

FORMAT = 2
_ENTRY = 'format'
_BLOCK = re.compile(r'(?P<stage>(?:model/|optimizer/)?res\d+/)(?P<block>\d{1,3})(?P<value>/.+)')
_STATISTICS = 'workers/statistics'


def mark(serializer):
    """Write the format among the values of the network being saved; do nothing when one is being loaded."""
    if isinstance(serializer, chainer.Serializer):
        serializer(_ENTRY, FORMAT)


def names_before(n_blocks):
    """Name the blocks of a stage of ``n_blocks`` as format 1 does, in the order of execution."""
    return [0, *range(n_blocks - 1, 0, -1)]


def to_current(path, arrays, prefix='', report=lambda line: None):
    """Give what a file holds the names of the current format.

    Values do not tell which of two blocks runs first: a file with stages and without a format is taken for
    one of format 1.

    Args:
        path: File, for messages.
        arrays (dict of str to numpy.ndarray): Its entries.
        prefix (str): Of the network's values, ``model/`` in a checkpoint.
        report (callable): Called with one line if blocks get other names.

    Returns:
        dict of str to numpy.ndarray: The entries, with the format if they have stages. The workers'
        statistics, which lie in the order of the links' paths, are in the order of the new ones.

    Raises:
        UserError: The format is newer than this program.
    """
    entry = f'{prefix}{_ENTRY}'
    depths = _depths(arrays)
    if entry in arrays:
        found = arrays[entry].tolist()
    else:
        found = 1 if depths else FORMAT  # without stages, names are what they were
    if found == FORMAT:
        return arrays
    if found != 1:
        raise UserError(f'{path}: written in format {found}, and this program reads formats up to {FORMAT}; '
                        'use the version of the program that wrote it, or a newer one')

    def renamed(name):
        match = _BLOCK.fullmatch(name)
        if not match:
            return name
        before = names_before(depths[match['stage']])
        return f"{match['stage']}{before.index(int(match['block']))}{match['value']}"

    current = {renamed(name): array for name, array in arrays.items()}
    if _STATISTICS in arrays:
        current[_STATISTICS] = _permuted(arrays, prefix, renamed)
    if any(depth > 2 for depth in depths.values()):
        report(f'{path}: without a format, so its blocks are taken to be named as they were before format 2, '
               'and renamed in the order of execution')
    return {**current, entry: np.array(FORMAT)}


def _depths(arrays):
    """Number of blocks of each stage, by the stage's path."""
    depths = {}
    for match in filter(None, map(_BLOCK.fullmatch, arrays)):
        depths[match['stage']] = max(depths.get(match['stage'], 0), int(match['block']) + 1)
    return depths


def _permuted(arrays, prefix, renamed):
    """Workers' statistics as :mod:`lib.batch_statistics` lays them out: all means, then all variances."""
    links = sorted(name[:-len('/avg_mean')] for name in arrays
                   if name.startswith(prefix) and name.endswith('/avg_mean'))
    sizes = [arrays[f'{link}/avg_mean'].size for link in links]
    parts = np.split(arrays[_STATISTICS], np.cumsum(sizes + sizes)[:-1], axis=1)
    order = sorted(range(len(links)), key=lambda i: renamed(links[i]))
    return np.concatenate([parts[i] for i in order] + [parts[len(links) + i] for i in order], axis=1)
