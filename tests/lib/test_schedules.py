"""Schedules against the values, bounds and shapes that the papers state."""

import math

from lib import constants, schedules

import numpy as np
import pytest

FORMS = ('continuous', 'printed', 'linear', 'sigmoid', 'sudden', 'none')
EPOCHS = np.linspace(0, 90, 9001)


def alphas(form, epochs=EPOCHS, **arguments):
    return np.array([schedules.alpha_sgd(epoch, form=form, **arguments) for epoch in epochs])


def paper_epochs(workers=1024, epochs=90):
    """Epoch of every iteration of a run on ImageNet."""
    total = workers * constants.BATCH
    iterations = math.ceil(epochs * constants.IMAGENET_TRAIN / total)
    return [t * total / constants.IMAGENET_TRAIN for t in range(iterations)]


def iterations_before(epoch, workers=1024):
    """Iterations that start before an epoch: the t with t * total < epoch * N."""
    return math.ceil(epoch * constants.IMAGENET_TRAIN / (workers * constants.BATCH))


@pytest.mark.parametrize('epoch, expected', [
    (0, 0.5 * math.exp(-4)),
    (5, 0.5 * math.exp(-2)),
    (7.5, 0.5 * math.exp(-1)),
    (10, 0.5),
    (10.5, 0.6),
    (11.25, 0.75),
    (12.5, 1),
    (13, 1),
    (90, 1),
])
def test_continuous_has_the_values_computed_by_hand(epoch, expected):
    assert schedules.alpha_sgd(epoch) == pytest.approx(expected, abs=1e-12)


def test_continuous_starts_at_the_quoted_value():
    assert round(schedules.alpha_sgd(0), 7) == 0.0091578


def test_continuous_is_the_default():
    assert np.array_equal([schedules.alpha_sgd(epoch) for epoch in EPOCHS], alphas('continuous'))


@pytest.mark.parametrize('form', ['continuous', 'linear', 'sigmoid', 'sudden', 'none'])
def test_transition_is_monotone_and_stays_between_0_and_1(form):
    values = alphas(form)
    assert values.min() >= 0
    assert values.max() == 1
    assert np.diff(values).min() >= 0


@pytest.mark.parametrize('form', ['continuous', 'linear', 'sigmoid', 'printed'])
def test_transition_passes_one_half_at_its_center(form):
    for center in (10, 1.25, 4 / 9):
        assert schedules.alpha_sgd(center, center, 0.5 * center, form) == 0.5


def test_continuous_has_no_jump():
    # No slope exceeds 1 / beta_period, so a jump would exceed the step's share of it.
    assert np.abs(np.diff(alphas('continuous'))).max() <= (EPOCHS[1] - EPOCHS[0]) / 5 + 1e-12


@pytest.mark.parametrize('center, period', [(10, 5), (1, 0.5), (4 / 9, 2 / 9)])
def test_continuous_has_equal_slopes_on_both_sides_of_its_center(center, period):
    h = 1e-6 * period

    def alpha(epoch):
        return schedules.alpha_sgd(epoch, center, period)

    before = (alpha(center) - alpha(center - h)) / h
    after = (alpha(center + h) - alpha(center)) / h
    assert before == pytest.approx(1 / period, rel=1e-5)
    assert after == pytest.approx(1 / period, rel=1e-5)


def test_printed_is_the_formula_as_printed():
    for epoch, expected in [(0, 0.5 * math.exp(-4)), (9, 0.5 * math.exp(-0.4)), (10, 0.5), (11.25, 1),
                            (12, 1.3), (12.5, 1), (20, 1)]:
        assert schedules.alpha_sgd(epoch, form='printed') == pytest.approx(expected, abs=1e-12)
    assert schedules.alpha_sgd(12.5 - 1e-6, form='printed') == pytest.approx(1.5, abs=1e-6)


def test_linear_goes_from_0_to_1_around_its_center():
    for epoch, expected in [(0, 0), (7.5, 0), (8, 0.1), (10, 0.5), (12, 0.9), (12.5, 1), (90, 1)]:
        assert schedules.alpha_sgd(epoch, form='linear') == pytest.approx(expected, abs=1e-12)


def test_sigmoid_is_a_logistic_function_with_the_slope_of_the_others():
    for epoch in (0, 7, 9.5, 10, 10.5, 13, 20):
        expected = 0.5 * (1 + math.tanh(2 * (epoch - 10) / 5))
        assert schedules.alpha_sgd(epoch, form='sigmoid') == pytest.approx(expected, abs=1e-12)
    below, above = alphas('sigmoid', (10 - 1e-5, 10 + 1e-5))
    assert (above - below) / 2e-5 == pytest.approx(1 / 5, rel=1e-6)


def test_sigmoid_does_not_overflow():
    assert schedules.alpha_sgd(0, 10, 1e-3, 'sigmoid') == 0
    assert schedules.alpha_sgd(90, 10, 1e-3, 'sigmoid') == 1


def test_sudden_switches_at_the_center():
    assert schedules.alpha_sgd(10 - 1e-7, form='sudden') == 0
    assert schedules.alpha_sgd(10, form='sudden') == 1


def test_none_is_sgd_everywhere():
    assert set(alphas('none')) == {1.0}


def test_transition_scales_with_a_shorter_training():
    for form in FORMS:
        short = alphas(form, EPOCHS / 10, beta_center=1, beta_period=0.5)
        assert short == pytest.approx(alphas(form), abs=1e-12)


def test_unknown_form_is_refused_by_name():
    with pytest.raises(ValueError, match="'elu'.*continuous"):
        schedules.alpha_sgd(0, form='elu')


def test_alpha_rmsprop_turns_the_rate_of_sgd_into_the_rate_of_rmsprop():
    alpha = schedules.alpha_rmsprop(0.25, 0.0003, 6.4)
    assert alpha * 6.4 == pytest.approx(0.75 * 0.0003, rel=1e-12)


def test_alpha_rmsprop_is_exactly_0_once_alpha_sgd_is_1():
    assert schedules.alpha_rmsprop(schedules.alpha_sgd(12.5), 0.0003, 6.4) == 0


@pytest.mark.parametrize('total, expected', [(256, 0.1), (8192, 3.2), (32768, 12.8), (64, 0.025)])
def test_base_learning_rate_is_the_linear_scaling_rule(total, expected):
    assert schedules.base_learning_rate(total) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('first, last, expected', [
    (0, 40, 6.4), (40, 70, 0.96), (70, 85, 0.128), (85, 90, 0.0128)])
def test_slow_start_has_the_published_rates_from_bound_to_bound(first, last, expected):
    eta_base = schedules.base_learning_rate(32768)
    for epoch in (first, first + 1e-7, (first + last) / 2, last - 1e-7):
        assert schedules.slow_start(epoch, eta_base) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('first, last, expected', [
    (5, 30, 12.8), (30, 60, 1.28), (60, 80, 0.128), (80, 90, 0.0128)])
def test_gradual_warmup_has_goyals_rates_from_bound_to_bound(first, last, expected):
    for epoch in (first, first + 1e-7, (first + last) / 2, last - 1e-7):
        assert schedules.gradual_warmup(epoch, 12.8) == pytest.approx(expected, abs=1e-12)


def test_gradual_warmup_rises_linearly_during_5_epochs():
    for epoch, expected in [(0, 0.1), (1, 0.1 + 12.7 / 5), (2.5, 6.45), (5 - 1e-9, 12.8)]:
        assert schedules.gradual_warmup(epoch, 12.8) == pytest.approx(expected, abs=1e-8)


def test_gradual_warmup_never_starts_above_the_base_rate():
    assert {schedules.gradual_warmup(epoch, 0.025) for epoch in np.linspace(0, 29, 100)} == {0.025}


def test_gradual_warmup_starts_from_the_rate_it_is_given():
    assert schedules.gradual_warmup(0, 12.8, eta_start=0.5) == 0.5


@pytest.mark.parametrize('epochs', [1, 3, 7, 8, 9, 10, 30, 60, 89, 90, 91, 180, 1000])
@pytest.mark.parametrize('schedule, bounds', [
    (schedules.slow_start, (40, 70, 85)), (schedules.gradual_warmup, (30, 60, 80))])
def test_bound_belongs_to_the_next_phase_however_the_epoch_was_rounded(schedule, bounds, epochs):
    # N = 90 * 7 * 11 images, so that every bound falls on an image: bound * epochs * 77 of them.
    n_examples, factors = 90 * 77, [1, 0.5, 0.1, 0.075, 0.01, 0.001]
    for bound in bounds:
        images = bound * epochs * 77
        exact = images / n_examples
        rounded = (exact, images * (1 / n_examples), np.nextafter(exact, 0), np.nextafter(exact, np.inf),
                   sum([exact / 10] * 10), bound * (epochs / 90))
        at = {schedule(float(epoch), 1.0, epochs) for epoch in rounded}
        before = schedule((images - 1) / n_examples, 1.0, epochs)
        assert len(at) == 1
        assert at.pop() < before
        assert before in factors


def test_short_training_scales_the_phases():
    # 9 epochs: bounds at 4, 7 and 8.5
    rates = [schedules.slow_start(epoch, 1.0, 9) for epoch in (0, 3.999, 4, 6.999, 7, 8.499, 8.5, 9)]
    assert rates == [0.5, 0.5, 0.075, 0.075, 0.01, 0.01, 0.001, 0.001]


def test_last_phase_ends_with_the_training():
    assert schedules.slow_start_phases(1.0, epochs=9)[-1] == pytest.approx((8.5, 9, 0.001, 0.001))
    assert schedules.gradual_warmup_phases(1.0, epochs=9)[-1] == pytest.approx((8, 9, 0.001, 0.001))


def test_short_training_scales_the_warmup():
    assert schedules.gradual_warmup(0.25, 12.8, 9) == pytest.approx(6.45, abs=1e-12)
    assert schedules.gradual_warmup(0.5, 12.8, 9) == 12.8


def test_paper_run_counts_its_iterations_in_every_phase():
    epochs = paper_epochs()
    assert len(epochs) == 3519
    rates = [schedules.slow_start(epoch, 12.8) for epoch in epochs]
    ends = [0, iterations_before(40), iterations_before(70), iterations_before(85), 3519]
    for first, last, rate in zip(ends, ends[1:], (6.4, 0.96, 0.128, 0.0128)):
        assert rates[first:last] == pytest.approx([rate] * (last - first), abs=1e-12)


def test_goyal_run_counts_its_iterations_in_every_phase():
    epochs = paper_epochs()
    rates = [schedules.gradual_warmup(epoch, 12.8) for epoch in epochs]
    ends = [iterations_before(epoch) for epoch in (0, 5, 30, 60, 80)] + [3519]
    warmup = [0.1 + 12.7 * t * 32768 / 1281167 / 5 for t in range(ends[1])]
    assert rates[:ends[1]] == pytest.approx(warmup, abs=1e-12)
    for first, last, rate in zip(ends[1:], ends[2:], (12.8, 1.28, 0.128, 0.0128)):
        assert rates[first:last] == pytest.approx([rate] * (last - first), abs=1e-12)


def test_paper_run_follows_the_transition_in_every_iteration():
    epochs = paper_epochs()
    values = [schedules.alpha_sgd(epoch) for epoch in epochs]
    center, end = iterations_before(10), iterations_before(12.5)
    t = np.arange(3519) * 32768 / 1281167
    assert values[:center] == pytest.approx(0.5 * np.exp(2 * (t[:center] - 10) / 5), abs=1e-12)
    assert values[center:end] == pytest.approx(0.5 + (t[center:end] - 10) / 5, abs=1e-12)
    assert set(values[end:]) == {1.0}


def test_paper_run_never_has_a_negative_rmsprop_term():
    for epoch in paper_epochs():
        eta = schedules.slow_start(epoch, 12.8)
        alpha = schedules.alpha_rmsprop(schedules.alpha_sgd(epoch), constants.ETA_RMSPROP, eta)
        assert 0 <= alpha <= 0.0003 / eta
        assert (alpha == 0) == (epoch >= 12.5)


def test_schedules_return_python_floats():
    epoch = np.float64(3)
    values = [schedules.alpha_sgd(epoch, np.float32(10), np.float32(5), form) for form in FORMS]
    values += [schedules.alpha_rmsprop(epoch, np.float32(1), np.float32(1)),
               schedules.base_learning_rate(np.int64(256)), schedules.slow_start(epoch, np.float32(1)),
               schedules.gradual_warmup(epoch, np.float32(1)), schedules.gradual_warmup(20, np.float32(1))]
    assert {type(value) for value in values} == {float}
