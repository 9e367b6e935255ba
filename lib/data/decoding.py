"""From an image file to pixels: decode, crop and resize in one go, with Pillow.

The crop is chosen from the size in the file's header, before anything is decoded. The decoder then skips what
the crop does not need, and one bicubic resize reads the crop in place and gives 8-bit pixels; that filter
antialiases, and looks across the crop's edges where the image goes on. Nothing here is random.

Files are read the way a viewer shows them: turned as their EXIF orientation says, transparency over white,
16-bit gray scaled to 8 bits, grayscale, palettes and CMYK as RGB.
"""

import contextlib
import math
import os
import warnings

from lib import files
from lib.data.augmentation import color_jitter, training_crop, validation_box
from lib.errors import BadImage

import numpy as np
from PIL import Image

# A damaged file either raises, or is fine for training; its warnings would drown the log of a long run.
warnings.filterwarnings('ignore', module=r'PIL\.')

# What ImageNet holds and users bring, by Pillow's names. JPEG includes MPO, several JPEG images in a file.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF')
# Of one image file: as many as an uncompressed RGB image of PIL.Image.MAX_IMAGE_PIXELS has.
MAX_BYTES = 256 << 20

# A JPEG file can be decoded at 1/2, 1/4 or 1/8 of its size, and an image reduced by a whole factor, in a
# fraction of the time. Both are used as long as the bicubic filter still has to shrink by this factor, so
# that it decides what the result looks like.
REDUCING_GAP = 2.0

_EXIF_ORIENTATION = 0x0112
# What turns an image of each EXIF orientation upright: the operation, and whether it mirrors columns, mirrors
# rows and then exchanges the two.
UPRIGHT = {1: (None, False, False, False),
            2: (Image.FLIP_LEFT_RIGHT, True, False, False),
            3: (Image.ROTATE_180, True, True, False),
            4: (Image.FLIP_TOP_BOTTOM, False, True, False),
            5: (Image.TRANSPOSE, False, False, True),
            6: (Image.ROTATE_270, False, True, True),
            7: (Image.TRANSVERSE, True, True, True),
            8: (Image.ROTATE_90, True, False, True)}


def load_training(path, insize, seed, epoch, index, jitter=False):
    """Decode and augments one training image.

    Args:
        path (str): Image file.
        insize (int): Side of the network's input.
        seed (int): Seed of the run.
        epoch (int): Epoch in which the image is visited.
        index (int): Number of the image in the training set.
        jitter (bool): Whether to jitter the colors too.

    Returns:
        numpy.ndarray: uint8 RGB, shape ``(insize, insize, 3)``.

    Raises:
        BadImage: If the file is missing, unreadable, no regular file or no image, has more than
            :data:`MAX_BYTES`, or would decode to more pixels than Pillow takes for safe
            (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    flip = False

    def crop(width, height):
        nonlocal flip
        box, flip = training_crop(width, height, insize, seed, epoch, index)
        return box

    image = _load(path, insize, crop)
    if flip:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)  # NumPy's reversed copy takes 15 times as long
    pixels = np.asarray(image)
    return color_jitter(pixels, seed, epoch, index) if jitter else pixels


def load_validation(path, insize):
    """Decode the center crop of one validation image; as :func:`load_training` otherwise."""
    return np.asarray(_load(path, insize, lambda width, height: validation_box(width, height, insize)))


def _load(path, insize, choose_box):
    """Upright RGB image of ``insize`` pixels a side, from the box that is chosen for (width, height)."""
    with contextlib.ExitStack() as stack:
        with _blaming(path):
            file = stack.enter_context(files.open_regular(path))
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > MAX_BYTES:
                raise BadImage(path, f'{n_bytes} bytes, more than {MAX_BYTES}')
            image = stack.enter_context(Image.open(file, formats=FORMATS))
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise BadImage(path, f'{width} x {height} pixels, more than {Image.MAX_IMAGE_PIXELS}')
            is_jpeg = image.format in ('JPEG', 'MPO')
            if not is_jpeg:
                image.load()  # other formats may keep the orientation behind the pixels, or turn themselves
                width, height = image.size
            operation, mirror_columns, mirror_rows, exchange = UPRIGHT[orientation(image)]

        # Only the crop is turned: its box is chosen on the upright size and turned back to the stored image.
        if exchange:
            upper, left, lower, right = choose_box(height, width)
        else:
            left, upper, right, lower = choose_box(width, height)
        if mirror_columns:
            left, right = width - right, width - left
        if mirror_rows:
            upper, lower = height - lower, height - upper

        with _blaming(path):
            scale = _reduce(image, min(right - left, lower - upper) / insize) if is_jpeg else 1
            image = _resize(image, insize, [edge / scale for edge in (left, upper, right, lower)])
    return image if operation is None else image.transpose(operation)


@contextlib.contextmanager
def _blaming(path):
    """Turn whatever Pillow raises on a damaged file, which is almost anything, into BadImage."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        n_bytes = os.path.getsize(path) if os.path.exists(path) else 0
        raise BadImage(path, reason(error, n_bytes)) from None


def _reduce(image, shrinks):
    """Has a JPEG file decoded at 1/scale of its size, if it ``shrinks`` enough afterwards; gives scale."""
    scale = max([s for s in (1, 2, 4, 8) if s * REDUCING_GAP <= shrinks], default=1)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return scale


def orientation(image):
    """Read the EXIF orientation of an opened image, a key of ``UPRIGHT``; 1, upright, where it has none."""
    if image.format in ('JPEG', 'MPO') and 'exif' not in image.info and 'xmp' not in image.info:
        return 1  # most files; looking closer would cost some per cent of the decoding
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
        return found if found in UPRIGHT else 1
    except Exception:  # a damaged EXIF block does not spoil the image
        return 1


def _resize(image, insize, box):
    """``box`` of an image as an RGB image of ``insize`` pixels a side."""
    image.load()
    if image.mode != 'L' or 'transparency' in image.info:  # gray stays one channel until it is small
        image = to_rgb(image)
    # Rounding may put an edge a hair outside the image.
    box = [min(max(edge, 0), limit) for edge, limit in zip(box, image.size * 2)]
    image = image.resize((insize, insize), Image.BICUBIC, box, REDUCING_GAP)
    return image if image.mode == 'RGB' else image.convert('RGB')


def to_rgb(image):
    """Make an 8-bit RGB image of any that Pillow reads: 16 bits scaled to 8, transparency laid over white."""
    if image.mode == 'I' or image.mode.startswith('I;16'):
        gray = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    if image.mode in ('LA', 'PA', 'RGBA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image if image.mode == 'RGB' else image.convert('RGB')


def reason(error, n_bytes):
    """Say in one line why an image file of ``n_bytes`` cannot be decoded."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f'none of the formats {", ".join(FORMATS)}' if n_bytes else 'empty file'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return ' '.join(str(error).split())[:500] or type(error).__name__
