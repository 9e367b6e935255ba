"""Pictures of the report: a claim's curves, and the loss around the transition; a column a set."""

import os
import shlex

from lib import schedules
from lib.run import arguments

from jobs.ablation.claims import CLAIMS
from jobs.ablation.sets import SETS
from jobs.tables import LOSS, VAL_ACCURACY, spread

STYLES = ('-', '--', '-.', ':')


def draw(evidence, directory):
    """Draw what there are runs for; return the names of the pictures."""
    wanted = {f'claim{claim.number}.png': (draw_claim, claim, {
        name: by_arm for name, by_arm in evidence.items()
        if any(by_arm[arm] for arm in SETS[name].claim_arms(claim.number))}) for claim in CLAIMS}
    wanted['transition.png'] = draw_transition, None, {
        name: by_arm for name, by_arm in evidence.items()
        if any(by_arm[arm] for arm in SETS[name].transition)}
    for name, (function, claim, sets) in wanted.items():
        if sets:
            _save(function(claim, sets), directory / name)
    return {name for name, (_, _, sets) in wanted.items() if sets}


def _figure(columns, ratios):
    """A picture of ``columns`` sets, with panels below each other of these heights."""
    from matplotlib import figure
    picture = figure.Figure(figsize=(max(4.0 * columns, 7.0), 6.2), dpi=110, layout='constrained')
    panels = picture.subplots(len(ratios), columns, squeeze=False, sharex='col', height_ratios=ratios)
    return picture, panels.T


def draw_claim(claim, sets):
    """Training loss and validation accuracy over the epochs of the arms of a claim."""
    picture, columns = _figure(len(sets), (1, 1))
    drawn = []
    for panels, (name, by_arm) in zip(columns, sets.items()):
        for arm in [arm for arm in SETS[name].claim_arms(claim.number) if by_arm[arm]]:
            drawn.append(arm)
            for axes, key in zip(panels, (LOSS, VAL_ACCURACY)):
                curves = [run['log'] for run in by_arm[arm].values()]
                length = min(len(log[key]) for log in curves)
                _band(axes, curves[0]['epoch'][:length],
                      [[log[key][k] for log in curves] for k in range(length)], _style(arm), marker='.')
        panels[0].set_title(f'{name}\n{SETS[name].what}', fontsize=9)
        panels[1].set_xlabel('Epoch')
    columns[0][0].set_ylabel('Training loss')
    columns[0][1].set_ylabel('Validation accuracy')
    _legend(picture, drawn)
    return picture


def draw_transition(claim, sets):
    """Training loss by iteration around the transition from RMSprop to SGD, and the share of SGD (A.1)."""
    picture, columns = _figure(len(sets), (3, 1))
    drawn = []
    for panels, (name, by_arm) in zip(columns, sets.items()):
        for arm in [arm for arm in SETS[name].transition if by_arm[arm]]:
            drawn.append(arm)
            runs = list(by_arm[arm].values())
            plan, every = runs[0]['plan'], runs[0]['loss']['every']
            per_epoch = plan['n_train'] / plan['total_batch']
            center, period = plan['beta_center'], plan['beta_period']
            last = min((center + 1.5 * period) * per_epoch, plan['iterations'])
            means = [run['loss']['means'] for run in runs]
            length = min(int(last / every), *map(len, means))
            style = _style(arm)
            _band(panels[0], [every * (k + 0.5) for k in range(length)],
                  [[curve[k] for curve in means] for k in range(length)], style)
            options = arguments.parse(shlex.split(runs[0]['command']))
            form = arguments.chosen_recipe(options).transition
            iterations = [last * k / 500 for k in range(501)]
            panels[1].plot(iterations, [schedules.alpha_sgd(each / per_epoch, center, period, form)
                                        for each in iterations], **style)
            for axes in panels:
                axes.axvline(center * per_epoch, color='0.6', linestyle=':', linewidth=1, zorder=0)
        panels[0].set_title(f'{name}\n{SETS[name].what}', fontsize=9)
        panels[1].set_xlabel('Iteration')
    columns[0][0].set_ylabel('Training loss')
    columns[0][1].set_ylabel(r'$\alpha_\mathrm{SGD}$')
    _legend(picture, drawn)
    return picture


def _style(arm):
    """One color for an arm in all pictures; equal curves show beside each other, or between dashes."""
    first = sorted(SETS.values(), key=lambda declared: not declared.transition)
    k = list(dict.fromkeys(name for declared in first for name in declared.arms)).index(arm)
    return {'color': f'C{k % 10}', 'linestyle': STYLES[(k + k // 10) % len(STYLES)],
            'linewidth': 1.5 if k else 2.8}  # the first is what others are compared with


def _band(axes, x, values, style, marker=None):
    """A line through the means over seeds, in a band of one standard deviation."""
    points = [(mean, deviation or 0) for mean, deviation in map(spread, values)]
    axes.plot(x, [mean for mean, _ in points], marker=marker, markersize=4, **style)
    axes.fill_between(x, [mean - deviation for mean, deviation in points],
                      [mean + deviation for mean, deviation in points], color=style['color'], alpha=0.15,
                      linewidth=0)
    axes.grid(alpha=0.3)


def _legend(picture, arms):
    from matplotlib.lines import Line2D
    handles = [Line2D([], [], label=arm, **_style(arm)) for arm in dict.fromkeys(arms)]
    columns = min(len(handles), int(picture.get_figwidth() / 1.9))
    picture.legend(handles=handles, loc='outside lower center', ncol=columns, frameon=False)


def _save(picture, path):
    temporary = f'{path}.tmp'
    picture.savefig(temporary, format='png')
    os.replace(temporary, path)
