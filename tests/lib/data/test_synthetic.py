from lib.data import synthetic
from lib.sharding import Share

import numpy as np
import pytest


def test_sizes_are_imagenets_by_default():
    assert tuple(map(len, synthetic.open_pair())) == (1281167, 50000)


def test_validation_set_keeps_imagenets_proportion():
    train_set, val_set = synthetic.open_pair(1000)
    assert len(train_set) == 1000
    assert len(val_set) == 40  # 39.03, rounded up


@pytest.mark.parametrize('start, stop, sizes', [(0, 0, []), (0, 7, [4, 3]), (3, 11, [4, 4])])
def test_share_is_covered_once(start, stop, sizes):
    batches = list(synthetic.validation_batches(8, 0, start, stop, 4))
    assert [len(labels) for _, labels in batches] == sizes
    assert all(pixels.shape == (len(labels), 8, 8, 3) and pixels.dtype == np.uint8
               for pixels, labels in batches)


def test_batches_of_a_seed_are_the_published_ones():
    batches = synthetic.SyntheticBatches(3, 2, Share(5, 8, 4, 1, 2, 0, 1))
    drawn = [(labels.tolist(), pixels.flat[:4].tolist()) for pixels, labels in batches]
    assert drawn == [([2, 2, 1, 2, 2, 0, 1, 0], [86, 119, 18, 44]),
                     ([1, 2, 1, 0, 2, 0, 1, 2], [146, 147, 26, 220])]


def test_labels_are_drawn_from_all_classes():
    (_, labels), = synthetic.SyntheticBatches(5, 1, Share(0, 1000, 1, 0, 1, 0, 1))
    assert np.bincount(labels, minlength=5).min() > 150 and labels.max() == 4
