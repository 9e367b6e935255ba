"""Tells the watchdog that the job moves."""

from chainer import training


class Heartbeat(training.Extension):
    """Beats after every iteration.

    Args:
        watchdog (lib.run.watchdog.StallWatchdog): Ends the job when the beats stop.
    """

    default_name = 'Heartbeat'

    def __init__(self, watchdog):
        self._watchdog = watchdog

    def __call__(self, trainer):
        self._watchdog.beat(trainer.updater.iteration)
