"""The two published recipes, and the hyperparameters of an iteration under them.

A recipe is three choices (transition, schedule, batch normalization statistics) over the constants of
``lib.constants``; each can be exchanged by itself for comparisons. Everything counted in epochs scales with
the length of the training, E/90.
"""

import collections
import dataclasses

from lib import constants, schedules

TRANSITIONS = ('continuous', 'printed', 'linear', 'sigmoid', 'sudden', 'none')
SCHEDULES = ('slow-start', 'goyal')
BN_STATISTICS = ('last', 'last-local', 'moving')
BN_VARIANCES = ('mean', 'pooled')

Hyperparameters = collections.namedtuple('Hyperparameters', 'lr alpha_sgd alpha_rmsprop')


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the training does, apart from its size.

    Attributes:
        name (str): ``paper`` or ``goyal``: the recipe that it started from.
        transition (str): From RMSprop to SGD (section A.1); ``none`` is momentum SGD from the start.
        schedule (str): Learning rate schedule (section A.2).
        bn_statistics (str): Statistics that validation normalizes with (section 2).
        bn_variance (str): How variances are averaged over workers.
        epochs (int or float): Length E of the training.
        eta_scale (float): Factor on eta_base, for comparisons.
    """

    name: str
    transition: str
    schedule: str
    bn_statistics: str
    bn_variance: str = 'mean'
    epochs: float = constants.EPOCHS
    eta_scale: float = 1.0

    @property
    def epoch_scale(self) -> float:
        """E/90, by which everything counted in epochs scales."""
        return self.epochs / constants.EPOCHS

    @property
    def beta_center(self) -> float:
        return constants.BETA_CENTER * self.epoch_scale

    @property
    def beta_period(self) -> float:
        return constants.BETA_PERIOD * self.epoch_scale

    @property
    def bn_decay(self) -> float:
        """Decay of the running statistics: 0 leaves those of the last minibatch."""
        return constants.BN_DECAY if self.bn_statistics == 'moving' else 0.0

    def eta_base(self, total_batch: int) -> float:
        """Return the initial learning rate under the linear rule (section A.2), times ``eta_scale``."""
        return schedules.base_learning_rate(total_batch) * self.eta_scale

    def phases(self, total_batch: int) -> list:
        """Return the learning rate per phase, as :func:`lib.schedules.gradual_warmup_phases` lists it."""
        phases = {'slow-start': schedules.slow_start_phases, 'goyal': schedules.gradual_warmup_phases}
        return phases[self.schedule](self.eta_base(total_batch), self.epochs)

    def hyperparameters(self, epoch: float, total_batch: int) -> Hyperparameters:
        """Return the hyperparameters of the iteration that begins at the fractional ``epoch``.

        Returns:
            Hyperparameters: ``lr`` (eta = eta_SGD), ``alpha_sgd`` and ``alpha_rmsprop``, Python floats.
        """
        eta_base = self.eta_base(total_batch)
        if self.schedule == 'slow-start':
            eta_sgd = schedules.slow_start(epoch, eta_base, self.epochs)
        else:
            eta_sgd = schedules.gradual_warmup(epoch, eta_base, self.epochs)
        alpha_sgd = schedules.alpha_sgd(epoch, self.beta_center, self.beta_period, self.transition)
        alpha_rmsprop = schedules.alpha_rmsprop(alpha_sgd, constants.ETA_RMSPROP, eta_sgd)
        return Hyperparameters(eta_sgd, alpha_sgd, alpha_rmsprop)


PUBLISHED = {
    'paper': Recipe('paper', transition='continuous', schedule='slow-start', bn_statistics='last'),
    'goyal': Recipe('goyal', transition='none', schedule='goyal', bn_statistics='moving'),
}
