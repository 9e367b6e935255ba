"""How the runs are written up: ``README.md`` and its pictures, all of it computed from the results.

What is written by hand is ``remarks.md`` beside it: a part per heading (``summary``, ``sets``, the number of
a claim, ``open``). Its figures are computed too: ``{SET ARM MEASURE}`` is a mean and standard deviation over
the seeds, ``{SET ARM - ARM MEASURE}`` a mean paired difference.
"""

import collections
import re

from lib import schedules
from lib.errors import UserError

from jobs.ablation import pictures
from jobs.ablation.claims import CLAIMS, MEASURES, Choice
from jobs.ablation.sets import SETS
from jobs.ablation.verdicts import HELD, NOT_RUN, RULES, differences, interval, judge, value
from jobs.tables import VAL_LOSS, duration, markdown, spread

SIGNS = {'higher': '>', 'lower': '<', 'equal': '≈', 'holds': '≥'}


def write(results):
    """Write the report and its pictures into the directory of the results.

    Raises:
        UserError: If there are no runs, or a remark asks for a figure that cannot be.
    """
    if not any(results.runs(name) for name in SETS):
        raise UserError(f'{results.directory}: no runs there; give TRAIN VAL')
    evidence = {name: results.by_arm(declared) for name, declared in SETS.items()}
    drawn = pictures.draw(evidence, results.directory)
    (results.directory / 'README.md').write_text(compose(results, evidence, drawn), encoding='utf-8')


def compose(results, evidence, drawn):
    """The report as Markdown.

    Args:
        results (Results): The runs.
        evidence (dict): By set, the runs that count: by arm, by seed.
        drawn (set of str): Names of the pictures that there are.
    """
    remarks = read_remarks(results.directory / 'remarks.md', evidence)

    def picture(name, title):
        return f'![{title}]({name})' if name in drawn else ''

    parts = [
        '# The paper\'s claims, tested at small sizes',
        'Written by `python -m jobs.ablation --report` from `results/`; `python -m jobs.ablation TRAIN VAL '
        '--set SET` makes what is missing.', remarks['summary'],
        '## Verdicts', verdict_table(evidence),
        'The main comparison of each claim; in brackets how many seeds, and how many of its comparisons '
        f'held. {RULES} Margins: {describe_margins()}. They and the comparisons are declared in '
        '`jobs/ablation/sets.py`, before the runs that count. Each verdict is given at 95 % one-sided, so of '
        'twenty one errs by chance. The intervals are about seeds: all runs of a set are validated on the '
        'same images.',
        '## Sets', set_table(evidence), remarks['sets'],
        picture('transition.png', 'Training loss by iteration around the transition from RMSprop to SGD')]
    for claim in CLAIMS:
        parts += [f'<a id="claim-{claim.number}"></a>\n\n## {claim.number}. {claim.title}', claim.paper,
                  remarks[str(claim.number)],
                  picture(f'claim{claim.number}.png', f'Claim {claim.number}: {claim.title}'),
                  comparison_table(evidence, claim)]
    parts += ['## What these runs cannot tell' if remarks['open'] else '', remarks['open'],
              '## All arms', 'Mean ± sample standard deviation over the seeds.']
    for name, by_arm in evidence.items():
        if any(by_arm.values()):
            parts += [f'### {name}: {SETS[name].what}', f'All arms: `{SETS[name].options}`.',
                      arm_table(SETS[name], by_arm), *choices(results, SETS[name])]
    parts += describe_verified(results)
    return '\n\n'.join(part for part in parts if part) + '\n'


# --- Numbers as text

def plus_minus(values, digits=3):
    mean, deviation = spread(values)
    return f'{mean:.{digits}f}' + (f' ± {deviation:.{digits}f}' if deviation is not None else '')


def describe_interval(found):
    mean, low, high = interval(found)
    return [f'{mean:+.3f}', f'{low:+.3f} to {high:+.3f}' if len(found) > 1 else 'one seed']


def describe_margins():
    texts = {', '.join(f'{margin:g} ({MEASURES[measure]})' for measure, margin in declared.margins.items())
             for declared in SETS.values()}
    return '; '.join(sorted(texts))


def describe_comparison(comparison):
    return f'`{comparison.arm}` {SIGNS[comparison.expected]} `{comparison.reference}`: ' \
           f'{MEASURES[comparison.measure]}'


def eta_scale(run):
    """The run's factor on the linear rule's rate."""
    return run['plan']['eta_base'] / schedules.base_learning_rate(run['plan']['total_batch'])


# --- Tables

def verdict_table(evidence):
    """The verdict on every claim's main comparison in every set, with n, as Markdown."""
    rows = []
    for claim in CLAIMS:
        row = [f'[{claim.number}. {claim.title}](#claim-{claim.number})']
        for name, by_arm in evidence.items():
            declared = SETS[name]
            comparisons = declared.comparisons.get(claim.number, ())
            verdicts = [judge(declared, by_arm, comparison) for comparison in comparisons]
            if not verdicts or set(verdicts) == {NOT_RUN}:
                row.append(NOT_RUN)
                continue
            n = len(differences(by_arm, comparisons[0]))
            absent = verdicts.count(NOT_RUN)
            row.append(f'**{verdicts[0]}** (n = {n}; {verdicts.count(HELD)} of {len(verdicts) - absent} held'
                       + f', {absent} not run' * (absent > 0) + ')')
        rows.append(row)
    return markdown(['Claim', *(f'`{name}`' for name in evidence)], rows)


def comparison_table(evidence, claim):
    """What each comparison of a claim found in every set, as Markdown; the main one first, in bold."""
    rows, absent = [], []
    for name, by_arm in evidence.items():
        declared = SETS[name]
        comparisons = declared.comparisons.get(claim.number, ())
        if not any(differences(by_arm, comparison) for comparison in comparisons):
            absent.append(f'`{name}`')
            continue
        for comparison in comparisons:
            found = differences(by_arm, comparison)
            means = [plus_minus([value(run, comparison.measure) for run in by_arm[arm].values()])
                     if by_arm[arm] else '' for arm in (comparison.arm, comparison.reference)]
            numbers = describe_interval(found) if found else ['', '']
            answer = judge(declared, by_arm, comparison)
            small = answer == HELD and comparison.expected in ('higher', 'lower') \
                and abs(interval(found)[0]) < declared.margins[comparison.measure]
            text = describe_comparison(comparison)
            rows.append([f'`{name}`', f'**{text}**' if comparison is comparisons[0] else text, *means,
                         len(found), *numbers, f'**{answer}**' + ', by less than the margin' * small])
    if absent:
        rows.append([', '.join(absent), *[''] * 6, NOT_RUN])
    return markdown(['Set', 'Expected', 'First', 'Second', 'n', 'Difference', '90 % interval', 'Verdict'],
                    rows)


def set_table(evidence):
    """What the runs of each set share, as Markdown: a column a set."""
    columns = {name: describe_set([run for runs in by_arm.values() for run in runs.values()])
               for name, by_arm in evidence.items()}
    titles = list(dict.fromkeys(title for column in columns.values() for title in column))
    rows = [['What', *(SETS[name].what for name in columns)]]
    rows += [[title, *(column.get(title, '') for column in columns.values())] for title in titles]
    return markdown(['', *(f'`{name}`' for name in columns)], rows)


def describe_set(runs):
    """Title and text of what runs share, of the largest minibatch where that differs."""
    if not runs:
        return {'Runs that count': NOT_RUN}
    plan = max((run['plan'] for run in runs), key=lambda plan: plan['total_batch'])
    per_epoch = plan['n_train'] / plan['total_batch']
    seeds = collections.Counter(run['seed'] for run in runs)
    versions = {', '.join(f'{name} {text}' for name, text in run['versions'].items() if text) for run in runs}
    etas = {(run['plan']['total_batch'], run['plan']['eta_base']) for run in runs}
    times = [run['seconds'] or 0 for run in runs]
    return {
        'Images': f'{plan["n_train"]:,} to train, {plan["n_val"]:,} to validate, {plan["n_class"]} classes',
        'Fingerprint': f'`{plan["data"]}`',
        'Iterations per epoch': f'{per_epoch:.1f} (the paper: 39.1)',
        'Iterations': f'{plan["iterations"]:,} (the paper: 3,519)',
        'β_center at iteration': f'{plan["beta_center"] * per_epoch:.1f} (the paper: 391)',
        'η_base': ', '.join(f'{eta:g} at {batch:,}' for batch, eta in sorted(etas)),
        'Runs that count': f'{len(runs)}: ' + ', '.join(f'{count} of seed {seed}'
                                                        for seed, count in sorted(seeds.items())),
        'Time of a run, one thread, the longer beside other work':
            f'{duration(min(times))} to {duration(max(times))}',
        'Hardware': '; '.join(sorted({run['hardware'] for run in runs})),
        'Commit': ', '.join(sorted({run['commit'] for run in runs})),
        'Versions': '; '.join(sorted(versions))}


def arm_table(declared, by_arm):
    """All arms of a set, whether run or not, as Markdown."""
    curves = all(run['loss'] for runs in by_arm.values() for run in runs.values())
    first = 'warmup' if curves else 'start'
    rows = []
    for name, arm in declared.arms.items():
        runs = list(by_arm[name].values())
        if not runs:
            rows.append([f'`{name}`', arm.what, '', 0, NOT_RUN, '', '', '', ''])
            continue
        diverged = sum(run['diverged'] is not None for run in runs)
        last = [run['log'][VAL_LOSS][-1] for run in runs if run['log'][VAL_LOSS]]
        rows.append([
            f'`{name}`', arm.what + f'; diverged: {diverged}' * (diverged > 0),
            f'`--eta-scale {eta_scale(runs[0]):g} '
            f'{arm.options}`', len(runs),
            plus_minus([value(run, first) for run in runs]), plus_minus([value(run, 'loss') for run in runs]),
            plus_minus(last) if last else '', plus_minus([value(run, 'mean') for run in runs]),
            '**' + plus_minus([value(run, 'final') for run in runs]) + '**'])
    return markdown(['Arm', 'What', 'Options', 'n', MEASURES[first].capitalize(), 'Training loss, last epoch',
                     'Validation loss, end', 'Accuracy, mean of epochs', 'Accuracy, end'], rows)


def choices(results, declared):
    """A sentence for every arm whose rate was chosen, with what it was chosen by."""
    for arm in declared.arms.values():
        if not isinstance(arm.eta_scale, Choice):
            continue
        choice, chosen = arm.eta_scale, results.eta_scale(declared, arm)
        found = results.candidates(declared, choice)
        listed = ', '.join(f'{eta_scale:g}: {found[eta_scale]:.3f}' if eta_scale in found else
                           f'{eta_scale:g}: {NOT_RUN}' for eta_scale in choice.eta_scales)
        where = f' in `{choice.of}`' if choice.of else ''
        yield (f'`--eta-scale` of `{arm.name}`: the one of highest accuracy at the end, of equals the lowest,'
               f' with seed {choice.seed}{where}, which does not count ({listed}): '
               + (f'**{chosen:g}**.' if chosen else 'not chosen yet.'))


def describe_verified(results):
    """What was found when runs were made again."""
    lines = []
    for name in SETS:
        for run in results.runs(name):
            again = run['again']
            if again:
                answer = f'differs in {", ".join(again["different"])}' if again['different'] else \
                    'the same to the last digit'
                lines.append(f'- `{name}`, `{run["arm"]}`, seed {run["seed"]}: {answer} '
                             f'({again["hardware"]}, commit {again["commit"]})')
    return ['## Run again', 'Curves of losses and accuracies against those of a second run of the same '
            'command (`--verify`):', '\n'.join(lines)] if lines else []


# --- Remarks

def read_remarks(path, evidence):
    """Remarks by heading, their figures filled in; none is empty.

    Raises:
        UserError: If a figure is asked for of a set, arm or measure that does not exist.
    """
    found = collections.defaultdict(str)
    if path.exists():
        text = path.read_text(encoding='utf-8')
        pieces = re.split(r'^## (.+)\n', text, flags=re.MULTILINE)
        found.update(zip(pieces[1::2], (_fill(piece, path, evidence).strip() for piece in pieces[2::2])))
    return found


def _fill(text, path, evidence):
    def figure(match):
        name, arm, reference, measure = match.groups()
        by_arm = evidence.get(name, {})
        if arm not in by_arm or reference not in (None, *by_arm) or measure not in MEASURES:
            raise UserError(f'{path}: {match.group()} is no figure; expected {{SET ARM MEASURE}} or '
                            '{SET ARM - ARM MEASURE}')
        values = {seed: value(run, measure) for seed, run in by_arm[arm].items()}
        if reference is None:
            return plus_minus(list(values.values())) if values else NOT_RUN
        others = by_arm[reference]
        found = [values[seed] - value(others[seed], measure) for seed in values if seed in others]
        return f'{spread(found)[0]:+.3f}' if found else NOT_RUN
    return re.sub(r'\{(\S+) (\S+)(?: - (\S+))? (\S+)\}', figure, text)
