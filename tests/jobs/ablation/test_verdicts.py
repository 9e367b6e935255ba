"""Verdicts on hand-made differences, numbers of hand-made runs."""

import math

import pytest

from jobs.ablation import verdicts
from jobs.ablation.claims import Comparison
from jobs.tables import LOSS


def test_interval_is_students():
    # 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, and t = 2.920 at two degrees of freedom.
    mean, low, high = verdicts.interval([0.01, 0.02, 0.03])
    assert mean == pytest.approx(0.02)
    assert (high - mean, mean - low) == pytest.approx([2.920 * 0.01 / math.sqrt(3)] * 2)


@pytest.mark.parametrize('expected, differences, answer', [
    ('higher', (0.10, 0.11, 0.12), verdicts.HELD),
    ('higher', (-0.10, -0.11, -0.12), verdicts.FAILED),
    ('higher', (-0.001, 0.0, 0.001), verdicts.FAILED),       # certainly below the margin
    ('higher', (-0.1, 0.0, 0.1), verdicts.OPEN),
    ('lower', (-0.10, -0.11, -0.12), verdicts.HELD),
    ('lower', (0.10, 0.11, 0.12), verdicts.FAILED),
    ('equal', (-0.001, 0.0, 0.001), verdicts.HELD),
    ('equal', (0.10, 0.11, 0.12), verdicts.FAILED),
    ('equal', (-0.1, 0.0, 0.1), verdicts.OPEN),
    ('holds', (0.10, 0.11, 0.12), verdicts.HELD),
    ('holds', (-0.011, -0.010, -0.009), verdicts.HELD),      # lower, but by less than the margin
    ('holds', (-0.10, -0.11, -0.12), verdicts.FAILED),
    ('holds', (-0.1, 0.0, 0.1), verdicts.OPEN),
    ('higher', (0.5,), verdicts.OPEN),                       # one seed proves nothing
    ('higher', (), verdicts.NOT_RUN),
])
def test_verdict(expected, differences, answer):
    assert verdicts.verdict(list(differences), expected, margin=0.03) == answer


def test_differences_are_taken_seed_by_seed_where_both_arms_ran(tiny, made_up):
    by_arm = {'paper': {2: made_up(tiny, 'paper', 2, 0.5), 0: made_up(tiny, 'paper', 0, 0.3)},
              'no-warmup': {seed: made_up(tiny, 'no-warmup', seed, accuracy)
                            for seed, accuracy in ((0, 0.1), (1, 0.2), (2, 0.4))}}
    comparison = Comparison('paper', 'higher', 'no-warmup', 'final')
    assert verdicts.differences(by_arm, comparison) == pytest.approx([0.2, 0.1])


def test_diverged_run_counts_as_guessing(tiny, made_up):
    run = made_up(tiny, 'paper', 0, 0.3, diverged=9)
    run['plan']['epochs'] = 4
    assert verdicts.value(run, 'final') == 1 / 20
    assert verdicts.value(run, 'mean') == pytest.approx((0.1 + 0.3 + 1 / 20 + 1 / 20) / 4)
    assert verdicts.value(run, 'loss') == pytest.approx(math.log(20))
    run['log'][LOSS] = []
    assert verdicts.value(run, 'start') == pytest.approx(math.log(20))
    run['loss']['means'] = [3.5]
    assert verdicts.value(run, 'warmup') == pytest.approx((3.5 + 4 * math.log(20)) / 5)


def test_loss_up_to_beta_center_and_after_it_are_means_over_iterations(tiny, made_up):
    # 10 iterations per epoch, in blocks of two: beta_center ends the fifth, half an epoch later ends 7.5.
    run = made_up(tiny, 'paper', 0, 0.3)
    assert verdicts.value(run, 'warmup') == pytest.approx((3.0 + 2.9 + 2.8 + 2.7 + 2.6) / 5)
    assert verdicts.value(run, 'after') == pytest.approx((2.5 + 2.4) / 2)
