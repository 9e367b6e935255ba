"""Pictures of a run: loss.png, accuracy.png and schedule.png."""

import os
import time

from lib import files

import numpy as np
from chainer import training

_SECONDS_BETWEEN = 60  # drawing takes about a second of rank 0, for which all others wait


class Plots(training.Extension):
    """Draws loss and accuracy from the log as it grows, and once, with the first of them, the schedule.

    For rank 0. Not before the first iteration, for which all other ranks would wait.
    """

    default_name = 'Plots'

    def __init__(self, plan, out):
        self._plan = plan
        self._out = out
        self._drawn_at = -_SECONDS_BETWEEN
        self._schedule_is_drawn = False

    def __call__(self, trainer):
        last = trainer.updater.iteration >= self._plan.iterations
        if last or time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN:
            self._drawn_at = time.monotonic()
            log = trainer.get_extension('LogReport').log
            for name, label in (('loss', 'Loss'), ('accuracy', 'Top-1 accuracy')):
                self._save(f'{name}.png', lambda figure: _draw_curves(figure, log, name, label))  # noqa: B023
            self._save_schedule()

    def finalize(self):
        self._save_schedule()  # of a run that was stopped in its first epoch

    def _save_schedule(self):
        if not self._schedule_is_drawn:
            self._schedule_is_drawn = True
            self._save('schedule.png', lambda figure: draw_schedule(figure, self._plan))

    def _save(self, name, draw):
        from matplotlib import figure  # takes half a second to import
        picture = figure.Figure(figsize=(6.4, 4.0), dpi=120, layout='constrained')
        draw(picture)
        files.try_to(files.write, os.path.join(self._out, name),
                      lambda file: picture.savefig(file, format='png'), 'wb')


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
