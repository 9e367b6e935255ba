"""Nothing is told or kept of iterations that went wrong, though a GPU's host learns late that they did."""

from chainer import training


class FiniteMeans(training.Extension):
    """Makes sure that all mean gradients so far were finite.

    Runs before validation, a row of the log and a checkpoint. On a GPU it waits; on a CPU the updater has
    done it already.
    """

    default_name = 'FiniteMeans'

    def __call__(self, trainer):
        trainer.updater.confirm()
