import math

from lib.recipe import PUBLISHED, Recipe

import pytest


def test_paper_begins_with_rmsprop_at_half_the_linear_rate():
    values = PUBLISHED['paper'].hyperparameters(0, 32768)
    assert values.lr == pytest.approx(6.4, rel=1e-12)
    assert values.alpha_sgd == pytest.approx(0.5 * math.exp(-4), rel=1e-12)
    assert values.alpha_rmsprop == pytest.approx((1 - 0.5 * math.exp(-4)) * 0.0003 / 6.4, rel=1e-12)


def test_paper_ends_with_momentum_sgd():
    values = PUBLISHED['paper'].hyperparameters(89.9, 32768)
    assert (values.lr, values.alpha_sgd, values.alpha_rmsprop) == (pytest.approx(0.0128, rel=1e-12), 1, 0)


def test_goyal_begins_at_the_rate_of_a_small_minibatch():
    values = PUBLISHED['goyal'].hyperparameters(0, 8192)
    assert (values.lr, values.alpha_sgd, values.alpha_rmsprop) == (pytest.approx(0.1, rel=1e-12), 1, 0)


def test_goyal_reaches_the_linear_rate_after_five_epochs():
    assert PUBLISHED['goyal'].hyperparameters(5, 8192).lr == pytest.approx(3.2, rel=1e-12)


@pytest.mark.parametrize('share', [0, 0.05, 1 / 9, 0.13, 0.4, 0.5, 0.8, 0.99])
@pytest.mark.parametrize('name', ['paper', 'goyal'])
def test_all_that_is_counted_in_epochs_scales_with_the_length(name, share):
    long = PUBLISHED[name]
    short = Recipe(long.name, long.transition, long.schedule, long.bn_statistics, epochs=9)
    assert short.hyperparameters(9 * share, 4096) == pytest.approx(long.hyperparameters(90 * share, 4096))


def test_published_recipes_are_the_papers_choices():
    paper, goyal = PUBLISHED['paper'], PUBLISHED['goyal']
    assert (paper.transition, paper.schedule, paper.bn_statistics, paper.bn_variance, paper.epochs) == (
        'continuous', 'slow-start', 'last', 'mean', 90)
    assert (goyal.transition, goyal.schedule, goyal.bn_statistics, goyal.epochs) == (
        'none', 'goyal', 'moving', 90)


def test_phases_of_a_short_training_end_with_it():
    paper = PUBLISHED['paper']
    short = Recipe('paper', paper.transition, paper.schedule, paper.bn_statistics, epochs=9)
    assert [phase[:2] for phase in short.phases(256)] == [(0, 4), (4, 7), (7, 8.5), (8.5, 9)]


def test_eta_scale_multiplies_the_base_rate_alone():
    paper = PUBLISHED['paper']
    scaled = Recipe('paper', paper.transition, paper.schedule, paper.bn_statistics, eta_scale=3)
    assert scaled.hyperparameters(20, 256).lr == pytest.approx(3 * paper.hyperparameters(20, 256).lr)
    assert scaled.hyperparameters(20, 256).alpha_sgd == paper.hyperparameters(20, 256).alpha_sgd


def test_running_statistics_are_forgotten_but_under_goyal():
    assert PUBLISHED['paper'].bn_decay == 0
    assert PUBLISHED['goyal'].bn_decay == 0.9
    paper = PUBLISHED['paper']
    assert Recipe('paper', paper.transition, paper.schedule, bn_statistics='last-local').bn_decay == 0
