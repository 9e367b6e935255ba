"""The log as TensorBoard event files, through tensorboardX."""

from lib.errors import UserError

from chainer import training


class TensorBoard(training.Extension):
    """Writes every number of a new row of the log under its key. For rank 0.

    Raises:
        UserError: If tensorboardX is not installed.
    """

    default_name = 'TensorBoard'

    def __init__(self, out):
        try:
            import tensorboardX
        except ImportError:
            raise UserError('--tensorboard: tensorboardX is not installed; install the extra "tensorboard", '
                            'or leave the option out') from None
        self._writer = tensorboardX.SummaryWriter(out)

    def __call__(self, trainer):
        row = trainer.get_extension('LogReport').log[-1]
        for key, value in row.items():
            if key != 'iteration':
                self._writer.add_scalar(key, value, row['iteration'])

    def finalize(self):
        self._writer.close()
