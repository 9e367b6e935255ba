import math

from lib import constants
from lib.data.augmentation import color_jitter, training_crop, validation_box, validation_short_side

import numpy as np
import pytest

DRAWS = 20000


def reference_crop(width, height, uniform):
    """fb.resnet.torch's RandomSizedCrop, drawing from ``uniform``; None when ten tries have failed."""
    for _ in range(10):
        target = (0.08 + 0.92 * uniform()) * width * height
        ratio = 3 / 4 + (4 / 3 - 3 / 4) * uniform()
        w = max(1, round(math.sqrt(target * ratio)))
        h = max(1, round(math.sqrt(target / ratio)))
        if uniform() < 0.5:
            w, h = h, w
        if w <= width and h <= height:
            return w, h, math.floor(uniform() * (width - w + 1)), math.floor(uniform() * (height - h + 1))
    return None


def crops(width, height, draws=DRAWS):
    return np.array([training_crop(width, height, 224, 3, 0, index)[0] for index in range(draws)])


def statistics(boxes, width, height):
    """Area share, log aspect and relative position of crops, one column each."""
    left, upper, right, lower = boxes.T
    w, h = right - left, lower - upper
    return {'area': w * h / (width * height), 'aspect': np.log(w / h),
            'x': (left + 0.5) / (width - w + 1), 'y': (upper + 0.5) / (height - h + 1)}


def ks_distance(a, b):
    grid = np.concatenate([a, b])
    return np.abs(np.searchsorted(np.sort(a), grid, 'right') / len(a)
                  - np.searchsorted(np.sort(b), grid, 'right') / len(b)).max()


@pytest.fixture(scope='module', params=[(500, 375), (300, 300)], ids='{0[0]}x{0[1]}'.format)
def drawn(request):
    return (*request.param, crops(*request.param))


@pytest.mark.parametrize('name', ['area', 'aspect', 'x', 'y'])
def test_crops_are_distributed_as_in_an_independent_simulation(drawn, name):
    width, height, boxes = drawn
    uniform = np.random.default_rng(0).random
    simulated = [reference_crop(width, height, uniform) for _ in range(DRAWS)]
    simulated = np.array([(x, y, x + w, y + h) for w, h, x, y in filter(None, simulated)])
    ours = statistics(boxes, width, height)[name]
    theirs = statistics(simulated, width, height)[name]
    assert ks_distance(ours, theirs) < 1.63 * math.sqrt(1 / len(ours) + 1 / len(theirs))  # the 1 % level


def transcribed_crop(width, height, draws):
    """RandomSizedCrop of fb.resnet.torch's transforms.lua, line by line; ``draws`` stand for Torch's numbers.

    Every try has five of them, whether it fits or not, behind one for the flip.
    """
    flip = draws[0] < 0.5
    for attempt in np.reshape(draws[1:51], (10, 5)).tolist():
        target_area = width * height * (0.08 + (1.0 - 0.08) * attempt[0])
        aspect_ratio = 3 / 4 + (4 / 3 - 3 / 4) * attempt[1]
        # A side of 0, of which fb's scaling would fail, is 1.
        w = max(1, round(math.sqrt(target_area * aspect_ratio)))
        h = max(1, round(math.sqrt(target_area / aspect_ratio)))
        if attempt[2] < 0.5:
            w, h = h, w
        if h <= height and w <= width:
            y1 = math.floor(attempt[3] * (height - h + 1))
            x1 = math.floor(attempt[4] * (width - w + 1))
            return (x1, y1, x1 + w, y1 + h), flip
    return None, flip  # the short side scaled to the input's size, and the center of that


@pytest.mark.parametrize('width, height', [(500, 375), (375, 500), (20, 18), (9, 10), (3, 2), (40, 12)])
def test_crops_are_those_of_fb_resnet_torch(width, height):
    fell_back = 0
    for index in range(300):
        bits = np.random.Philox(key=np.array([5, 2], np.uint64),
                                counter=np.array([0, 0, index, 7], np.uint64))
        expected = transcribed_crop(width, height, (bits.random_raw(51) >> np.uint64(11)) / 2.0 ** 53)
        crop = training_crop(width, height, 224, seed=5, epoch=7, index=index)
        if expected[0] is None:
            fell_back += 1
            left, upper, right, lower = crop[0]
            assert crop[1] == expected[1]
            assert (right - left, lower - upper) == pytest.approx([min(width, height)] * 2, rel=1e-3)
        else:
            assert crop == expected
    assert (fell_back > 0) == ((width, height) == (40, 12))


def test_crop_is_the_published_one():
    # Fixed forever: a run can be repeated.
    assert training_crop(500, 375, 224, seed=1, epoch=2, index=3) == ((216, 23, 477, 343), False)
    assert training_crop(500, 375, 224, seed=0, epoch=0, index=0) == ((137, 51, 427, 364), False)


def test_area_of_crops_that_always_fit_is_uniform():
    # Crops of less than 3/4 of a square's area fit whatever their aspect ratio.
    area = statistics(crops(1000, 1000, 5000), 1000, 1000)['area']
    small = np.sort(area[area < 0.7])
    expected = (small - 0.08) / (0.7 - 0.08)
    assert np.abs(expected - np.arange(len(small)) / len(small)).max() < 1.63 / math.sqrt(len(small))


def test_every_offset_is_drawn_equally_often_the_last_included():
    width, height = 12, 10
    boxes = crops(width, height)
    for near, far, limit in ((0, 2, width), (1, 3, height)):
        side = boxes[:, far] - boxes[:, near]
        for size in (5, 7):
            offsets = boxes[side == size, near]
            counts = np.bincount(offsets.astype(int), minlength=limit - size + 1)
            assert len(counts) == limit - size + 1
            expected = len(offsets) / len(counts)
            chi2 = ((counts - expected) ** 2 / expected).sum()
            assert chi2 < 22, counts  # 0.1 % level of 6 degrees of freedom


def test_crops_are_whole_pixels_inside_the_image():
    boxes = crops(64, 48, 2000)
    assert (boxes == boxes.round()).all()
    assert (boxes >= 0).all() and (boxes[:, 2] <= 64).all() and (boxes[:, 3] <= 48).all()
    assert (boxes[:, 0] < boxes[:, 2]).all() and (boxes[:, 1] < boxes[:, 3]).all()


def test_half_of_the_crops_are_mirrored_whatever_their_size():
    drawn = [training_crop(500, 375, 224, 0, 1, index) for index in range(5000)]
    flips = np.array([flip for _, flip in drawn])
    sizes = np.array([box[2] - box[0] for box, _ in drawn])
    assert 2 * abs(flips.mean() - 0.5) < 3 / math.sqrt(5000)
    assert abs(np.corrcoef(flips, sizes)[0, 1]) < 3 / math.sqrt(5000)


def test_crop_depends_on_seed_epoch_and_image_alone():
    first = training_crop(500, 375, 224, seed=1, epoch=2, index=3)
    training_crop(500, 375, 224, seed=1, epoch=2, index=4)
    assert training_crop(500, 375, 224, seed=1, epoch=2, index=3) == first
    others = [training_crop(500, 375, 224, *key)[0] for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2))]
    assert len({first[0], *others}) == 5


def test_neighboring_images_and_epochs_are_independent():
    boxes = [np.array([training_crop(400, 400, 224, 0, epoch, index)[0] for index in range(2000)])
             for epoch in range(2)]
    area = [statistics(box, 400, 400)['area'] for box in boxes]
    assert abs(np.corrcoef(area[0], area[1])[0, 1]) < 3 / math.sqrt(2000)
    assert abs(np.corrcoef(area[0][:-1], area[0][1:])[0, 1]) < 3 / math.sqrt(2000)


def test_image_that_no_crop_fits_gives_its_central_square():
    # Every crop of a 1000 x 10 image is at least sqrt(0.08 * 10000 * 3/4) = 24 pixels high.
    assert training_crop(1000, 10, 224, 0, 0, 0)[0] == (495, 0, 505, 10)


def test_image_of_one_pixel_is_its_own_crop():
    assert {training_crop(1, 1, 32, 0, epoch, 0)[0] for epoch in range(50)} == {(0, 0, 1, 1)}


def test_validation_takes_224_of_a_short_side_of_256():
    assert validation_short_side(224) == 256
    assert validation_box(512, 512, 224) == (32, 32, 480, 480)


def test_validation_of_another_input_size_scales_the_short_side():
    assert validation_short_side(32) == 37
    assert validation_box(37, 37, 32) == (2, 2, 34, 34)


# Scaled image and corner of the crop in it: Resize(256) and CenterCrop(224) of torchvision, by hand.
@pytest.mark.parametrize('size, scaled, corner', [
    ((500, 375), (341, 256), (58, 16)),     # 341.33 is cut off; (341 - 224) / 2 = 58.5 goes to the even one
    ((375, 500), (256, 341), (16, 58)),
    ((333, 500), (256, 384), (16, 80)),
    ((499, 501), (256, 257), (16, 16)),     # 16.5
    ((1003, 751), (341, 256), (58, 16)),
    ((100, 77), (332, 256), (54, 16)),      # enlarged
    ((257, 259), (256, 257), (16, 16)),
    ((256, 259), (256, 259), (16, 18)),     # 17.5 goes to the even one
    ((225, 640), (256, 728), (16, 252)),
])
def test_validation_crop_lies_at_whole_pixels_of_the_scaled_image(size, scaled, corner):
    box = validation_box(*size, 224)
    factors = [after / before for before, after in zip(size, scaled)] * 2
    in_scaled = [edge * factor for edge, factor in zip(box, factors)]
    assert in_scaled == pytest.approx([*corner, corner[0] + 224, corner[1] + 224], abs=1e-9)


def reference_jitter(image, draws):
    """fb.resnet.torch's ColorJitter and Lighting, step by step on a float image in [0, 1]."""
    x = image.astype(np.float64) / 255

    def gray(x):
        return np.repeat((0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None], 3, axis=2)

    def brightness(x, alpha):
        return alpha * x

    def contrast(x, alpha):
        return alpha * x + (1 - alpha) * gray(x)[..., 0].mean()

    def saturation(x, alpha):
        return alpha * x + (1 - alpha) * gray(x)

    steps = [brightness, contrast, saturation]
    for i in sorted(range(3), key=lambda i: draws[3 + i]):
        x = steps[i](x, 0.6 + 0.8 * draws[i])
    for i in range(3):
        normal = math.sqrt(-2 * math.log(1 - draws[6 + i])) * math.cos(2 * math.pi * draws[9 + i])
        for channel in range(3):
            x[..., channel] += (0.1 * normal * constants.LIGHTING_EIGENVALUES[i]
                                * constants.LIGHTING_EIGENVECTORS[channel][i])
    return np.clip(x * 255, 0, 255)


@pytest.mark.parametrize('index', range(8))
def test_color_jitter_equals_its_steps_done_one_by_one(index):
    image = np.random.default_rng(index).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    bits = np.random.Philox(key=np.array([5, 3], np.uint64), counter=np.array([0, 0, index, 2], np.uint64))
    draws = (bits.random_raw(12) >> np.uint64(11)) * 2.0 ** -53
    jittered = color_jitter(image, seed=5, epoch=2, index=index)
    assert jittered.dtype == np.uint8
    assert np.abs(jittered - reference_jitter(image, draws)).max() < 0.501


def test_jittered_colors_vary_as_published():
    # A mid-gray image: contrast and saturation leave it, brightness is uniform in 0.6 to 1.4, lighting small.
    image = np.full((2, 2, 3), 128, np.uint8)
    brightness = [color_jitter(image, 0, 0, index).mean() / 128 for index in range(1000)]
    assert np.mean(brightness) == pytest.approx(1, abs=0.02)
    assert np.std(brightness) == pytest.approx(0.8 / math.sqrt(12), abs=0.02)


def test_jitter_leaves_the_image_it_is_given():
    image = np.full((2, 2, 3), 128, np.uint8)
    color_jitter(image, 0, 0, 0)
    assert (image == 128).all()
