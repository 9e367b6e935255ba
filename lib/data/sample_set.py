"""The embedded sample set: patterns, drawn once into the user's cache as real JPEG files.

It stands in for ImageNet where there is none: the same layout (``train/<class>/*.JPEG``, ``val/...``), files
of many sizes and shapes, a few of them grayscale. A class is a pattern (dots, bricks, rings, ...) in two
opposite colors that vary around an axis of its own; either may be the ground. Scale, rotation, position,
lighting and noise are random. So neither the mean color nor any single pixel tells the classes apart, and a
linear classifier is right for a quarter of them; yet a small convolutional network learns them within
minutes, also from random crops and mirror images.
"""

import math
import os
import shutil

from lib import random_streams
from lib.errors import UserError

import filelock
import numpy as np
from PIL import Image

SEED = 2017
VERSION = 2                                  # raise it when anything that is drawn changes
CLASSES = ('blobs', 'bricks', 'checks', 'crosses', 'dots', 'honeycomb', 'rays', 'rings', 'stripes', 'zigzags')
TRAIN_PER_CLASS = 240
VAL_PER_CLASS = 50
N_TRAIN = TRAIN_PER_CLASS * len(CLASSES)
N_VAL = VAL_PER_CLASS * len(CLASSES)


def ensure_sample_set(cache=None):
    """Draw the sample set unless the cache already holds it.

    Any number of processes may call this at once: one draws (about five seconds), the others wait for it. It
    is drawn beside its place and renamed, so that it is there complete or not at all, whatever gets killed.

    Args:
        cache (str or None): Directory to keep it in, by default ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns:
        tuple of str: The directories of the training and of the validation images.

    Raises:
        UserError: If the cache cannot be written.
    """
    if cache is None:
        cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    project = os.path.join(cache, 'extremely-large-minibatch-sgd')
    place = os.path.join(project, f'sample-set-{VERSION}')
    try:
        if not _is_complete(place):
            os.makedirs(project, exist_ok=True)
            with filelock.FileLock(place + '.lock'):
                if not _is_complete(place):
                    _write(place)
    # NotImplementedError: a file system without locks.
    except (OSError, NotImplementedError) as error:
        raise UserError(f'{project}: the sample set cannot be kept there '
                        f'({getattr(error, "strerror", None) or error}); set XDG_CACHE_HOME to a directory '
                        'that can be written, with 20 MB to spare, or give TRAIN and VAL') from None
    return os.path.join(place, 'train'), os.path.join(place, 'val')


def _files():
    """``(folder, class, file names)`` of each class of both splits; folders are relative."""
    for split, count in ('train', TRAIN_PER_CLASS), ('val', VAL_PER_CLASS):
        for name in CLASSES:
            yield os.path.join(split, name), name, [f'{name}_{i:03d}.JPEG' for i in range(count)]


def _is_complete(place):
    # Looks at every name, since caches on scratch disks are purged file by file.
    try:
        return all(set(files) <= set(os.listdir(os.path.join(place, folder)))
                   for folder, _, files in _files())
    except FileNotFoundError:
        return False


def _write(place):
    partial = place + '.partial'
    for remains in (partial, place):
        if os.path.exists(remains):
            shutil.rmtree(remains)
    index = 0
    for folder, name, files in _files():
        os.makedirs(os.path.join(partial, folder))
        for file in files:
            draw(name, index).save(os.path.join(partial, folder, file), format='JPEG', quality=90)
            index += 1
    os.rename(partial, place)


def draw(name, index):
    """Draw one image.

    Args:
        name (str): Class, one of :data:`CLASSES`.
        index (int): Which image of the set, from 0; determines all but the class.

    Returns:
        PIL.Image.Image: Of mode RGB, or L for one image in 60.
    """
    draws = _Draws(index)
    grayscale = index % 60 == 7
    short = draws.uniform(72, 112)
    width, height = round(short), round(short * draws.uniform(1, 1.5))
    if draws.uniform(0, 1) < 0.6:
        width, height = height, width

    # Pixel coordinates, gently bent and rotated, in units of the pattern's period.
    period = short * draws.uniform(0.16, 0.28)
    y, x = np.meshgrid(np.arange(height, dtype=np.float32) - height / 2,
                       np.arange(width, dtype=np.float32) - width / 2, indexing='ij')
    light = 1 + (draws.uniform(-0.35, 0.35) * x + draws.uniform(-0.35, 0.35) * y) / short
    x += draws.uniform(0, 0.12) * period * np.sin(y * (6 / short) + draws.uniform(0, 2 * math.pi))
    y += draws.uniform(0, 0.12) * period * np.sin(x * (6 / short) + draws.uniform(0, 2 * math.pi))
    angle = draws.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle) / period, math.sin(angle) / period
    u, v = cos * x - sin * y, sin * x + cos * y

    pattern, axis = _CLASSES[name]
    ground, figure = _opposite_colors(_BRIGHTNESS if grayscale else axis, draws)
    # The edges are a pixel and a half wide, which spares the eye the stairs.
    figure_share = np.clip(pattern(u, v, draws) * (period / 1.5) + 0.5, 0, 1)
    image = (figure - ground)[:, None, None] * figure_share + ground[:, None, None]
    image *= light
    image += draws.uniform(0.02, 0.1) * draws.noise(height, width)
    pixels = (np.clip(image, 0, 1, out=image) * 255).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return picture.convert('L') if grayscale else picture


class _Draws:
    """Counter-based random numbers: each image has its own, whichever are drawn before it."""

    def __init__(self, index):
        self._bits = random_streams.stream(SEED, index)

    def uniform(self, low, high):
        return low + (high - low) * random_streams.uniforms(self._bits, 1).item()

    def noise(self, height, width):
        """Triangular noise in [-1, 1], float32, shape ``(height, width)``."""
        n = height * width
        raw = random_streams.random_bytes(self._bits, 2 * n).astype(np.float32)
        return ((raw[:n] - raw[n:]) / 255).reshape(height, width)


def _opposite_colors(axis, draws):
    """Two colors opposite one another along about ``axis``, in random order: float32 RGB around [0, 1].

    Their mean is a gray that has nothing to do with the axis.
    """
    axis = np.array(axis) / 3 ** 0.5 + [draws.uniform(-0.3, 0.3) for _ in range(3)]
    axis *= draws.uniform(0.22, 0.5) / math.sqrt(axis @ axis)
    if draws.uniform(0, 1) < 0.5:
        axis = -axis
    middle = np.array([draws.uniform(0.38, 0.62) for _ in range(3)])
    return (middle - axis).astype(np.float32), (middle + axis).astype(np.float32)


# Patterns: functions of float32 coordinates u, v, in periods, that give about the distance to the edge of the
# figure, also in periods and positive inside. Some stretch u and v, so that all look about equally coarse.

def _offset(a, phase=0.0):
    """Distance of ``a`` to the nearest integer + ``phase``, signed, in [-1/2, 1/2]."""
    a = a - phase
    return a - np.rint(a)


def _stripes(u, v, draws):
    return draws.uniform(0.2, 0.3) - abs(_offset(u, draws.uniform(0, 1)))


def _zigzags(u, v, draws):
    return _stripes(u + draws.uniform(0.9, 1.3) * abs(_offset(v / 1.6)), v, draws) * 0.75


def _checks(u, v, draws):
    a = abs(_offset(u / 1.2, draws.uniform(0, 1))) - 0.25
    b = abs(_offset(v / 1.2, draws.uniform(0, 1))) - 0.25
    edge = 1.2 * np.minimum(abs(a), abs(b))
    return np.where(a * b > 0, edge, -edge)


def _hexagonal(u, v, draws):
    """Sizes ``(|u|, |v|)`` of the offset to the points of a hexagonal lattice, for both its sublattices."""
    u, v = u - draws.uniform(0, 1), v / 3 ** 0.5 - draws.uniform(0, 1)
    return [(abs(_offset(u, shift)), 3 ** 0.5 * abs(_offset(v, shift))) for shift in (0, 0.5)]


def _dots(u, v, draws):
    return draws.uniform(0.26, 0.34) - np.minimum(*(np.hypot(a, b) for a, b in _hexagonal(u, v, draws)))


def _honeycomb(u, v, draws):
    # The larger of the projections on a cell's three axes is 1/2 at the border to the next cell.
    cells = (np.maximum(a, (a + 3 ** 0.5 * b) / 2) for a, b in _hexagonal(u / 1.2, v / 1.2, draws))
    return 1.2 * (np.minimum(*cells) - draws.uniform(0.38, 0.42))


def _crosses(u, v, draws):
    a, b = abs(_offset(u / 1.2, draws.uniform(0, 1))), abs(_offset(v / 1.2, draws.uniform(0, 1)))
    long, thick = draws.uniform(0.34, 0.4), draws.uniform(0.1, 0.14)
    return np.maximum(np.minimum(long - a, thick - b), np.minimum(thick - a, long - b)) * 1.2


def _bricks(u, v, draws):
    u, v = u / 1.6 - draws.uniform(0, 1), v / 0.8 - draws.uniform(0, 1)
    row = np.floor(v)
    joint = np.minimum(0.8 * abs(_offset(v)), 1.6 * abs(_offset(u, 0.5 * (row % 2))))
    return joint - draws.uniform(0.07, 0.11)


def _blobs(u, v, draws):
    total = 0
    for k in range(6):
        angle = draws.uniform(k, k + 1) * math.pi / 6
        phase = draws.uniform(0, 2 * math.pi)
        total = total + np.sin(4 * math.cos(angle) * u + 4 * math.sin(angle) * v + phase)
    return (total + draws.uniform(-0.6, 0.6)) / 8


def _rings(u, v, draws):
    r = np.hypot(u - draws.uniform(-1, 1), v - draws.uniform(-1, 1))
    return draws.uniform(0.2, 0.3) - abs(_offset(r, draws.uniform(0, 1)))


def _rays(u, v, draws):
    u, v = u - draws.uniform(-1, 1), v - draws.uniform(-1, 1)
    width = 2 * math.pi / int(draws.uniform(7, 12))
    return (0.25 - abs(_offset(np.arctan2(v, u) / width, draws.uniform(0, 1)))) * width * np.hypot(u, v)


# Each class has a pattern and, loosely, an axis of colors. The axes are the ten lines through opposite
# corners of a regular dodecahedron, 42 degrees apart or more; one of them is brightness.
_PHI = (1 + 5 ** 0.5) / 2
_BRIGHTNESS = (1, 1, 1)
_CLASSES = {
    'blobs': (_blobs, (0, 1 / _PHI, _PHI)),
    'bricks': (_bricks, (0, 1 / _PHI, -_PHI)),
    'checks': (_checks, (1 / _PHI, -_PHI, 0)),
    'crosses': (_crosses, (_PHI, 0, 1 / _PHI)),
    'dots': (_dots, (1 / _PHI, _PHI, 0)),
    'honeycomb': (_honeycomb, (_PHI, 0, -1 / _PHI)),
    'rays': (_rays, (-1, 1, 1)),
    'rings': (_rings, (1, -1, 1)),
    'stripes': (_stripes, _BRIGHTNESS),
    'zigzags': (_zigzags, (1, 1, -1)),
}
