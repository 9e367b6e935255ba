"""The cost model against closed forms, and against what the paper says of its own run."""

import math
import subprocess
import sys

from lib import constants
from lib.errors import UserError

import numpy as np
import pytest

from jobs import cost_model

LEVEL = cost_model.Level(alpha=2e-6, beta=5e9)
FAST = cost_model.Level(alpha=1e-6, beta=50e9)


def machine(node_size=8, intra=FAST, inter=LEVEL, compute=0.1):
    return cost_model.Machine(compute, node_size, intra, inter)


def test_one_worker_exchanges_nothing():
    for algorithm in ('ring', 'tree'):
        assert cost_model.allreduce_seconds(1, 10**9, machine(), algorithm) == 0


def test_ring_within_one_node_is_the_textbook_formula():
    n, size = 8, 51_114_064
    expected = 2 * (n - 1) * FAST.alpha + 2 * (n - 1) / n * size / FAST.beta
    assert cost_model.allreduce_seconds(n, size, machine()) == pytest.approx(expected, rel=1e-12)


def test_ring_steps_equal_a_walk_around_the_ring():
    n, node_size = 24, 8
    hops = [LEVEL if (k + 1) % node_size == 0 else FAST for k in range(n - 1)]  # from worker k to k + 1
    latency = 2 * sum(level.alpha for level in hops)
    assert cost_model.allreduce_seconds(n, 0, machine()) == pytest.approx(latency, rel=1e-12)


def test_slowest_level_limits_the_bandwidth():
    size = 10**9
    for algorithm in ('ring', 'tree'):
        within = cost_model.allreduce_seconds(8, size, machine(), algorithm)
        across = cost_model.allreduce_seconds(16, size, machine(), algorithm)
        assert across / within == pytest.approx(FAST.beta / LEVEL.beta, rel=0.1)


def test_tree_has_logarithmic_latency_where_the_ring_has_linear():
    one_per_node = machine(node_size=1)
    assert cost_model.allreduce_seconds(1024, 0, one_per_node, 'tree') == pytest.approx(20 * LEVEL.alpha)
    assert cost_model.allreduce_seconds(1024, 0, one_per_node, 'ring') == pytest.approx(2046 * LEVEL.alpha)


def test_training_time_adds_iterations_and_validations():
    training = cost_model.Training(batch=10, epochs=3, n_train=1000, n_val=200, wire_bytes=0, statistics=0)
    # 4 workers: 25 iterations an epoch; a validation is 50 images a worker, 5 minibatches, forward only.
    still = cost_model.Level(0.0, math.inf)
    seconds = cost_model.training_seconds(4, machine(intra=still, inter=still, compute=0.3), training)
    assert seconds == pytest.approx(75 * 0.3 + 3 * 5 * 0.1)


def test_published_times_reproduce_the_papers_figures():
    times = cost_model.published_iteration_seconds()
    assert times[1] / times[1024] == pytest.approx(0.70)
    assert times[8] / times[1024] == pytest.approx(0.80)
    validation = 49 / 32 / 3 * times[1]  # 50,000 images over 1024 workers: 49 for the busiest
    assert 3519 * times[1024] + 90 * validation == pytest.approx(897.9)


def test_effective_ring_meets_the_published_figures():
    published, training = cost_model.published_iteration_seconds(), cost_model.Training()
    found = cost_model.effective_machine(published, training)
    for n, seconds in published.items():
        assert cost_model.iteration_seconds(n, found, training) == pytest.approx(seconds)
    total = cost_model.training_seconds(constants.PAPER_WORKERS, found, training)
    assert total == pytest.approx(constants.PAPER_SECONDS, abs=constants.PAPER_SECONDS_STD + 6)


def test_nominal_cluster_is_a_lower_bound_of_the_measured_one():
    published, training = cost_model.published_iteration_seconds(), cost_model.Training()
    nominal = cost_model.nominal_machine(published[1])
    for n in (8, 1024):
        assert published[1] < cost_model.iteration_seconds(n, nominal, training) < published[n]


def synthetic_rows(truth, workers, overhead=0.0):
    rows = []
    for n in workers:
        exchange = cost_model.allreduce_seconds(n, 10**8, truth) + overhead
        rows.append({'workers': n, 'wire_bytes': 10**8, 'allreduce_time': exchange,
                     'iteration_time': truth.compute - overhead + exchange})
    return rows


def test_fit_recovers_both_levels():
    truth = machine(intra=cost_model.Level(2e-4, 9e9), inter=cost_model.Level(5e-4, 3e9))
    found = cost_model.fit(synthetic_rows(truth, (1, 2, 4, 8, 16, 32, 64)), node_size=8)
    assert found.compute == pytest.approx(truth.compute)
    for level, expected in ((found.intra, truth.intra), (found.inter, truth.inter)):
        assert level.alpha == pytest.approx(expected.alpha, rel=1e-6)
        assert level.beta == pytest.approx(expected.beta, rel=1e-6)


def test_fit_takes_the_exchange_of_one_worker_for_computation():
    truth = machine(intra=LEVEL, compute=0.2)
    found = cost_model.fit(synthetic_rows(truth, (1, 2, 4), overhead=0.05), node_size=4)
    assert found.compute == pytest.approx(0.2)
    assert found.intra.beta == pytest.approx(LEVEL.beta, rel=1e-6)


def test_a_level_that_was_not_measured_is_taken_to_be_as_the_other():
    found = cost_model.fit(synthetic_rows(machine(intra=cost_model.Level(0.0, 4e9)), (1, 2, 4)), node_size=4)
    assert found.intra.alpha == 0
    assert found.intra.beta == pytest.approx(4e9)
    assert found.inter == found.intra


@pytest.mark.parametrize('workers', [(1,), (1, 2), (2, 2, 4)])
def test_fewer_numbers_of_workers_than_parameters_fit_nothing_and_it_says_so(workers):
    with pytest.raises(UserError, match=f'with {workers[0]}.* workers, which fits nothing'):
        cost_model.fit(synthetic_rows(machine(), workers), node_size=8)


def test_the_old_name_tells_the_new_one_in_a_line():
    done = subprocess.run([sys.executable, 'jobs/predict.py', '--fit', 'a'], capture_output=True, text=True)
    assert done.returncode and done.stderr == (
        'jobs/predict.py is jobs/cost_model.py now, with the same options\n')


def test_least_squares_never_goes_below_zero():
    # Unconstrained, x = (2, -1).
    x = cost_model.non_negative_least_squares(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([1.0, 0.0]))
    assert x == [pytest.approx(0.5), 0.0]


def test_measurements_on_shared_cores_are_used_only_when_alone(tmp_path):
    path = tmp_path / 'scaling.csv'
    header = 'workers,batch,wire_bytes,oversubscribed,iteration_time,allreduce_time\n'
    path.write_text(header + '1,32,100,no,0.1,0\n2,32,100,no,0.2,0.1\n4,32,100,yes,0.9,0.5\n')
    assert [row['workers'] for row in cost_model.read_measurements(path)] == [1, 2]
    path.write_text(header + '1,32,100,no,0.1,0\n4,32,100,yes,0.9,0.5\n')
    assert [row['workers'] for row in cost_model.read_measurements(path)] == [1, 4]


def test_command_line_prints_the_comparison_with_the_paper(capsys):
    assert cost_model.main([]) == 0
    out = capsys.readouterr().out
    for part in ('3,519 iterations', '252.8 ms', '177.0 ms', '897.9 s', '1024'):
        assert part in out


@pytest.mark.parametrize('words, part', [
    (['--fit', 'absent.csv'], 'absent.csv'), (['--workers', '1,x'], "'1,x'"),
    (['--intra', '1', '2'], '--compute'),
    (['--compute', '-1'], "'-1'"), (['--n-train', '0'], '--n-train is 0')])
def test_mistakes_are_one_line_and_status_2(words, part, capsys):
    try:
        status = cost_model.main(words)
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2 and part in err and len(err.splitlines()) == 1
