import errno
import os
import pathlib
import subprocess
import sys

from lib import files
from lib.data.augmentation import training_crop
from lib.data.decoding import load_training, load_validation
from lib.errors import BadImage

import numpy as np
import pytest
from PIL import Image, ImageOps

ROOT = pathlib.Path(__file__).resolve().parents[3]
EXIF_ORIENTATION = 0x0112


def photo(width, height, seed=0):
    """Smooth shapes with some texture, RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 24, 2), max(width // 24, 2), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC), dtype=np.int16)
    noise = rng.normal(0, 6, (height, width, 1)).astype(np.int16)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def save(image, path, **options):
    image.save(path, **options)
    return str(path)


def psnr(a, b):
    return 10 * np.log10(255 ** 2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def separate_steps(path, box, insize):
    """Decode all, convert, cut out, resize: what a plain Pillow program does."""
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB').crop(box).resize((insize, insize), Image.BICUBIC))


# ---- pixels ----

def test_training_image_is_the_crop_resized(tmp_path):
    path = save(photo(500, 375), tmp_path / 'a.jpg', quality=90)
    for index in range(6):
        box, flip = training_crop(500, 375, 128, 0, 1, index)
        expected = separate_steps(path, box, 128)
        if flip:
            expected = expected[:, ::-1]
        image = load_training(path, 128, 0, 1, index)
        assert image.dtype == np.uint8 and image.shape == (128, 128, 3)
        # At the crop's edge the filter may see the image go on; four rows are its reach in these sizes.
        assert np.abs(image[4:-4, 4:-4].astype(int) - expected[4:-4, 4:-4]).max() <= 1
        assert psnr(image, expected) > 40


@pytest.mark.parametrize('size, scaled, corner', [((768, 512), (384, 256), (80, 16)),
                                                  ((500, 375), (341, 256), (58, 16)),
                                                  ((333, 481), (256, 369), (16, 72))])
def test_validation_image_is_the_center_of_the_resized_image(tmp_path, size, scaled, corner):
    path = save(photo(*size), tmp_path / 'a.jpg', quality=90)
    with Image.open(path) as image:
        resized = image.resize(scaled, Image.BICUBIC)
    expected = np.asarray(resized.crop((*corner, corner[0] + 224, corner[1] + 224)))
    # Pillow resizes rows or columns first, whichever is less work, and rounds in between.
    assert np.abs(load_validation(path, 224).astype(int) - expected).max() <= 2


@pytest.mark.parametrize('size, scaled', [((1600, 1200), (146, 110)), ((1203, 1601), (110, 146)),
                                          ((900, 3000), (110, 366))])
def test_large_jpeg_decoded_at_reduced_size_looks_the_same(tmp_path, size, scaled):
    path = save(photo(*size), tmp_path / 'a.jpg', quality=90)
    x, y = (round((side - 96) / 2) for side in scaled)
    with Image.open(path) as image:
        expected = np.asarray(image.resize(scaled, Image.BICUBIC).crop((x, y, x + 96, y + 96)))
    assert psnr(load_validation(path, 96), expected) > 44


def test_image_in_png_is_the_same_as_from_pixels(tmp_path):
    image = photo(90, 60)
    path = save(image, tmp_path / 'a.png')
    box, flip = training_crop(90, 60, 32, 7, 0, 5)
    expected = np.asarray(image.resize((32, 32), Image.BICUBIC, box))
    assert np.array_equal(load_training(path, 32, 7, 0, 5), expected[:, ::-1] if flip else expected)


def test_jitter_changes_colors_only_when_asked(tmp_path):
    path = save(photo(60, 60), tmp_path / 'a.png')
    plain = load_training(path, 32, 0, 0, 0)
    jittered = load_training(path, 32, 0, 0, 0, jitter=True)
    assert not np.array_equal(plain, jittered)
    assert np.corrcoef(plain.ravel(), jittered.ravel())[0, 1] > 0.9


# ---- orientation ----

@pytest.mark.parametrize('orientation', range(1, 9))
def test_jpeg_is_turned_as_its_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    turned = save(photo(96, 64), tmp_path / 'turned.jpg', quality=95, exif=exif)
    with Image.open(turned) as image:
        upright = save(ImageOps.exif_transpose(image), tmp_path / 'upright.png')
    assert np.abs(load_validation(turned, 32).astype(int) - load_validation(upright, 32)).max() <= 1
    for index in range(4):
        image = load_training(turned, 32, 0, 0, index)
        assert np.abs(image.astype(int) - load_training(upright, 32, 0, 0, index)).max() <= 1


@pytest.mark.parametrize('suffix', ['png', 'tif', 'webp'])
def test_other_formats_are_turned_as_their_exif_says(tmp_path, suffix):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    options = {'lossless': True} if suffix == 'webp' else {}
    turned = save(photo(96, 64), tmp_path / f'turned.{suffix}', exif=exif, **options)
    upright = save(photo(96, 64).transpose(Image.ROTATE_270), tmp_path / 'upright.png')
    assert np.abs(load_validation(turned, 32).astype(int) - load_validation(upright, 32)).max() <= 1


def test_large_turned_jpeg_is_cut_at_the_right_place(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 8
    turned = save(photo(1001, 703), tmp_path / 'turned.jpg', quality=95, exif=exif)
    with Image.open(turned) as image:
        upright = save(ImageOps.exif_transpose(image), tmp_path / 'upright.png')
    box = training_crop(703, 1001, 32, 0, 0, 2)[0]
    assert min(box[2] - box[0], box[3] - box[1]) > 4 * 32  # reduced decoding is at work
    assert psnr(load_training(turned, 32, 0, 0, 2), load_training(upright, 32, 0, 0, 2)) > 40


@pytest.mark.filterwarnings('ignore')  # pytest undoes the filter of lib.data.decoding
def test_damaged_exif_does_not_spoil_the_image(tmp_path):
    whole = save(photo(64, 64), tmp_path / 'a.jpg')
    damaged = save(photo(64, 64), tmp_path / 'b.jpg', exif=b'Exif\x00\x00MM\x00*\x00\x00\xff\xff broken')
    assert np.array_equal(load_validation(damaged, 32), load_validation(whole, 32))


# ---- modes ----

@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_grayscale_gives_three_equal_channels(tmp_path, suffix):
    path = save(photo(60, 60).convert('L'), tmp_path / f'a.{suffix}')
    image = load_validation(path, 32)
    assert image.shape == (32, 32, 3)
    assert (image == image[..., :1]).all() and image.std() > 5


@pytest.mark.parametrize('name, bits', [('a.tif', '>u2'), ('a.tif', '<i4'), ('a.png', '<u2')])
def test_sixteen_bit_gray_is_scaled_to_eight(tmp_path, name, bits):
    levels = np.repeat(np.arange(64, dtype=np.uint16)[:, None] * 1000, 64, axis=1)
    path = save(Image.fromarray(levels.astype(bits)), tmp_path / name)
    eight = save(Image.fromarray(np.round(levels / 257).astype(np.uint8)), tmp_path / 'eight.png')
    assert np.array_equal(load_validation(path, 32), load_validation(eight, 32))


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_transparency_is_shown_over_white(tmp_path, mode):
    image = Image.new(mode, (40, 40), (0, 0, 0, 0) if mode == 'RGBA' else (0, 0))
    image.paste((10, 20, 30, 255) if mode == 'RGBA' else (20, 255), (20, 0, 40, 40))
    pixels = load_validation(save(image, tmp_path / 'a.png'), 32)
    assert (pixels[:, :12] == 255).all()
    assert (pixels[:, -12:] == ((10, 20, 30) if mode == 'RGBA' else (20, 20, 20))).all()


def test_half_transparent_color_is_mixed_with_white(tmp_path):
    path = save(Image.new('RGBA', (8, 8), (255, 0, 0, 128)), tmp_path / 'a.png')
    assert np.abs(load_validation(path, 8).astype(int) - (255, 127, 127)).max() <= 1


def test_palette_gives_its_colors_and_its_transparent_entry_white(tmp_path):
    image = Image.new('P', (40, 40), 0)
    image.putpalette([9, 9, 9, 200, 100, 50] + [0] * 750)
    image.paste(1, (20, 0, 40, 40))
    opaque = load_validation(save(image, tmp_path / 'opaque.png'), 32)
    assert (opaque[:, :12] == 9).all() and (opaque[:, -12:] == (200, 100, 50)).all()
    transparent = load_validation(save(image, tmp_path / 'a.gif', transparency=0), 32)
    assert (transparent[:, :12] == 255).all() and (transparent[:, -12:] == (200, 100, 50)).all()


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_color_declared_transparent_is_shown_white(tmp_path, mode):
    transparent = (7, 8, 9) if mode == 'RGB' else 7
    image = Image.new(mode, (40, 40), transparent)
    image.paste((1, 2, 3) if mode == 'RGB' else 1, (20, 0, 40, 40))
    pixels = load_validation(save(image, tmp_path / 'a.png', transparency=transparent), 32)
    assert (pixels[:, :12] == 255).all()
    assert (pixels[:, -12:] == ((1, 2, 3) if mode == 'RGB' else 1)).all()


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    # Pillow writes the inverted values that Adobe programs do, with their marker, and reads them back.
    path = save(Image.new('CMYK', (40, 40), (0, 255, 255, 0)), tmp_path / 'a.jpg', quality=95)
    assert b'Adobe' in pathlib.Path(path).read_bytes()
    assert np.abs(load_validation(path, 32).astype(int) - (255, 0, 0)).max() <= 3


def test_black_and_white_becomes_rgb(tmp_path):
    image = load_validation(save(Image.new('1', (16, 16), 1), tmp_path / 'a.png'), 8)
    assert (image == 255).all()


def test_image_of_one_pixel_fills_the_input(tmp_path):
    path = save(Image.new('RGB', (1, 1), (1, 2, 3)), tmp_path / 'a.png')
    assert (load_training(path, 32, 0, 0, 0) == (1, 2, 3)).all()
    assert (load_validation(path, 32) == (1, 2, 3)).all()


@pytest.mark.parametrize('size', [(3, 500), (500, 3), (2, 2)])
def test_thin_and_tiny_images_load(tmp_path, size):
    path = save(photo(500, 500).resize(size), tmp_path / 'a.jpg')
    assert load_validation(path, 32).shape == (32, 32, 3)
    assert all(load_training(path, 32, 0, 0, index).shape == (32, 32, 3) for index in range(20))


# ---- what is no image ----

def truncated(tmp_path, suffix):
    path = pathlib.Path(save(photo(200, 200), tmp_path / f'whole.{suffix}'))
    (tmp_path / 'bad').write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def sparse(tmp_path, n_bytes):
    photo(8, 8).save(tmp_path / 'bad', 'PNG')
    os.truncate(tmp_path / 'bad', n_bytes)


BAD = {
    'missing': (lambda tmp_path: None, 'No such file'),
    'empty': (lambda tmp_path: (tmp_path / 'bad').write_bytes(b''), 'empty file'),
    'text': (lambda tmp_path: (tmp_path / 'bad').write_bytes(b'no image\n' * 100), 'none of the formats'),
    'directory': (lambda tmp_path: (tmp_path / 'bad').mkdir(), 'not a regular file'),
    'named pipe': (lambda tmp_path: os.mkfifo(tmp_path / 'bad'), 'not a regular file'),
    'endless': (lambda tmp_path: (tmp_path / 'bad').symlink_to('/dev/zero'), 'not a regular file'),
    'large': (lambda tmp_path: sparse(tmp_path, (256 << 20) + 1), '268435457 bytes, more than 268435456'),
    'EPS': (lambda tmp_path: photo(8, 8).save(tmp_path / 'bad', 'EPS'), 'none of the formats JPEG'),
    'half a JPEG': (lambda tmp_path: truncated(tmp_path, 'jpg'), 'truncated'),
    'half a PNG': (lambda tmp_path: truncated(tmp_path, 'png'), ''),
    'half a GIF': (lambda tmp_path: truncated(tmp_path, 'gif'), ''),
    'half a TIFF': (lambda tmp_path: truncated(tmp_path, 'tif'), ''),
    'JPEG header': (lambda tmp_path: (tmp_path / 'bad').write_bytes(b'\xff\xd8\xff\xe0\x00\x10JFIF\x00'), ''),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_file_is_named_with_the_reason(tmp_path, kind):
    make, reason = BAD[kind]
    make(tmp_path)
    path = str(tmp_path / 'bad')
    for load in (lambda: load_training(path, 32, 0, 0, 0), lambda: load_validation(path, 32)):
        with pytest.raises(BadImage) as caught:
            load()
        assert caught.value.path == path
        assert reason in caught.value.reason and '\n' not in str(caught.value)


def test_unreadable_file_is_a_bad_image(monkeypatch):
    def refuse(path):  # root may read everything
        raise PermissionError(errno.EACCES, 'Permission denied', path)

    monkeypatch.setattr(files, 'open_regular', refuse)
    with pytest.raises(BadImage, match='a.png: .*Permission denied'):
        load_validation('a.png', 32)


def test_shortage_of_memory_is_not_the_image_s_fault(monkeypatch, tmp_path):
    path = save(photo(10, 10), tmp_path / 'a.png')

    def refuse(*arguments):
        raise MemoryError

    monkeypatch.setattr(Image.Image, 'resize', refuse)
    with pytest.raises(MemoryError):
        load_validation(path, 32)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('limit', [90, 40], ids=['warning', 'error'])
def test_decompression_bomb_is_a_bad_image(tmp_path, monkeypatch, limit):
    # Pillow warns above its limit and raises above twice that.
    path = save(photo(10, 10), tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
    with pytest.raises(BadImage, match='a.png'):
        load_validation(path, 32)


def test_nothing_is_printed_about_damaged_or_odd_files(tmp_path):
    exif = b'Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\xff'
    save(photo(64, 64), tmp_path / 'exif.jpg', exif=exif)
    palette = Image.new('P', (8, 8))
    palette.putpalette(list(range(30)))
    save(palette, tmp_path / 'palette.png', transparency=b'\x00\x80')
    save(photo(20, 20), tmp_path / 'bomb.png')
    truncated(tmp_path, 'tif')
    program = ('import sys; from PIL import Image; from lib.data.decoding import load_validation\n'
               'from lib.errors import BadImage\n'
               'for path in sys.argv[1:]:\n'
               '    Image.MAX_IMAGE_PIXELS = 300 if "bomb" in path else 10 ** 6\n'
               '    try: load_validation(path, 32)\n'
               '    except BadImage: pass\n')
    paths = [tmp_path / name for name in ('exif.jpg', 'palette.png', 'bomb.png', 'bad')]
    done = subprocess.run([sys.executable, '-c', program, *map(str, paths)], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
