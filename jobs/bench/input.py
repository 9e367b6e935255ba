"""Time the input pipeline on one core: from JPEG files to a normalized batch.

    python -m jobs.bench.input [DIRECTORY] [--images 200] [--repeats 9]

Compares ``lib.data.decoding`` and ``lib.data.normalization`` with a plain Pillow program, with Pillow's
decoder alone, with the same images prepared by ``lib.prepare``, and with simplejpeg and OpenCV where they are
installed. All draw the same crops. The candidates take turns at every batch and times are CPU time, so that
the ratios hold on a busy machine. Without DIRECTORY, images like photographs are made: 500 x 375, about 110
KB. Takes a minute; expect 1.2 to 1.3 times plain Pillow's images per second, and from prepared images 1.8 to
2 times as many again.
"""

import argparse
import pathlib
import sys
import tempfile
import time

from lib import constants
from lib.data.augmentation import training_crop
from lib.data.datasets import IMAGE_SUFFIXES
from lib.data.decoding import load_training
from lib.data.normalization import normalize
from lib.errors import BadImage
from lib.prepare.image import prepare_image

import numpy as np
from PIL import Image, features

# Images per second that each GPU of the paper's run took; a node had 8 of them, and 16 cores.
PER_GPU = constants.IMAGENET_TRAIN * constants.EPOCHS / constants.PAPER_SECONDS / constants.PAPER_WORKERS
REQUIRED = PER_GPU * 8 / 16
INSIZE = constants.INSIZE
BATCH = constants.BATCH
SEED = 0
PREPARED = 'ours, prepared images'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('directory', nargs='?', help='photographs, at any depth (images made here)')
    parser.add_argument('--images', type=int, default=200, help='use at most so many (200)')
    parser.add_argument('--repeats', type=int, default=9, help='passes of each kind (9)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        if args.directory:
            originals = find_photographs(pathlib.Path(args.directory), args.images)
        else:
            originals = make_photographs(scratch)
        run(originals, prepare(originals, scratch), args.repeats)


def find_photographs(directory, count):
    """Up to ``count`` readable images under ``directory``, spread over it."""
    paths = sorted(path for path in directory.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = paths[::max(1, len(paths) // count)][:count]
    good = []
    for index, path in enumerate(paths):
        try:
            load_training(str(path), INSIZE, SEED, 0, index)
            good.append(str(path))
        except BadImage as error:
            print(f'left out: {error}')
    if not good:
        sys.exit(f'{directory}: no images there')
    return good


def make_photographs(directory, count=48):
    """Images with detail at all scales, as photographs have it, about as many bytes as ImageNet's."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        pixels = np.full((375, 500, 3), 128.0)
        for octave in range(8):
            size = min(500, 4 << octave), min(375, 3 << octave)
            detail = rng.normal(0, 36 / 1.2 ** octave, (size[1], size[0], 3))
            detail = 0.8 * detail.mean(axis=2, keepdims=True) + 0.4 * detail  # mostly gray
            for channel in range(3):
                layer = Image.fromarray(detail[..., channel].astype(np.float32))
                pixels[..., channel] += np.asarray(layer.resize((500, 375), Image.BICUBIC))
        path = directory / f'{number}.JPEG'
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=93)
        paths.append(str(path))
    return paths


def prepare(originals, directory):
    """The same images at validation's short side, as ``lib.prepare`` writes them."""
    paths = []
    for number, original in enumerate(originals):
        data, _, _ = prepare_image(pathlib.Path(original).read_bytes(), constants.VAL_SHORT_SIDE)
        path = directory / f'prepared-{number}.JPEG'
        path.write_bytes(data)
        paths.append(str(path))
    return paths


def ours(paths):
    """Batch of ``lib``, as the loader makes it."""
    images = np.empty((len(paths), INSIZE, INSIZE, 3), np.uint8)
    for index, path in paths:
        images[index % BATCH] = load_training(path, INSIZE, SEED, 0, index)
    return normalize(images)


def plain(paths):
    """Batch of a plain Pillow program: whole image converted, crop cut out, resized, made float, collated."""
    mean = np.array(constants.IMAGE_MEAN, np.float32)
    std = np.array(constants.IMAGE_STD, np.float32)
    images = []
    for index, path in paths:
        with Image.open(path) as image:
            image = image.convert('RGB')
        box, flip = training_crop(*image.size, INSIZE, SEED, 0, index)
        image = image.crop(box).resize((INSIZE, INSIZE), Image.BICUBIC)
        if flip:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
        pixels = (np.asarray(image, np.float32) / 255 - mean) / std
        images.append(pixels.transpose(2, 0, 1))
    return np.stack(images)


def decode_alone(paths):
    """Pillow's decoder, nothing else."""
    for _, path in paths:
        with Image.open(path) as image:
            image.load()


def simplejpeg_opencv():
    """The nearest thing with simplejpeg and OpenCV, or None where they are missing.

    OpenCV has no antialiased bicubic filter: its area filter shrinks, its cubic one enlarges.
    """
    try:
        import cv2
        import simplejpeg
    except ImportError as error:
        print(f'{error}: no comparison with simplejpeg and opencv-python-headless')
        return None
    cv2.setNumThreads(1)

    def batch(paths):
        images = np.empty((len(paths), INSIZE, INSIZE, 3), np.uint8)
        for index, path in paths:
            data = pathlib.Path(path).read_bytes()
            try:
                pixels = simplejpeg.decode_jpeg(data, 'RGB')
            except ValueError:  # CMYK, or no JPEG file
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert('RGB'))
            box, flip = training_crop(pixels.shape[1], pixels.shape[0], INSIZE, SEED, 0, index)
            left, upper, right, lower = map(int, box)
            crop = pixels[upper:lower, left:right]
            kernel = cv2.INTER_AREA if min(crop.shape[:2]) > INSIZE else cv2.INTER_CUBIC
            out = images[index % BATCH]
            cv2.resize(crop, (INSIZE, INSIZE), dst=out, interpolation=kernel)
            if flip:
                out[:] = cv2.flip(out, 1)
        return normalize(images)

    return batch


def run(originals, prepared, repeats):
    candidates = {'ours': (ours, originals), 'plain Pillow': (plain, originals),
                  PREPARED: (ours, prepared), 'Pillow decode alone': (decode_alone, originals)}
    peer = simplejpeg_opencv()
    if peer is not None:
        candidates['simplejpeg + OpenCV'] = peer, originals
    rates = {name: [] for name in candidates}
    numbers = range(len(originals))
    for repeat in range(repeats + 1):
        seconds = dict.fromkeys(candidates, 0.0)
        for first in range(0, len(originals), BATCH):
            for name, (function, paths) in candidates.items():
                batch = [(index, paths[index]) for index in numbers[first:first + BATCH]]
                start = time.process_time()
                function(batch)
                seconds[name] += time.process_time() - start
        if repeat:  # the first pass reads the files
            for name in candidates:
                rates[name].append(len(originals) / seconds[name])

    kilobytes = np.mean([pathlib.Path(path).stat().st_size for path in originals]) / 1000
    print(f'{len(originals)} images of {kilobytes:.0f} KB on average, Pillow {features.version("pil")}, '
          f'median of {repeats}; a core of the paper\'s run took {REQUIRED:.0f} images/s')
    for name, measured in rates.items():
        rate = np.median(measured)
        ratio = np.median(np.array(measured) / rates['plain Pillow'])
        print(f'  {name:22} {rate:6.0f} images/s per core  {ratio:5.2f} of plain Pillow  '
              f'{rate / REQUIRED:5.1f} of the paper')
    print(f'  prepared images {np.median(np.divide(rates[PREPARED], rates["ours"])):.2f} of originals')


if __name__ == '__main__':
    main()
