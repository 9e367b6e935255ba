"""Exact validation; on several ranks through ranks_validation.py."""

import types

from lib import validation
from lib.batch_statistics import BatchStatistics

import chainer
import numpy as np
import pytest


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
    return np.log1p(np.exp(-margin)).sum(), (margin > 0).sum(), len(labels), len(labels)


@pytest.mark.parametrize('n', range(18))
@pytest.mark.parametrize('size', [1, 4, 32])
def test_sums_equal_an_independent_computation(n, size):
    pixels, labels = images(n)
    sums = validation.evaluate(Threshold(), in_batches(pixels, labels, size))
    np.testing.assert_allclose(sums, independent_sums(pixels, labels), rtol=1e-5)


def test_network_is_not_training_and_keeps_no_graph():
    seen = []

    class Watched(Threshold):
        def forward(self, x):
            seen.append((chainer.config.train, chainer.config.enable_backprop))
            return super().forward(x)

    validation.evaluate(Watched(), in_batches(*images(3), 2))
    assert seen == [(False, False)] * 2


def test_no_image_has_no_accuracy():
    assert validation.means(np.zeros(4)) == {}


def test_means_divide_by_the_number_of_images():
    assert validation.means(np.array([6.0, 2.0, 3.0, 4.0])) == {
        'loss': 1.5, 'accuracy': 0.5, 'accuracy_top5': 0.75}


class Answers(chainer.Chain):
    """Gives the logits that it was told, whatever the images."""

    def __init__(self, logits):
        super().__init__()
        self._logits = np.array(logits, np.float32)

    def forward(self, x):
        return chainer.as_variable(self._logits)


def correct(logits, labels):
    """Correct answers among the first one and the first five."""
    pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return validation.evaluate(Answers(logits), [(pixels, np.array(labels, np.int32))])[1:3].tolist()


def test_top5_counts_labels_among_the_five_largest_logits():
    bits = np.random.RandomState(0)
    logits, labels = bits.normal(size=(200, 17)), bits.randint(0, 17, 200)
    first = np.argsort(-logits, axis=1)[:, :5]
    assert correct(logits, labels) == [(first[:, 0] == labels).sum(), (first == labels[:, None]).any(1).sum()]


def test_of_equal_logits_the_first_classes_are_the_answers():
    assert correct(np.zeros((8, 8)), range(8)) == [1, 5]


@pytest.mark.parametrize('n_class', [1, 2, 4, 5])
def test_with_five_classes_or_fewer_every_label_is_among_the_answers(n_class):
    logits = np.random.RandomState(0).normal(size=(30, n_class))
    assert correct(logits, [0] * 30)[1] == 30


def test_a_network_that_answers_nan_is_never_right():
    assert correct(np.full((8, 8), np.nan), range(8)) == [0, 0]
    assert correct([[0, np.nan, 1, 2, 3, 4, 5, 6]], [1]) == [0, 0]


def test_probabilities_are_the_softmax_of_the_logits():
    logits = [[0.0, np.log(3.0)], [1000.0, 0.0]]
    told = validation.probabilities(Answers(logits), np.zeros((2, 2, 2, 3), np.uint8))
    np.testing.assert_allclose(told, [[0.25, 0.75], [1, 0]], rtol=1e-6)


def test_every_rank_count_gives_the_one_process_answer(mpirun):
    told = mpirun(3, 'tests/lib/ranks_validation.py').stdout.split()
    assert told == ['18', 'sizes', 'x', '3', 'batches', 'x', '3', 'rank', 'counts:', 'all', 'equal']


class Offset(chainer.Chain):
    """Answers class 1 if the mean that it normalizes with is above one half."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.bn = chainer.links.BatchNormalization(3)

    def forward(self, x):
        above = self.bn.avg_mean[0] - 0.5
        return np.tile(np.array([-above, above], np.float32), (len(x), 1))


def test_without_the_average_every_worker_answers_for_its_block_with_its_own_statistics():
    model = Offset()
    statistics = BatchStatistics(model, 2)
    rows = statistics.rows_on_host()
    rows[0, :3], rows[1, :3] = 0.0, 1.0
    statistics.restore_rows(rows)
    statistics.select_average(types.SimpleNamespace(size=1))
    plan = types.SimpleNamespace(recipe=types.SimpleNamespace(bn_statistics='last-local'),
                                 workers_of=lambda rank: range(2 * rank, 2 * rank + 2), workers=4, n_val=10)
    pixels, labels = np.zeros((10, 2, 2, 3), np.uint8), np.ones(10, np.int32)

    shares = []

    def batches(start, stop):
        shares.append((start, stop))
        return in_batches(pixels[start:stop], labels[start:stop], 2)

    # Workers 2 and 3 of 4 have images 5, 6 and 7, 8, 9; only the second answers 1.
    assert validation.evaluate_share(plan, 1, model, statistics, batches)[1:].tolist() == [3, 5, 5]
    assert shares == [(5, 7), (7, 10)]
    # What checkpoints and model.npz hold afterwards is the average.
    assert model.bn.avg_mean.tolist() == [0.5, 0.5, 0.5]
