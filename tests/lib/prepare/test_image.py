import io

from lib.prepare.image import UnreadableImage, fitted_size, prepare_image

import numpy as np
import pytest
from PIL import Image, ImageOps


def photo(width, height, mode='RGB'):
    """A smooth picture that looks different in every corner."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    red, green, blue = 255 * x, 255 * y, 127 + 127 * np.sin(6 * x * (1 + y))
    image = Image.fromarray(np.stack([red, green, blue], axis=2).round().astype(np.uint8))
    return image.quantize(64) if mode == 'P' else image.convert(mode)


def encoded(image, kind='JPEG', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def difference(image, other):
    """Root mean square difference in gray levels."""
    pixels, others = (np.asarray(i.convert('RGB'), np.float64) for i in (image, other))
    return np.sqrt(np.mean((pixels - others) ** 2))


@pytest.mark.parametrize('size, expected', [
    ((500, 375), (341, 256)),   # 341.33
    ((375, 500), (256, 341)),
    ((512, 257), (510, 256)),   # 510.007
    ((300, 300), (256, 256)),
    ((1024, 1000), (262, 256)),  # 262.14
    ((1025, 512), (513, 256)),  # 512.5 goes up
])
def test_short_side_is_exact_and_long_side_is_rounded(size, expected):
    assert fitted_size(*size, 256) == expected
    assert decoded(prepare_image(encoded(Image.new('RGB', size)), 256)[0]).size == expected


@pytest.mark.parametrize('size', [(40, 40), (40, 1000), (30, 20), (1, 1)])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_small_sound_jpeg_is_kept_byte_for_byte(size, mode):
    data = encoded(photo(*size, mode), quality=83, comment=b'kept')
    assert prepare_image(data, 40) == (data, False, '')


def test_resize_is_antialiased():
    stripes = np.zeros((240, 240, 3), np.uint8)
    stripes[:, ::2] = 255
    prepared, resized, _ = prepare_image(encoded(Image.fromarray(stripes), 'PNG'), 48)
    pixels = np.asarray(decoded(prepared), np.float64)[:, 4:-4]
    assert resized
    assert np.abs(pixels - 127.5).max() < 8


def test_resized_picture_is_the_mean_over_what_each_pixel_covers():
    picture = photo(400, 240)
    prepared, _, _ = prepare_image(encoded(picture, quality=95), 60, quality=95)
    blocks = np.asarray(picture, np.float64).reshape(60, 4, 100, 4, 3).mean(axis=(1, 3))
    assert difference(decoded(prepared), Image.fromarray(blocks.round().astype(np.uint8))) < 2.5


def test_quality_decides_the_size():
    data = encoded(photo(200, 200), quality=95)
    assert len(prepare_image(data, 100, 50)[0]) < len(prepare_image(data, 100, 95)[0])


def test_gray_stays_gray():
    prepared = decoded(prepare_image(encoded(photo(200, 100, 'L')), 50)[0])
    assert (prepared.mode, prepared.size) == ('L', (100, 50))


@pytest.mark.parametrize('size', [(60, 40), (300, 200)])
@pytest.mark.parametrize('mode, kind, what', [
    ('CMYK', 'JPEG', 'CMYK'), ('RGB', 'PNG', 'PNG'), ('P', 'PNG', 'PNG, P'), ('P', 'GIF', 'GIF'),
    ('RGBA', 'PNG', 'PNG, RGBA'), ('L', 'PNG', 'PNG'), ('CMYK', 'TIFF', 'TIFF, CMYK')])
def test_other_formats_and_modes_become_jpeg_of_the_same_picture(mode, kind, what, size):
    picture = photo(*size, mode)
    prepared, resized, repaired = prepare_image(encoded(picture, kind), 40, 95)
    image = decoded(prepared)
    assert image.format == 'JPEG'
    assert image.mode in ('RGB', 'L')
    assert image.size == (60, 40)
    assert resized == (size == (300, 200))
    assert repaired.startswith(what)
    assert difference(image, picture.convert('RGB').resize((60, 40), Image.BICUBIC)) < 8


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('size', [(60, 40), (300, 200)])
def test_image_is_turned_upright_as_its_exif_orientation_says(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(*size), exif=exif, quality=95)
    prepared, _, repaired = prepare_image(data, 40, 95)
    image = decoded(prepared)
    upright = ImageOps.exif_transpose(decoded(data))
    assert difference(image, upright.resize(image.size, Image.BICUBIC)) < 4
    assert image.size == ((60, 40) if orientation < 5 else (40, 60))
    assert image.getexif().get(0x0112, 1) == 1
    assert repaired == ('' if orientation == 1 else f'EXIF orientation {orientation}')


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('exif', [b'Exif\0\0garbage', b'Exif\0\0II*\0\xff\xff\xff\x7f', b'Exif\0\0'])
def test_damaged_exif_block_does_not_matter(exif):
    assert decoded(prepare_image(encoded(photo(100, 80), exif=exif), 40)[0]).size == (50, 40)


def test_resized_image_carries_no_metadata():
    exif = Image.Exif()
    exif[0x010e] = 'description'
    data = encoded(photo(100, 80), comment=b'a comment', icc_profile=b'profile' * 20, exif=exif)
    prepared = prepare_image(data, 40)[0]
    for marker in (b'a comment', b'profile', b'Exif', b'description'):
        assert marker in data
        assert marker not in prepared


@pytest.mark.parametrize('size', [(60, 40), (300, 200)])
@pytest.mark.parametrize('kept', [0.3, 0.6, 0.9])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_truncated_file_is_unreadable(size, kept, kind):
    data = encoded(photo(*size), kind)
    with pytest.raises(UnreadableImage):
        prepare_image(data[:int(kept * len(data))], 40)


@pytest.mark.parametrize('data, reason', [
    (b'', 'empty file'), (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'none of the formats'),
    (b'<html>not found</html>', 'none of the formats'), (b'\xff\xd8\xff', '.')])
def test_what_is_no_image_is_unreadable_with_a_reason_of_one_line(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        prepare_image(data, 40)
    assert '\n' not in str(caught.value)


def test_jpeg_of_several_pictures_is_kept_byte_for_byte():
    data = encoded(photo(40, 40), 'MPO', save_all=True, append_images=[photo(40, 40, 'L')])
    assert decoded(data).format == 'MPO'
    assert prepare_image(data, 40) == (data, False, '')


def test_color_declared_transparent_becomes_white():
    data = encoded(Image.new('RGB', (40, 40), (7, 8, 9)), 'PNG', transparency=(7, 8, 9))
    prepared, _, repaired = prepare_image(data, 40)
    assert np.asarray(decoded(prepared)).min() > 250 and repaired == 'PNG, RGB'


def test_shortage_of_memory_is_not_the_image_s_fault(monkeypatch):
    def refuse(*arguments):
        raise MemoryError

    monkeypatch.setattr(Image.Image, 'resize', refuse)
    with pytest.raises(MemoryError):
        prepare_image(encoded(photo(80, 80)), 40)
