"""Exact validation; on several ranks in test_validation_ranks below, started through mpirun."""

import chainer
import numpy as np
import pytest

from lib import validation


class Threshold(chainer.Chain):
    """Logits that depend on one pixel's level: answers class 1 to light images."""

    def forward(self, x):
        light = x[:, 0, 0, 0]
        return chainer.functions.stack([-light, light], axis=1)


def images(n, seed=0):
    bits = np.random.RandomState(seed)
    return bits.randint(0, 256, (n, 2, 2, 3)).astype(np.uint8), bits.randint(0, 2, n).astype(np.int32)


def in_batches(pixels, labels, size):
    for start in range(0, len(labels), size):
        yield pixels[start:start + size], labels[start:start + size]


def independent_sums(pixels, labels):
    level = (pixels[:, 0, 0, 0] / 255 - 0.485) / 0.229
    margin = np.where(labels == 1, 2 * level, -2 * level)
    return np.log1p(np.exp(-margin)).sum(), (margin > 0).sum(), len(labels)


@pytest.mark.parametrize('n', range(18))
@pytest.mark.parametrize('size', [1, 4, 32])
def test_sums_equal_an_independent_computation(n, size):
    pixels, labels = images(n)
    sums = validation.evaluate(Threshold(), in_batches(pixels, labels, size))
    np.testing.assert_allclose(sums, independent_sums(pixels, labels), rtol=1e-5)


def test_no_image_has_no_accuracy():
    assert validation.means(np.zeros(3)) == {}


def test_means_divide_by_the_number_of_images():
    assert validation.means(np.array([6.0, 3.0, 4.0])) == {'loss': 1.5, 'accuracy': 0.75}


def test_every_rank_count_gives_the_one_process_answer(mpirun):
    told = mpirun(3, 'tests/lib/ranks_validation.py').stdout.split()
    assert told == ['18', 'sizes', 'x', '3', 'batches', 'x', '3', 'rank', 'counts:', 'all', 'equal']
