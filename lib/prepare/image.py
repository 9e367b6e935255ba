"""One image file made ready for training: a JPEG file, RGB or gray, upright, of a bounded short side."""

import io

from lib.data import decoding

from PIL import Image

QUALITY = 90
JPEG_SUFFIXES = ('.jpeg', '.jpg')


class UnreadableImage(Exception):
    """The bytes are no image, or only a part of one; the message says why."""


def prepare_image(data, short_side, quality=QUALITY):
    """Resize one image to a short side of at most ``short_side`` and mends what training stumbles over.

    An image is resampled (bicubic, antialiased, from the fully decoded image) and encoded at most once; one
    that is small and sound stays as it is, byte for byte. Nothing is enlarged.

    Args:
        data (bytes): An image file of one of :data:`lib.data.decoding.FORMATS`.
        short_side (int): In pixels.
        quality (int): JPEG quality, 1 to 100.

    Returns:
        tuple: ``(data, resized, repaired)``: the JPEG file; whether it was made smaller; and what was
        repaired (``'PNG'``, ``'CMYK'``, ``'EXIF orientation 6'``), or ``''``.

    Raises:
        UnreadableImage: If the image cannot be decoded to its last pixel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=decoding.FORMATS) as image:
            image.load()
            repaired = [] if image.format in ('JPEG', 'MPO') else [image.format]
            orientation = decoding.orientation(image)
            if orientation != 1:
                repaired.append(f'EXIF orientation {orientation}')
                image = image.transpose(decoding.UPRIGHT[orientation][0])
            if image.mode not in ('L', 'RGB') or 'transparency' in image.info:
                repaired.append(image.mode)
                image = decoding.to_rgb(image)
            size = fitted_size(*image.size, short_side)
            resized = size != image.size
            if not resized and not repaired:
                return data, False, ''
            if resized:
                image = image.resize(size, Image.BICUBIC)
            image.info.clear()  # else Pillow writes the comment again
            encoded = io.BytesIO()
            image.save(encoded, 'JPEG', quality=quality)
            return encoded.getvalue(), resized, ', '.join(repaired)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        raise UnreadableImage(decoding.reason(error, len(data))) from None


def fitted_size(width, height, short_side):
    """Shrink a size to a short side of at most ``short_side``; the long side is rounded."""
    shortest = min(width, height)
    if shortest <= short_side:
        return width, height
    return tuple((2 * side * short_side + shortest) // (2 * shortest) for side in (width, height))


def prepared_name(name):
    """File name in the prepared copy: as it was for JPEG names, else with ``.JPEG`` appended."""
    return name if name.lower().endswith(JPEG_SUFFIXES) else name + '.JPEG'
