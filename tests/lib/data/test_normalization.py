from lib.data import normalization
from lib.data.normalization import normalize

import numpy as np
import pytest

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def implementation(both_implementations):
    both_implementations(normalization)


def reference(images):
    mean = np.array([0.485, 0.456, 0.406])
    std = np.array([0.229, 0.224, 0.225])
    return ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2)


@pytest.mark.parametrize('dtype, tolerance', [(np.float32, 2e-7), (np.float16, 2e-3)])
def test_values_are_the_float64_ones_rounded_once(dtype, tolerance):
    out = normalize(IMAGES, dtype)
    assert out.dtype == dtype and out.shape == (3, 3, 8, 10)
    assert np.abs(out - reference(IMAGES)).max() <= tolerance
    assert np.array_equal(out, reference(IMAGES).astype(dtype))


def test_result_is_contiguous():
    assert normalize(IMAGES).flags.c_contiguous


def test_strided_images_are_taken_as_they_lie():
    assert np.array_equal(normalize(IMAGES[:, ::2, ::-1]), reference(IMAGES[:, ::2, ::-1]).astype(np.float32))


@pytest.mark.parametrize('images', [IMAGES[..., :2], IMAGES[0], IMAGES.astype(np.int64)])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match='expected uint8 of shape'):
        normalize(images)


def test_empty_batch_stays_empty():
    assert normalize(IMAGES[:0]).shape == (0, 3, 8, 10)
