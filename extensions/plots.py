"""Pictures of a run: loss.png, accuracy.png and schedule.png."""

import concurrent.futures
import os
import time

from lib import errors, files

import numpy as np
from chainer import training

_SECONDS_BETWEEN = 60  # drawing takes a second of a core the first time, and a third of one later


class Plots(training.Extension):
    """Draws loss and accuracy from the log as it grows, and once, with the first of them, the schedule.

    For rank 0, in a thread of its own, for which no rank waits before the training ends. Not before the first
    iteration, which all are waiting for. A picture that cannot be drawn is said, and is not worth a run.
    """

    default_name = 'Plots'

    def __init__(self, plan, out):
        self._plan = plan
        self._out = out
        self._drawn_at = -_SECONDS_BETWEEN
        self._schedule_is_drawn = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, 'pictures')
        self._drawing = None

    def __call__(self, trainer):
        last = trainer.updater.iteration >= self._plan.iterations
        if last or time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN:
            self._drawn_at = time.monotonic()
            self._finish()
            self._drawing = self._thread.submit(self._draw, list(trainer.get_extension('LogReport').log))

    def finalize(self):
        self._finish()
        self._save_schedule()  # of a run that was stopped in its first epoch
        self._thread.shutdown()

    def _finish(self):
        """Wait for what is being drawn."""
        if self._drawing:
            self._drawing.result()

    def _draw(self, log):
        for name, label in (('loss', 'Loss'), ('accuracy', 'Top-1 accuracy')):
            self._save(f'{name}.png', lambda figure: _draw_curves(figure, log, name, label))  # noqa: B023
        self._save_schedule()

    def _save_schedule(self):
        if not self._schedule_is_drawn:
            self._schedule_is_drawn = True
            self._save('schedule.png', lambda figure: draw_schedule(figure, self._plan))

    def _save(self, name, draw):
        path = os.path.join(self._out, name)
        try:
            from matplotlib import figure  # takes half a second to import
            picture = figure.Figure(figsize=(6.4, 4.0), dpi=120, layout='constrained')
            draw(picture)
            files.write(path, lambda file: picture.savefig(file, format='png'), 'wb')
        except Exception as error:  # of a library; checkpoints are under way
            errors.say_line(f'{path} was not written ({type(error).__name__}: {error}); training goes on')


def _draw_curves(figure, log, name, label):
    axes = figure.subplots()
    for key, legend in ((f'main/{name}', 'training'), (f'validation/main/{name}', 'validation')):
        points = [(row['epoch'], row[key]) for row in log if key in row]
        if points:
            axes.plot(*zip(*points), marker='.', label=legend)
            axes.legend()
    axes.set(xlabel='Epoch', ylabel=label)
    axes.grid(alpha=0.3)


def draw_schedule(figure, plan):
    """Draw the learning rate, and the weight of each term, over the epochs of a plan."""
    iterations = np.unique(np.linspace(0, plan.iterations - 1, 2000).astype(int)).tolist()
    epochs = [plan.epoch_at(iteration) for iteration in iterations]
    values = [plan.hyperparameters(iteration) for iteration in iterations]
    above, below = figure.subplots(2, sharex=True)
    above.plot(epochs, [value.lr for value in values], drawstyle='steps-post')
    above.set(ylabel='Learning rate η', yscale='log')
    below.plot(epochs, [value.alpha_sgd for value in values], label=r'$\alpha_\mathrm{SGD}$')
    largest = max(value.alpha_rmsprop for value in values)
    if largest > 0:
        below.plot(epochs, [value.alpha_rmsprop / largest for value in values],
                   label=rf'$\alpha_\mathrm{{RMSprop}}$ / {largest:.3g}')
    below.set(xlabel='Epoch', ylabel='Weight of each term')
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
