"""Augmentation of fb.resnet.torch, which Goyal et al. section 5.1 refers to, as pure functions.

What is drawn for an image depends on (seed, epoch, image) alone: not on the batch, the worker or the process
that decodes it, nor on what was drawn before.
"""

import math

from lib import constants, random_streams

import numpy as np


def _uniforms(count, purpose, seed, epoch, index):
    """``count`` doubles in [0, 1) that belong to (seed, epoch, index)."""
    return random_streams.uniforms(random_streams.stream(seed, purpose, index, epoch), count)


def training_crop(width, height, insize, seed, epoch, index):
    """Draw the crop of one training image in one epoch.

    Area uniform in [0.08, 1) of the image's, aspect ratio uniform in [3/4, 4/3) with the sides exchanged with
    probability 1/2, sides rounded, every position that fits equally likely (the last included). After ten
    tries that do not fit: the short side scaled to ``insize`` and the center taken.

    Args:
        width (int): Width of the image in pixels.
        height (int): Height of the image in pixels.
        insize (int): Side of the network's input.
        seed (int): Seed of the run.
        epoch (int): Epoch in which the image is visited.
        index (int): Number of the image in the training set.

    Returns:
        tuple: ``(box, flip)``: left, upper, right, lower edge in pixels of the image, and whether to mirror
        the crop horizontally.
    """
    draws = _uniforms(1 + 5 * constants.CROP_TRIES, random_streams.CROP, seed, epoch, index).tolist()
    flip = draws[0] < 0.5
    low_area, high_area = constants.CROP_AREA
    low_aspect, high_aspect = constants.CROP_ASPECT
    for i in range(constants.CROP_TRIES):
        u_area, u_aspect, u_swap, u_y, u_x = draws[1 + 5 * i:6 + 5 * i]
        area = (low_area + (high_area - low_area) * u_area) * width * height
        aspect = low_aspect + (high_aspect - low_aspect) * u_aspect
        # A side of 0, which rounding gives on images of a few pixels, becomes 1.
        w = max(1, math.floor(math.sqrt(area * aspect) + 0.5))
        h = max(1, math.floor(math.sqrt(area / aspect) + 0.5))
        if u_swap < 0.5:
            w, h = h, w
        if w <= width and h <= height:
            x = int(u_x * (width - w + 1))
            y = int(u_y * (height - h + 1))
            return (x, y, x + w, y + h), flip
    return _center_box(width, height, insize, insize), flip


def validation_box(width, height, insize):
    """Choose the center crop: short side scaled to round(insize * 256 / 224), the central ``insize`` taken.

    The crop lies at whole pixels of the scaled image, whose long side is rounded down, as torchvision's does.

    Returns:
        tuple: Left, upper, right, lower edge in pixels of the image; not whole numbers in general.
    """
    return _center_box(width, height, insize, validation_short_side(insize))


def validation_short_side(insize):
    """Pixels that validation scales the short side to: 256 for an input of 224."""
    return round(insize * constants.VAL_SHORT_SIDE / constants.INSIZE)


def _center_box(width, height, insize, short_side):
    """Central square of ``insize`` pixels of the image scaled to ``short_side``, in pixels of the image."""
    shortest = min(width, height)
    scales = [side / (side * short_side // shortest) for side in (width, height)]
    x, y = (round((side * short_side // shortest - insize) / 2) for side in (width, height))
    return x * scales[0], y * scales[1], (x + insize) * scales[0], (y + insize) * scales[1]


def color_jitter(image, seed, epoch, index):
    """Return color jitter and lighting of fb.resnet.torch.

    Brightness, contrast and saturation, each blended with a weight uniform in [0.6, 1.4), in random order;
    then noise along the principal components of ImageNet's colors, with normal weights. All four are affine
    in the colors, so one affine map does them together, and rounds and clips to 8 bits once.

    Args:
        image (numpy.ndarray): uint8 RGB, shape ``(H, W, 3)``.
        seed (int): Seed of the run.
        epoch (int): Epoch in which the image is visited.
        index (int): Number of the image in the training set.

    Returns:
        numpy.ndarray: uint8, a new array of the same shape.
    """
    matrix, offset = _color_map(image.mean(axis=(0, 1), dtype=np.float64), seed, epoch, index)
    matrix = matrix.astype(np.float32)
    offset = offset.astype(np.float32)
    planes = [image[..., channel].astype(np.float32) for channel in range(3)]
    out = np.empty_like(image)
    for channel in range(3):
        # Not a matrix product: BLAS may round differently for another number of threads.
        value = planes[0] * matrix[channel, 0]
        value += planes[1] * matrix[channel, 1]
        value += planes[2] * matrix[channel, 2]
        value += offset[channel] + np.float32(0.5)
        out[..., channel] = np.clip(value, 0, 255, out=value)
    return out


def _color_map(mean, seed, epoch, index):
    """The affine map ``matrix @ color + offset`` on [0, 255] that jitters an image of that mean color."""
    draws = _uniforms(12, random_streams.JITTER, seed, epoch, index)
    weights = 1 + constants.JITTER_STRENGTH * (2 * draws[:3] - 1)
    luminance = np.tile(constants.LUMINANCE, (3, 1))
    matrix = np.eye(3)
    offset = np.zeros(3)
    for transformation in np.argsort(draws[3:6], kind='stable'):
        weight = weights[transformation]
        if transformation == 0:    # brightness: blend with black
            matrix, offset = weight * matrix, weight * offset
        elif transformation == 1:  # contrast: blend with the mean gray of the image as it is by now
            gray = luminance @ (matrix @ mean + offset)
            matrix, offset = weight * matrix, weight * offset + (1 - weight) * gray
        else:                      # saturation: blend with the image in gray
            blend = weight * np.eye(3) + (1 - weight) * luminance
            matrix, offset = blend @ matrix, blend @ offset
    normal = np.sqrt(-2 * np.log(1 - draws[6:9])) * np.cos(2 * np.pi * draws[9:12])  # Box-Muller
    alpha = constants.LIGHTING_STD * normal
    lighting = np.array(constants.LIGHTING_EIGENVECTORS) @ (alpha * constants.LIGHTING_EIGENVALUES)
    return matrix, offset + 255 * lighting
