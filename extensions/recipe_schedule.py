"""Sets the learning rate and both alphas before every iteration (sections A.1 and A.2)."""

import chainer
from chainer import training


class RecipeSchedule(training.Extension):
    """Gives the optimizer the hyperparameters of the iteration to come.

    They follow from the fractional epoch at which that iteration trains. Also sets those of the first
    iteration, and of the first after a resume. Reports the values with which the finished one was made.
    """

    trigger = (1, 'iteration')
    default_name = 'RecipeSchedule'

    def __init__(self, plan, optimizer):
        self._plan = plan
        self._optimizer = optimizer

    def initialize(self, trainer):
        self._set(trainer.updater.iteration)

    def __call__(self, trainer):
        optimizer = self._optimizer
        chainer.report({'lr': optimizer.lr, 'alpha_sgd': optimizer.alpha_sgd,
                        'alpha_rmsprop': optimizer.alpha_rmsprop})
        self._set(trainer.updater.iteration)

    def _set(self, iteration):
        values = self._plan.hyperparameters(iteration)
        self._optimizer.lr = values.lr
        self._optimizer.alpha_sgd = values.alpha_sgd
        self._optimizer.alpha_rmsprop = values.alpha_rmsprop
