"""When things happen: functions of the iteration alone, so that all processes agree without asking."""

from lib import sharding


class EpochEnd:
    """True after an iteration that reaches or crosses a multiple of N images, and after the last."""

    def __init__(self, plan):
        self._plan = plan

    def __call__(self, trainer):
        plan, iteration = self._plan, trainer.updater.iteration
        return (sharding.ends_epoch(iteration, plan.n_train, plan.total_batch)
                or iteration == plan.iterations)


class CheckpointDue:
    """True at the end of an epoch, every ``interval`` iterations, and when the job is asked to stop."""

    def __init__(self, plan, interval=None):
        self._epoch_end = EpochEnd(plan)
        self._interval = interval

    def __call__(self, trainer):
        updater = trainer.updater
        return (self._epoch_end(trainer) or updater.stopping
                or (self._interval is not None and updater.iteration % self._interval == 0))


class RunEnd:
    """Stop trigger: true after the last iteration, or once the job is asked to stop."""

    def __init__(self, plan):
        self._plan = plan

    def __call__(self, trainer):
        return trainer.updater.stopping or trainer.updater.iteration >= self._plan.iterations

    def get_training_length(self):
        """Tell progress bars how long the training is."""
        return self._plan.iterations, 'iteration'
