"""Schedules of the paper (sections A.1 and A.2) and of Goyal et al., as functions of the epoch.

``epoch`` is fractional: the images seen so far by all workers over the size of the training set. All values
are Python floats, because NumPy 2 would compute float32 arrays with np.float64 scalars in float64.
"""

import math

from lib import constants

# Distance to a phase's first epoch, in epochs, that counts as having reached it. It covers the rounding of
# ``epoch`` (1e-14 per operation), and is far below the closest that an iteration can come to a phase without
# being in it: for a whole number of epochs the bounds are multiples of 1/18, so 4e-8 epochs on ImageNet.
_ROUNDING = 1e-10


def _reached(epoch, first):
    return epoch >= first - _ROUNDING


def alpha_sgd(epoch, beta_center=constants.BETA_CENTER, beta_period=constants.BETA_PERIOD, form='continuous'):
    r"""Return the share of momentum SGD in the update, :math:`\alpha_{\rm SGD}` (section A.1).

    With :math:`x = ({\rm epoch} - \beta_{\rm center}) / \beta_{\rm period}`:

    ============== ==================================================================================
    ``continuous`` :math:`\frac12 e^{2x}` before :math:`\beta_{\rm center}`, then
                   :math:`\frac12 + x`, then 1 from :math:`x = \frac12`
    ``printed``    the same with :math:`\frac12 + 2x` in the middle
    ``linear``     0 before :math:`x = -\frac12`, then :math:`\frac12 + x`, then 1 from
                   :math:`x = \frac12`
    ``sigmoid``    :math:`1 / (1 + e^{-4x})`, which has the same value and slope at
                   :math:`\beta_{\rm center}`
    ``sudden``     0 before :math:`\beta_{\rm center}`, then 1
    ``none``       1: plain momentum SGD
    ============== ==================================================================================

    ``continuous`` is the default, though the paper prints :math:`\frac12 + 2x`, because the printed formula
    contradicts the text around it: it passes 1 at :math:`\beta_{\rm center} + \frac14\beta_{\rm period}`,
    makes :math:`\alpha_{\rm RMSprop}` negative from there on and drops from :math:`\frac32` to 1 where the
    text says it becomes 1. :math:`\frac12 + x` becomes 1 there, and continues the exponential with equal
    slope, as the ELU that the text likens it to does.

    Args:
        epoch (float): Epoch, fractional.
        beta_center (float): Epoch at which the transition is half done.
        beta_period (float): Length of the transition in epochs, positive.
        form (str): Form of the transition, one of the above.

    Returns:
        float: :math:`\alpha_{\rm SGD}`, from 0 to 1 (``printed``: to 1.5).

    Raises:
        ValueError: If there is no such form.
    """
    x = (epoch - beta_center) / beta_period
    if form == 'continuous':
        return float(0.5 * math.exp(2 * x) if x < 0 else min(0.5 + x, 1.0))
    if form == 'printed':
        if x < 0:
            return float(0.5 * math.exp(2 * x))
        return 1.0 if _reached(epoch, beta_center + 0.5 * beta_period) else float(0.5 + 2 * x)
    if form == 'linear':
        return float(min(max(0.5 + x, 0.0), 1.0))
    if form == 'sigmoid':
        e = math.exp(-4 * abs(x))  # never overflows
        return float(e / (1 + e) if x < 0 else 1 / (1 + e))
    if form == 'sudden':
        return 1.0 if _reached(epoch, beta_center) else 0.0
    if form == 'none':
        return 1.0
    raise ValueError(f'no transition {form!r}: choose continuous, printed, linear, sigmoid, sudden or none')


def alpha_rmsprop(alpha_sgd, eta_rmsprop, eta_sgd):
    r"""Return the coefficient of RMSprop in the update (section A.1).

    :math:`\alpha_{\rm RMSprop} = (1 - \alpha_{\rm SGD})\,\eta_{\rm RMSprop} / \eta_{\rm SGD}`, so that the
    update, which multiplies it by :math:`\eta = \eta_{\rm SGD}`, takes RMSprop's steps at
    :math:`\eta_{\rm RMSprop}`.

    Args:
        alpha_sgd (float): :math:`\alpha_{\rm SGD}`.
        eta_rmsprop (float): Learning rate of RMSprop.
        eta_sgd (float): Learning rate of SGD at the same iteration.

    Returns:
        float: :math:`\alpha_{\rm RMSprop}`.
    """
    return float((1 - alpha_sgd) * eta_rmsprop / eta_sgd)


def base_learning_rate(total_batch):
    r"""Return the linear scaling rule (section A.2): :math:`\eta_{\rm base} = 0.1\, b_{\rm total} / 256`.

    Args:
        total_batch (int): Images per iteration, of all workers together.

    Returns:
        float: :math:`\eta_{\rm base}`.
    """
    return float(constants.BASE_RATE * total_batch / constants.BASE_BATCH)


def _steps(steps, eta_base, epochs):
    """Phases ``(first epoch, end epoch, first rate, last rate)`` of ``(epoch of 90, factor)`` steps."""
    starts = [epoch * epochs / constants.EPOCHS for epoch, _ in steps]
    rates = [factor * eta_base for _, factor in steps]
    return [(start, end, rate, rate) for start, end, rate in zip(starts, [*starts[1:], epochs], rates)]


def slow_start_phases(eta_base, epochs=constants.EPOCHS):
    """List the phases of :func:`slow_start`, as :func:`gradual_warmup_phases` does."""
    return _steps(constants.SLOW_START, eta_base, epochs)


def gradual_warmup_phases(eta_base, epochs=constants.EPOCHS, eta_start=constants.GOYAL_ETA_START):
    """List the phases of :func:`gradual_warmup`.

    Returns:
        list of tuple: ``(first epoch, end epoch, first rate, last rate)``, linear in between; the two rates
        differ in the warm-up only.
    """
    (_, end, *_), *later = _steps(constants.GOYAL_STEPS, eta_base, epochs)
    warmup = constants.GOYAL_WARMUP_EPOCHS * epochs / constants.EPOCHS
    return [(0.0, warmup, min(eta_start, eta_base), eta_base), (warmup, end, eta_base, eta_base), *later]


def _rate(epoch, phases):
    """Learning rate in the last of ``phases`` that ``epoch`` has reached."""
    start, end, low, high = [phase for phase in phases if _reached(epoch, phase[0])][-1]
    return float(low + (high - low) * (epoch - start) / (end - start))


def slow_start(epoch, eta_base, epochs=constants.EPOCHS):
    r"""Return the paper's learning rate of SGD (section A.2).

    0.5, 0.075, 0.01 and 0.001 times :math:`\eta_{\rm base}` from epochs 0, 40, 70 and 85 of 90.

    Args:
        epoch (float): Epoch, fractional, from 0; the first epoch of a phase belongs to it.
        eta_base (float): :math:`\eta_{\rm base}`.
        epochs (int): Length of the training; the phases scale with it.

    Returns:
        float: :math:`\eta_{\rm SGD}`.
    """
    return _rate(epoch, slow_start_phases(eta_base, epochs))


def gradual_warmup(epoch, eta_base, epochs=constants.EPOCHS, eta_start=constants.GOYAL_ETA_START):
    r"""Return the learning rate of Goyal et al. (sections 2.2 and 5.1; the steps are quoted in section A.2).

    Rises linearly, in every iteration, from :math:`\min(\eta_{\rm start}, \eta_{\rm base})` to
    :math:`\eta_{\rm base}` during 5 epochs of 90, and is divided by 10 at epochs 30, 60 and 80.

    Args:
        epoch (float): Epoch, fractional, from 0; the first epoch of a phase belongs to it.
        eta_base (float): :math:`\eta_{\rm base}`.
        epochs (int): Length of the training; warm-up and phases scale with it.
        eta_start (float): Learning rate that the warm-up starts from.

    Returns:
        float: :math:`\eta_{\rm SGD}`.
    """
    return _rate(epoch, gradual_warmup_phases(eta_base, epochs, eta_start))
