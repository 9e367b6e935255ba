"""Compare runs with each other and with Table 1 of the paper.

    python jobs/report.py result/seed0 result/seed1 result/seed2 --out result/report

Prints, in Markdown, Table 1 with a row for these runs (mean and sample standard deviation over runs of the
same settings), and a table of the single runs. Draws ``loss.png``, ``accuracy.png`` and ``schedule.png``.
A run that is not finished takes part with what it has, is marked, and stays out of the means. Takes seconds.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import sys

from lib import constants, errors, files
from lib.errors import UserError
from lib.recipe import Recipe
from lib.run.arguments import OneLineParser

from jobs.tables import ACCURACY, LOSS, VAL_ACCURACY, VAL_LOSS, markdown, spread

LAST_EPOCHS = 5  # Goyal et al. report the median over so many

# What sets runs apart; runs that agree in all of it are repetitions.
SETTINGS = ('arch', 'insize', 'recipe', 'transition', 'schedule', 'bn_statistics', 'bn_variance', 'eta_scale',
            'epochs', 'n_train', 'n_val', 'data', 'workers', 'batch', 'total_batch', 'dtype',
            'allreduce_grad_dtype', 'loss_scale', 'jitter')

# What a recipe consists of besides its name.
RECIPE = ('transition', 'schedule', 'bn_statistics', 'bn_variance', 'epochs', 'eta_scale')


@dataclasses.dataclass
class Run:
    """One run: its directory, what it set out to do, and the rows of its log so far."""

    path: str
    plan: dict
    log: list

    @property
    def iteration(self):
        return self.log[-1]['iteration'] if self.log else 0

    @property
    def finished(self):
        return bool(self.log) and self.iteration >= self.plan['iterations']

    @property
    def seconds(self):
        return self.log[-1]['elapsed_time'] if self.log else None

    @property
    def accuracies(self):
        """Validation accuracies in the order of the epochs."""
        return [row[VAL_ACCURACY] for row in self.log if VAL_ACCURACY in row]

    @property
    def settings(self):
        return tuple(str(self.plan.get(name)) for name in SETTINGS)


def read_run(path):
    """Read a run's ``plan.json`` and ``log``; a run without a row yet has an empty log.

    Raises:
        UserError: If ``path`` is no directory of a run.
    """
    directory = pathlib.Path(path)
    try:
        plan = _read_json(directory / 'plan.json')
        log = _read_json(directory / 'log') if (directory / 'log').exists() else []
        missing = {'iterations', 'total_batch', 'recipe', *RECIPE} - set(plan)
        if missing:
            raise ValueError(f'plan.json lacks {", ".join(sorted(missing))}')
        for row in log:
            row['epoch'], row['iteration'], row['elapsed_time']  # noqa: B018  (they have to be there)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        raise UserError(f'{path}: not the directory of a run ({reason}); give what train_imagenet.py had as '
                        '--out') from None
    return Run(str(path), plan, log)


def _read_json(path):
    with files.open_regular(path) as file:
        return json.load(file)


def median_of_last(accuracies, count=LAST_EPOCHS):
    """Goyal's measure: the median of the last ``count`` validations of a run (fewer if it has fewer)."""
    return statistics.median(accuracies[-count:])


def percent(values):
    mean, deviation = spread(values)
    return f'{100 * mean:.2f} %' + (f' ± {100 * deviation:.2f}' if deviation is not None else '')


def duration(values):
    """Seconds, as a text in the unit that fits the mean."""
    mean, deviation = spread(values)
    unit, length = next(((unit, length) for unit, length in (('hr', 3600), ('min', 60))
                         if mean >= 2 * length), ('s', 1))
    plus_minus = f' ± {deviation / length:.1f}' if deviation is not None else ''
    return f'{mean / length:.1f}{plus_minus} {unit}'


def hardware(plan):
    """What the run ran on, as far as its plan tells."""
    if plan.get('hardware'):
        return str(plan['hardware'])
    software = plan.get('software')
    host = software.get('host') if isinstance(software, dict) else None
    return f'{plan.get("processes", "?")} processes' + (f', first on {host}' if host else '')


def software(plan):
    """Chainer and what is below it, as far as the plan tells."""
    found = plan.get('software')
    if not isinstance(found, dict):
        return str(found or '?')
    names = (('chainer', 'Chainer'), ('numpy', 'NumPy'), ('cupy', 'CuPy'), ('nccl', 'NCCL'))
    return ', '.join(f'{label} {found[name]}' for name, label in names if found.get(name)) or '?'


def repetitions(runs):
    """Runs by equal settings, in the order given: list of lists."""
    groups = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    return list(groups.values())


def table_1(groups):
    """Table 1 of the paper with a row per group of runs, as Markdown."""
    rows = []
    for team, machine, program, minibatch, time, accuracy in constants.TABLE_1:
        if minibatch == constants.PAPER_WORKERS * constants.BATCH:  # its own row: section 4 has more digits
            time += f' ({constants.PAPER_SECONDS} ± {constants.PAPER_SECONDS_STD} s)'
            accuracy = f'{100 * constants.PAPER_ACCURACY:.2f} % ± {100 * constants.PAPER_ACCURACY_STD:.2f}'
        else:
            accuracy = f'{100 * accuracy:.1f} %'
        rows.append([team, machine, program, f'{minibatch:,}', time, accuracy, ''])
    for group in groups:
        done = [run for run in group if run.finished]
        plan = (done or group)[0].plan
        name = f'{plan.get("arch", "?")}, {plan.get("recipe", "?")}, {plan.get("epochs", "?")} epochs'
        row = [f'{len(done)} runs here: {name}' if len(done) > 1 else f'run here: {name}',
               hardware(plan), software(plan), f'{plan["total_batch"]:,}']
        scored = [run for run in done if run.accuracies]
        if scored:
            row += [duration([run.seconds for run in done]), percent([run.accuracies[-1] for run in scored]),
                    percent([median_of_last(run.accuracies) for run in scored])]
        else:
            row += ['not finished', '', '']
        rows.append(row)
    return markdown(['Team', 'Hardware', 'Software', 'Minibatch size', 'Time', 'Accuracy',
                     f'Median of last {LAST_EPOCHS} epochs'], rows)


def single_runs(runs, names):
    """The runs one by one, as Markdown."""
    rows = []
    for run in runs:
        total, found, scores = run.plan['iterations'], run.accuracies, [''] * 3
        if found:
            scores = [percent([value]) for value in (found[-1], max(found), median_of_last(found))]
        state = 'finished' if run.finished else f'unfinished: {run.iteration:,} of {total:,} iterations'
        speeds = [row['images_per_sec'] for row in run.log if 'images_per_sec' in row]
        rows.append([names[run.path], run.plan.get('seed', '?'), state,
                     duration([run.seconds]) if run.log else '', *scores,
                     f'{statistics.fmean(speeds):,.0f}' if speeds else ''])
    return markdown(['Run', 'Seed', 'State', 'Time', 'Accuracy', 'Best',
                     f'Median of last {LAST_EPOCHS} epochs', 'images/s'], rows)


def remarks(groups, names):
    """What a reader of the tables has to know: list of str."""
    found = []
    for group in groups:
        label = ', '.join(names[run.path] for run in group)
        unfinished = [names[run.path] for run in group if not run.finished]
        if unfinished:
            found.append(f'{", ".join(unfinished)}: not finished (running, or stopped); not in the means.')
        seeds = [run.plan.get('seed') for run in group if run.finished]
        if len(set(seeds)) < len(seeds):
            found.append(f'{label}: runs with the same seed; their spread is not that of independent runs.')
        deviations = group[0].plan.get('deviations') or []
        if deviations:
            found.append('\n  - '.join([f'{label}: deviations from the paper\'s run:', *deviations]))
    return found


def short_names(paths):
    """The shortest endings of paths that tell them apart, on one line each: dict by path."""
    parts = {path: pathlib.Path(os.path.abspath(path)).parts for path in paths}
    for length in range(1, max(map(len, parts.values())) + 1):
        names = {path: '/'.join(part[-length:]) for path, part in parts.items()}
        if len(set(names.values())) == len(paths):
            break
    return {path: errors.printable(name) for path, name in names.items()}


def draw_curves(figure, runs, names, training, validation, label):
    """Training (thin) and validation (thick) values of every run over epochs."""
    axes = figure.subplots()
    handles = []
    for k, run in enumerate(runs):
        for key, style in ((training, {'linewidth': 1.0, 'linestyle': '--', 'alpha': 0.8}),
                           (validation, {'linewidth': 1.8, 'marker': '.'})):
            points = [(row['epoch'], row[key]) for row in run.log if key in row]
            axes.plot(*(zip(*points) if points else ([], [])), color=f'C{k % 10}', **style)
        handles += axes.plot([], [], color=f'C{k % 10}', linewidth=1.8,
                             label=names[run.path] + ('' if run.finished else ' (unfinished)'))
    handles += axes.plot([], [], color='0.4', linewidth=1.8, marker='.', label='validation')
    handles += axes.plot([], [], color='0.4', linewidth=1.0, linestyle='--', label='training')
    axes.set(xlabel='Epoch', ylabel=label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(handles=handles, loc='upper center', bbox_to_anchor=(0.5, -0.13), ncol=3, frameon=False)


def draw_schedule(figure, runs, names):
    """Learning rate and alpha_SGD that every run plans; of equal curves one shows inside the other."""
    above, below = figure.subplots(2, sharex=True)
    for k, run in enumerate(runs):
        recipe = Recipe(run.plan['recipe'], **{name: run.plan[name] for name in RECIPE})
        epochs = [recipe.epochs * step / 2000 for step in range(2000)]
        values = [recipe.hyperparameters(epoch, run.plan['total_batch']) for epoch in epochs]
        width = 1.5 + 2.0 * (len(runs) - 1 - k) / max(len(runs) - 1, 1)
        style = {'color': f'C{k % 10}', 'linewidth': width}
        above.plot(epochs, [value.lr for value in values], **style)
        below.plot(epochs, [value.alpha_sgd for value in values], label=names[run.path], **style)
    above.set(ylabel=r'Learning rate $\eta$', yscale='log')
    below.set(xlabel='Epoch', ylabel=r'$\alpha_\mathrm{SGD}$', ylim=(-0.03, None))
    below.set_xlim(left=0)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    below.legend(loc='upper center', bbox_to_anchor=(0.5, -0.26), ncol=3, frameon=False)


def legend_names(runs, names):
    """Names for a legend: the seeds, if they are all that sets the runs apart."""
    seeds = [run.plan.get('seed') for run in runs]
    if len(runs) > 1 and len({run.settings for run in runs}) == 1 and len(set(seeds)) == len(runs):
        return {run.path: f'seed {seed}' for run, seed in zip(runs, seeds)}
    return names


def draw(runs, names, out):
    """Draw the three pictures into ``out``."""
    from matplotlib import figure
    names = legend_names(runs, names)
    pictures = {
        'loss.png': lambda f: draw_curves(f, runs, names, LOSS, VAL_LOSS, 'Loss'),
        'accuracy.png': lambda f: draw_curves(f, runs, names, ACCURACY, VAL_ACCURACY, 'Top-1 accuracy'),
        'schedule.png': lambda f: draw_schedule(f, runs, names)}
    for name, fill in pictures.items():
        picture = figure.Figure(figsize=(7.0, 4.8), dpi=150, layout='constrained')
        fill(picture)
        picture.savefig(os.path.join(out, name))


def main(argv=None):
    parser = OneLineParser(prog='report.py', allow_abbrev=False,
                     description='Compare runs with each other and with Table 1 of the paper.')
    parser.add_argument('runs', nargs='+', metavar='RUN', help='what train_imagenet.py had as --out')
    parser.add_argument('--out', default='result/report', help='where the pictures go (result/report)')
    args = parser.parse_args(argv)
    try:
        runs = [read_run(path) for path in dict.fromkeys(args.runs)]
        try:
            os.makedirs(args.out, exist_ok=True)
        except OSError as error:
            raise UserError(f'--out {args.out}: cannot be made ({error.strerror}); choose another') from None
    except UserError as error:
        errors.say_line(f'report.py: {error}')
        return errors.EXIT_USER_ERROR
    names, groups = short_names([run.path for run in runs]), repetitions(runs)
    errors.say('\n\n'.join([table_1(groups), single_runs(runs, names)]), sys.stdout)
    notes = remarks(groups, names)
    if notes:
        errors.say('\n' + '\n'.join(f'- {note}' for note in notes), sys.stdout)
    draw(runs, names, args.out)
    errors.say(f'\nloss.png, accuracy.png and schedule.png are in {errors.printable(args.out)}')
    return errors.EXIT_FINISHED


if __name__ == '__main__':
    sys.exit(main())
