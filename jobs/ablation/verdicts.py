"""How the runs are judged: numbers of runs, paired differences, their interval, and a verdict."""

import math
import statistics

from jobs.tables import LOSS, VAL_ACCURACY, spread

# Student's t, 95 % one-sided, by degrees of freedom; the last serves for more.
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)

HELD, FAILED, OPEN, NOT_RUN = 'held', 'did not hold', 'cannot tell', 'not run'

RULES = (
    'Differences are taken seed by seed (the same weights, order of images and augmentation), with a 90 % '
    'interval by Student\'s t. ">" held if the interval is above 0, and did not hold if it is below the '
    'margin ("<" likewise); "≈" held if the interval is inside ± the margin, and did not hold if it is '
    'outside; "≥" held if it is above minus the margin, and did not hold if it is below. All else these runs '
    'cannot tell, and one seed can never tell.')


def value(run, measure):
    """A number of one run, by the name of its measure.

    A run that diverged ends at chance, and what it has not reached counts as guessing: a loss of ln(classes).
    """
    log, plan = run['log'], run['plan']
    chance, diverged = 1 / plan['n_class'], run['diverged'] is not None
    if measure == 'final':
        return chance if diverged else log[VAL_ACCURACY][-1]
    if measure == 'mean':
        values = log[VAL_ACCURACY]
        missing = math.ceil(plan['epochs']) - len(values) if diverged else 0
        return statistics.fmean(values + [chance] * missing)
    if measure == 'loss':
        return math.log(plan['n_class']) if diverged else log[LOSS][-1]
    if measure == 'start':
        return log[LOSS][0] if log[LOSS] else math.log(plan['n_class'])
    center, period = plan['beta_center'], plan['beta_period']
    if measure == 'warmup':
        return _mean_loss(run, 0, center)
    if measure == 'after':
        return _mean_loss(run, center, center + period)
    raise ValueError(f'no measure {measure!r}')


def _mean_loss(run, first, last):
    """Mean training loss of the blocks of iterations that end after epoch ``first``, up to ``last``."""
    plan, every = run['plan'], run['loss']['every']
    means = run['loss']['means']
    blocks = [plan['n_train'] * epoch / plan['total_batch'] / every for epoch in (first, last)]
    wanted = range(math.floor(blocks[0]), max(math.floor(blocks[1]), math.floor(blocks[0]) + 1))
    return statistics.fmean(means[k] if k < len(means) else math.log(plan['n_class']) for k in wanted)


def differences(by_arm, comparison):
    """Differences arm - reference, seed by seed: a seed means the same weights, order and augmentation.

    Args:
        by_arm (dict): Runs by seed, by arm.
        comparison (Comparison): What is compared.

    Returns:
        list of float: One per seed that both arms have, in the order of the seeds.
    """
    arm, reference = by_arm[comparison.arm], by_arm[comparison.reference]
    return [value(arm[seed], comparison.measure) - value(reference[seed], comparison.measure)
            for seed in sorted(set(arm) & set(reference))]


def interval(found):
    """Mean of paired differences and its 90 % confidence interval by Student's t.

    Returns:
        tuple of float: Mean, lower and upper end; the ends are infinite for a single difference.
    """
    mean, deviation = spread(found)
    if deviation is None:
        return mean, -math.inf, math.inf
    t = T_95[min(len(found) - 2, len(T_95) - 1)]
    half = t * deviation / math.sqrt(len(found))
    return mean, mean - half, mean + half


def verdict(found, expected, margin):
    """Whether differences arm - reference bear out what was expected, as one of four answers.

    Each is given at 95 % confidence, one-sided, by ``RULES``.
    """
    if not found:
        return NOT_RUN
    _, low, high = interval(found)
    if expected == 'lower':
        low, high, expected = -high, -low, 'higher'
    held, failed = {
        'higher': (low > 0, high < margin),
        'equal': (-margin < low and high < margin, high < -margin or low > margin),
        'holds': (low > -margin, high < -margin),
    }[expected]
    return HELD if held else FAILED if failed else OPEN


def judge(declared, by_arm, comparison):
    """The verdict on a comparison of a set by the runs there are."""
    return verdict(differences(by_arm, comparison), comparison.expected, declared.margins[comparison.measure])
