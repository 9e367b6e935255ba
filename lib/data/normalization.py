"""From images as they are decoded to the network's input: uint8 NHWC to floating-point NCHW, normalized."""

import functools

from lib import constants
from lib.compiled import loops

import numpy as np

KERNEL = (
    'raw uint8 images, raw T tables, int64 area', 'T out',
    '''
    const long long channel = i / area % 3;
    const long long pixel = i / (3 * area) * area + i % area;
    out = tables[channel * 256 + images[pixel * 3 + channel]];
    ''',
    'normalize')


def normalize(images, dtype=np.float32):
    """Subtract the mean and divides by the standard deviation, per channel (Goyal et al. section 5.1).

    Looked up in a table of the 256 levels: correctly rounded, and the same on CPU and GPU.

    Args:
        images (numpy.ndarray or cupy.ndarray): uint8 RGB, shape ``(b, H, W, 3)``.
        dtype (dtype): float32 or float16.

    Returns:
        numpy.ndarray or cupy.ndarray: ``dtype``, shape ``(b, 3, H, W)``, contiguous, on the images' device.

    Raises:
        ValueError: If ``images`` is not of that dtype and shape.
    """
    dtype = np.dtype(dtype)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f'images are {images.dtype} of shape {images.shape}: expected uint8 of shape '
                         '(b, H, W, 3)')
    batch, height, width, channels = images.shape
    shape = batch, channels, height, width
    if not isinstance(images, np.ndarray):
        return _normalize_gpu(images, shape, dtype)
    out = np.empty(shape, dtype)
    if loops and dtype == np.float32:
        loops.normalize(np.ascontiguousarray(images), _tables(dtype), out)
        return out
    for image, planes in zip(images, out):
        for channel, table in enumerate(_tables(dtype)):
            # mode='clip' because the default buffers its output; no level is out of range.
            np.take(table, image[..., channel], out=planes[channel], mode='clip')
    return out


@functools.cache
def _tables(dtype):
    """Value of each of the 256 levels, per channel: shape ``(3, 256)``."""
    level = np.arange(256) / 255
    mean = np.array(constants.IMAGE_MEAN)[:, None]
    std = np.array(constants.IMAGE_STD)[:, None]
    return ((level - mean) / std).astype(dtype)


def _normalize_gpu(images, shape, dtype):
    import cupy

    with images.device:
        out = cupy.empty(shape, dtype)
        tables = _gpu_tables(dtype, images.device.id)
        _kernel()(cupy.ascontiguousarray(images), tables, shape[2] * shape[3], out)
    return out


@functools.cache
def _gpu_tables(dtype, device_id):
    import cupy

    return cupy.asarray(_tables(dtype))


@functools.cache
def _kernel():
    import cupy

    return cupy.ElementwiseKernel(*KERNEL)
