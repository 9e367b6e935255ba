"""Statistics of batch normalization averaged over workers, against NumPy over their minibatches."""

import json
import pathlib

from lib import batch_statistics
from lib.batch_statistics import BatchStatistics

import chainer
import chainer.links as L
import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).resolve().parent / 'ranks_batch_statistics.py'
_results = {}


@pytest.fixture
def result(mpirun):
    """What four workers on ``ranks`` processes gave; run once for each number."""
    def of(ranks):
        if ranks not in _results:
            _results[ranks] = json.loads(mpirun(ranks, PROGRAM).stdout)
        return _results[ranks]
    return of


@pytest.mark.parametrize('ranks', [1, 2, 4])
@pytest.mark.parametrize('variance', ['mean', 'pooled'])
def test_average_is_that_of_the_last_minibatches_of_all_workers(result, ranks, variance):
    got = result(ranks)
    np.testing.assert_allclose(got[variance], got[f'numpy {variance}'], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('variance', ['mean', 'pooled'])
def test_virtual_workers_give_the_average_of_as_many_processes(result, variance):
    np.testing.assert_allclose(result(1)[variance], result(4)[variance], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result(2)[variance], result(4)[variance], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('ranks, calls', [(1, []), (2, ['Allreduce']), (4, ['Allreduce'])])
@pytest.mark.parametrize('variance', ['mean', 'pooled'])
def test_average_takes_one_collective_call(result, ranks, calls, variance):
    assert result(ranks)[f'{variance} calls'] == calls


def test_pooled_variance_is_exact_where_means_are_far_from_zero():
    # Means near 1000, a millionth apart: float32 sums of squares would lose all of it.
    rows = np.zeros((4, 2), np.float32)
    rows[:, 0] = 1000 + np.arange(4) * 2.0 ** -12
    rows[:, 1] = 1e-9
    sums = batch_statistics.sum_over_workers(rows, 'pooled')
    mean, variance = batch_statistics.average_from_sums(sums, 4, 'pooled')
    assert mean == np.float32(rows[:, 0].mean(dtype=np.float64))
    np.testing.assert_allclose(variance, 1e-9 + 1.25 * 2.0 ** -24, rtol=5e-3)


def test_pooled_variance_is_never_below_the_mean_variance():
    # A hundred workers of the same means: rounding puts the mean of many a square below the mean's square.
    row = np.append(np.linspace(0.37, 0.74, 97), np.zeros(97)).astype(np.float32)
    sums = batch_statistics.sum_over_workers(np.stack([row] * 100), 'pooled')
    assert (batch_statistics.average_from_sums(sums, 100, 'pooled')[97:] >= 0).all()


@pytest.mark.parametrize('variance', ['mean', 'pooled'])
def test_averages_are_in_single_precision_as_the_links_have_them(variance):
    sums = batch_statistics.sum_over_workers(np.ones((3, 4), np.float32), variance)
    assert batch_statistics.average_from_sums(sums, 3, variance).dtype == np.float32


def make_model():
    model = chainer.Sequential(L.BatchNormalization(2, decay=0.5), L.BatchNormalization(2, decay=0.5))
    model[0].avg_mean[...] = 3
    return model


def test_each_worker_keeps_its_own_moving_averages():
    model = make_model()
    statistics = BatchStatistics(model, 2)
    batches = [np.full((4, 2), value, np.float32) for value in (1, 5)]
    for _ in range(2):
        for k in range(2):
            statistics.select(k)
            model(batches[k])
    # 3, then halfway to the worker's own mean, twice.
    assert statistics.rows_on_host()[:, 0].tolist() == [1.5, 4.5]


def test_a_worker_s_statistics_are_lent_and_the_former_ones_come_back():
    model = make_model()
    statistics = BatchStatistics(model, 2)
    rows = np.stack([np.full(statistics.size, value, np.float32) for value in (1, 2)])
    statistics.restore_rows(rows)
    statistics.select(0)
    with pytest.raises(KeyError), statistics.using(1):
        assert model[0].avg_mean.tolist() == [2, 2]
        raise KeyError
    assert model[0].avg_mean.tolist() == [1, 1] and model[1].avg_var.tolist() == [1, 1]


def test_restored_rows_continue_where_they_were_taken():
    model = make_model()
    statistics = BatchStatistics(model, 2)
    rows = np.arange(2 * statistics.size, dtype=np.float32).reshape(2, -1)
    statistics.restore_rows(rows)
    statistics.select(1)
    assert np.array_equal(model[0].avg_mean, rows[1, :2]) and np.array_equal(model[1].avg_var, rows[1, 6:])
    assert np.array_equal(statistics.rows_on_host(), rows)


def test_rows_on_host_are_a_copy():
    model = make_model()
    statistics = BatchStatistics(model)
    rows = statistics.rows_on_host()
    model[0].avg_mean[...] = 9
    assert rows[0, 0] == 3 and statistics.rows_on_host()[0, 0] == 9


def test_network_without_batch_normalization_has_no_statistics():
    statistics = BatchStatistics(chainer.Sequential(L.Linear(2, 2)), 3)
    assert statistics.size == 0 and statistics.rows_on_host().shape == (3, 0)
    statistics.select(2)
