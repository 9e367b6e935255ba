"""The paper's claims, tested one by one at a size that fits a small machine.

    python jobs/ablation.py TRAIN VAL              # runs what is missing, prints the table, writes the report
    python jobs/ablation.py TRAIN VAL --verify fp32 --seeds 0      # runs again, compares to the last digit
    python jobs/ablation.py --report               # table and report from the results alone
    python jobs/ablation.py --commands             # the command of every run

Every arm is the baseline with one part of the recipe exchanged, by options of ``train_imagenet.py``; the
claims say which arms are compared, on what. Seeds are outermost, so that an unfinished set is balanced.
``results.json`` is written after every run and holds all that the report needs. Interrupted, it continues: a
finished run is kept, one under way goes on from its last checkpoint.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import platform
import re
import shlex
import statistics
import subprocess
import sys
import threading

from lib import constants, errors
from lib.arguments import OneLineParser
from lib.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'jobs' / 'ablation' / 'results.json'
SEEDS = (0, 1, 2)

# What all arms share. ETA_SCALE raises the rate for all alike, as the report explains; two arms have the
# linear rule's own instead.
COMMON = '--arch resnet8 --insize 24 --batchsize 32 --epoch 5 --eta-scale {eta_scale} --loaderjob 0'
ETA_SCALE = 8
WORKERS = {'small': 2, 'medium': 8, 'extreme': 32}
EXTREME = f'--virtual-workers {WORKERS["extreme"]}'


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train: ``options`` are added to those that all arms share."""

    name: str
    what: str
    options: str
    eta_scale: int = ETA_SCALE


ARMS = (
    Arm('goyal-64', 'Goyal\'s recipe, minibatch 64', f'--recipe goyal --virtual-workers {WORKERS["small"]}'),
    Arm('goyal-256', 'Goyal\'s recipe, minibatch 256',
        f'--recipe goyal --virtual-workers {WORKERS["medium"]}'),
    Arm('goyal-1024', 'Goyal\'s recipe, minibatch 1,024', f'--recipe goyal {EXTREME}'),
    Arm('goyal-64-unscaled', 'Goyal\'s recipe, minibatch 64, η_base not raised',
        f'--recipe goyal --virtual-workers {WORKERS["small"]}', eta_scale=1),
    Arm('goyal-1024-unscaled', 'Goyal\'s recipe, minibatch 1,024, η_base not raised',
        f'--recipe goyal {EXTREME}', eta_scale=1),
    Arm('paper', 'the paper\'s recipe, minibatch 1,024', f'--recipe paper {EXTREME}'),
    Arm('no-warmup', 'paper without RMSprop', f'--recipe paper --transition none {EXTREME}'),
    Arm('sudden', 'paper, sudden switch', f'--recipe paper --transition sudden {EXTREME}'),
    Arm('linear', 'paper, linear transition', f'--recipe paper --transition linear {EXTREME}'),
    Arm('sigmoid', 'paper, sigmoid transition', f'--recipe paper --transition sigmoid {EXTREME}'),
    Arm('printed', 'paper, transition as printed', f'--recipe paper --transition printed {EXTREME}'),
    Arm('goyal-schedule', 'paper with Goyal\'s schedule', f'--recipe paper --schedule goyal {EXTREME}'),
    Arm('moving', 'paper, moving-average BN statistics', f'--recipe paper --bn-statistics moving {EXTREME}'),
    Arm('last-local', 'paper, last minibatch\'s own BN statistics',
        f'--recipe paper --bn-statistics last-local {EXTREME}'),
    Arm('fp32', 'paper, gradients in float32', f'--recipe paper --allreduce-grad-dtype float32 {EXTREME}'),
)

_ARM = {arm.name: arm for arm in ARMS}

LOSS, ACCURACY = 'main/loss', 'main/accuracy'
VAL_LOSS, VAL_ACCURACY = 'validation/main/loss', 'validation/main/accuracy'
KEPT = ('epoch', 'iteration', LOSS, ACCURACY, VAL_LOSS, VAL_ACCURACY, 'lr', 'alpha_sgd')

# How a number is taken from a run: its name in the report, and the smallest difference that matters. Three
# points are 30 of 1,000 validation images, about twice the binomial standard deviation of one accuracy.
MEASURES = {
    'final': ('accuracy at the end', 0.03),
    'mean': ('accuracy, mean over the epochs', 0.03),
    'start': ('training loss of the first epoch', 0.05),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A statement about two arms: the measure of ``arm`` is ... than that of ``reference``.

    ``expected``: ``higher`` or ``lower`` (at all), ``equal`` (the difference is below the margin) or
    ``holds`` (not lower by the margin or more).
    """

    arm: str
    expected: str
    reference: str
    measure: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the paper says, and the comparisons that test it: the first is the claim's main one."""

    number: int
    title: str
    paper: str
    comparisons: tuple


CLAIMS = (
    Claim(1, 'Large minibatches are difficult',
          'Under the linear rule with Goyal\'s recipe, the start and the final accuracy suffer as the '
          'minibatch grows ("the primary challenge is the optimization difficulty at the start of training", '
          'section 2).',
          (Comparison('goyal-1024', 'lower', 'goyal-64', 'final'),
           Comparison('goyal-1024', 'lower', 'goyal-256', 'final'),
           Comparison('goyal-256', 'lower', 'goyal-64', 'final'),
           Comparison('goyal-1024', 'higher', 'goyal-256', 'start'),
           Comparison('goyal-256', 'higher', 'goyal-64', 'start'),
           Comparison('goyal-1024-unscaled', 'lower', 'goyal-64-unscaled', 'final'))),
    Claim(2, 'RMSprop warm-up',
          'Starting with RMSprop overcomes the difficulty; a sudden switch to SGD "severely impacts '
          'training"; a linear transition has "a similar problem"; sigmoid performs similarly to the one '
          'like an ELU (A.1). That the printed formula and the continuous one differ little is not a claim '
          'of the paper, but the question that its misprint raises.',
          (Comparison('paper', 'higher', 'no-warmup', 'final'),
           Comparison('paper', 'lower', 'no-warmup', 'start'),
           Comparison('paper', 'higher', 'sudden', 'final'),
           Comparison('paper', 'higher', 'linear', 'final'),
           Comparison('paper', 'equal', 'sigmoid', 'final'),
           Comparison('paper', 'equal', 'printed', 'final'))),
    Claim(3, 'Slow start',
          'A longer initial phase at a lower rate helps further over the difficulty at the start (section 2, '
          'A.2).',
          (Comparison('paper', 'higher', 'goyal-schedule', 'final'),
           Comparison('paper', 'lower', 'goyal-schedule', 'start'))),
    Claim(4, 'Batch normalization without moving averages',
          'With large minibatches moving averages become inaccurate; the last minibatch\'s statistics, '
          'averaged over the workers, are better (section 2).',
          (Comparison('paper', 'higher', 'moving', 'mean'),
           Comparison('paper', 'higher', 'moving', 'final'),
           Comparison('paper', 'higher', 'last-local', 'mean'),
           Comparison('paper', 'higher', 'last-local', 'final'))),
    Claim(5, 'Half-precision communication',
          'The effect of exchanging gradients in half precision on the final accuracy is "relatively small" '
          '(section 3).',
          (Comparison('paper', 'equal', 'fp32', 'final'),)),
    Claim(6, 'All of it together',
          'With all techniques the extreme minibatch reaches an accuracy comparable to that of small '
          'minibatches (section 4).',
          (Comparison('paper', 'holds', 'goyal-64', 'final'),
           Comparison('paper', 'higher', 'goyal-1024', 'final'))),
)

# Student's t, 95 % one-sided, by degrees of freedom.
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)

HELD, FAILED, OPEN = 'held', 'did not hold', 'this size cannot tell'


# --- What a run is, and what it says

def command(arm, seed):
    """The options of a run after ``TRAIN VAL``, as one shell line."""
    return f'{COMMON.format(eta_scale=arm.eta_scale)} {arm.options} --seed {seed}'


def shell_command(arm, seed):
    """What to type to repeat a run."""
    return (f'OPENBLAS_NUM_THREADS=1 python train_imagenet.py TRAIN VAL {command(arm, seed)} '
            f'--out ablation-runs/{arm.name}-{seed}')


def value(run, measure):
    """A number of one run, by the name of its measure.

    A run that diverged ends at chance, and its first epoch's loss is that of guessing, if it has none.
    """
    curve = run['curves']
    chance, diverged = 1 / run['n_class'], run['diverged'] is not None
    if measure == 'final':
        return chance if diverged else curve[VAL_ACCURACY][-1]
    if measure == 'mean':
        values = curve[VAL_ACCURACY]
        missing = math.ceil(run['n_epochs']) - len(values) if diverged else 0
        return statistics.fmean(values + [chance] * missing)
    if measure == 'start':
        return curve[LOSS][0] if curve[LOSS] else math.log(run['n_class'])
    raise ValueError(f'no measure {measure!r}: choose from {", ".join(MEASURES)}')


def spread(values):
    """Mean, and sample standard deviation (0 of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def difference(runs, comparison):
    """Differences arm - reference, seed by seed: a seed means the same weights, order and augmentation.

    Returns:
        list of float: One per seed that both arms have, in the order of the seeds.
    """
    by_seed = [{run['seed']: value(run, comparison.measure) for run in runs if run['arm'] == name}
               for name in (comparison.arm, comparison.reference)]
    return [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(set(by_seed[0]) & set(by_seed[1]))]


def interval(differences):
    """Mean of paired differences and its 90 % confidence interval by Student's t.

    Returns:
        tuple of float: Mean, lower and upper end; the ends are infinite for a single difference.
    """
    mean, deviation = spread(differences)
    n = len(differences)
    half = T_95[n - 2] * deviation / math.sqrt(n) if n > 1 else math.inf
    return mean, mean - half, mean + half


def verdict(differences, expected, margin):
    """Whether differences arm - reference bear out what was expected, as one of three answers.

    Each answer is given at 95 % confidence, one-sided: ``higher`` held if the interval is above 0, and did
    not hold if it is below ``margin``; ``equal`` held if it is inside +-margin, and did not hold if it is
    outside; ``holds`` held if it is above -margin, and did not hold if it is below. All else is open.
    """
    if not differences:
        return OPEN
    _, low, high = interval(differences)
    if expected == 'lower':
        low, high, expected = -high, -low, 'higher'
    held, failed = {
        'higher': (low > 0, high < margin),
        'equal': (-margin < low and high < margin, high < -margin or low > margin),
        'holds': (low > -margin, high < -margin),
    }[expected]
    return HELD if held else FAILED if failed else OPEN


def judge(runs, comparison):
    """The verdict on a comparison by the runs there are."""
    return verdict(difference(runs, comparison), comparison.expected, MEASURES[comparison.measure][1])


# --- Running

def machine():
    """The processor, as Linux names it."""
    try:
        found = re.search(r'^model name\s*:\s*(.+)$', pathlib.Path('/proc/cpuinfo').read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.machine()


def run_once(arm, seed, train, val, out):
    """Train, or continue to, and return the run as the results hold it.

    Raises:
        UserError: If the training could not be run.
    """
    words = [sys.executable, 'train_imagenet.py', str(train), str(val), *shlex.split(command(arm, seed)),
             '--out', str(out), '--resume', 'auto']
    out.parent.mkdir(parents=True, exist_ok=True)
    output = pathlib.Path(f'{out}.txt')
    with open(output, 'w') as file:
        status = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
                                stderr=subprocess.STDOUT,
                                env={**os.environ, 'OPENBLAS_NUM_THREADS': '1'}).returncode
    text = output.read_text()
    diverged = re.search(r'^train_imagenet\.py: iteration (\d+): ', text, re.MULTILINE)
    finished = status == errors.EXIT_FINISHED and (out / errors.FINISHED_MARK).exists()
    if not finished and not (status == errors.EXIT_FAULT and diverged):
        last = (text.strip().splitlines() or ['no output'])[-1]
        raise UserError(f'{arm.name}, seed {seed}: status {status}, {last} (all of it in {output})')
    return read_run(arm, seed, out, int(diverged.group(1)) if status else None)


def read_run(arm, seed, out, diverged=None):
    """A finished run, or one that ``diverged`` at that iteration, from what it left in ``out``."""
    plan = json.loads((out / 'plan.json').read_text())
    log = json.loads((out / 'log').read_text()) if (out / 'log').exists() else []
    versions = {name: text for name, text in plan['software'].items() if name != 'host'}
    return {
        'arm': arm.name, 'seed': seed, 'command': command(arm, seed), 'diverged': diverged,
        'seconds': round(log[-1]['elapsed_time'], 1) if log else None,
        'n_class': plan['n_class'], 'n_epochs': plan['epochs'], 'n_train': plan['n_train'],
        'n_val': plan['n_val'], 'data': plan['data'], 'total_batch': plan['total_batch'],
        'eta_base': plan['eta_base'], 'versions': versions, 'machine': machine(),
        'curves': {key: [row[key] for row in log if key in row] for key in KEPT}}


def compare(found, recorded):
    """Names of the curves in which two runs differ in any digit: list of str, empty if they are the same."""
    return [key for key in KEPT if found['curves'][key] != recorded['curves'][key]]


class Results:
    """``results.json``: the runs, remarks on the claims written by hand, and what was verified."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.runs, self.remarks, self.verified = [], {}, []
        if self.path.exists():
            try:
                content = json.loads(self.path.read_text())
                self.runs = content['runs']
                self.remarks, self.verified = content['remarks'], content['verified']
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f'{path}: no results of this program ({error!r}); move it away') from None

    def find(self, arm, seed):
        """The run, if it is there and was made by today's command."""
        return next((run for run in self.runs if (run['arm'], run['seed']) == (arm.name, seed)
                     and run['command'] == command(arm, seed)), None)

    def add(self, run):
        others = {other['data'] for other in self.runs}
        if others - {run['data']}:
            raise UserError(f'{self.path} holds runs on other images than these; choose another --results')
        self.runs = [other for other in self.runs
                     if (other['arm'], other['seed']) != (run['arm'], run['seed'])] + [run]
        self.write()

    def write(self):
        """Write all, atomically, a run a line."""
        order = list(_ARM)
        self.runs.sort(key=lambda run: (run['seed'], order.index(run['arm']) if run['arm'] in order else -1))
        lines = ',\n'.join(json.dumps(run) for run in self.runs)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(f'{self.path}.tmp')
        temporary.write_text('{"remarks": ' + json.dumps(self.remarks, indent=1, ensure_ascii=False)
                             + ',\n"verified": ' + json.dumps(self.verified, indent=1)
                             + ',\n"runs": [\n' + lines + '\n]}\n')
        os.replace(temporary, self.path)

    def current(self):
        """Runs of today's arms and commands, in the order of the seeds and arms."""
        return [run for run in self.runs
                if run['arm'] in _ARM and run['command'] == command(_ARM[run['arm']], run['seed'])]


def run_missing(results, arms, seeds, train, val, runs_dir, at_a_time):
    """Run what the results lack, some at a time, and record each as it ends.

    Returns:
        list of str: What could not be run.
    """
    due = [(arm, seed) for seed in seeds for arm in arms if results.find(arm, seed) is None]
    print(f'{len(due)} of {len(arms) * len(seeds)} runs to do, {at_a_time} at a time', flush=True)
    lock, failures = threading.Lock(), []

    def one(arm, seed):
        try:
            run = run_once(arm, seed, train, val, runs_dir / f'{arm.name}-{seed}')
            with lock:
                results.add(run)
            print(f'{arm.name}, seed {seed}: ' + describe_end(run), flush=True)
        except UserError as error:
            failures.append(str(error))
            print(error, file=sys.stderr, flush=True)

    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        futures = [pool.submit(one, arm, seed) for arm, seed in due]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def verify(results, arms, seeds, train, val, runs_dir, at_a_time):
    """Run again into a fresh directory what the results hold, and compare digit by digit.

    Returns:
        list of str: What differed, or could not be run.
    """
    due = [(arm, seed, results.find(arm, seed)) for seed in seeds for arm in arms]
    failures = [f'{arm.name}, seed {seed}: not in the results' for arm, seed, run in due if run is None]

    def one(arm, seed, recorded):
        out = runs_dir / f'again-{arm.name}-{seed}'
        if out.exists():
            raise UserError(f'{out} exists: remove it, so that the run is made again')
        return compare(run_once(arm, seed, train, val, out), recorded)

    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        futures = [(arm, seed, pool.submit(one, arm, seed, run)) for arm, seed, run in due if run is not None]
        for arm, seed, future in futures:
            try:
                different = future.result()
            except UserError as error:
                failures.append(str(error))
                continue
            results.verified = [entry for entry in results.verified
                                if (entry['arm'], entry['seed']) != (arm.name, seed)]
            results.verified.append({'arm': arm.name, 'seed': seed, 'different': different,
                                     'machine': machine()})
            results.write()
            print(f'{arm.name}, seed {seed}: ' + (f'differs in {", ".join(different)}' if different else
                                                  'the same to the last digit'))
            if different:
                failures.append(f'{arm.name}, seed {seed}: not reproduced')
    return failures


# --- Reporting

def describe_end(run):
    if run['diverged'] is not None:
        return f'diverged at iteration {run["diverged"]}'
    return f'accuracy {value(run, "final"):.3f} at the end, {run["seconds"]:.0f} s'


def plus_minus(values, digits=3):
    mean, deviation = spread(values)
    return f'{mean:.{digits}f}' + (f' ± {deviation:.{digits}f}' if len(values) > 1 else '')


def markdown(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def arm_table(runs):
    """All arms, whether run or not: mean ± standard deviation over the seeds, as Markdown."""
    rows = []
    for arm in ARMS:
        own = [run for run in runs if run['arm'] == arm.name]
        if not own:
            rows.append([f'`{arm.name}`', arm.what, 0, *['not run'] * 4])
            continue
        diverged = sum(run['diverged'] is not None for run in own)
        after_one = [run['curves'][VAL_LOSS][0] for run in own if run['curves'][VAL_LOSS]]
        rows.append([f'`{arm.name}`', arm.what + (f'; diverged: {diverged}' if diverged else ''), len(own),
                     plus_minus([value(run, 'start') for run in own]),
                     plus_minus(after_one) if after_one else '',
                     plus_minus([value(run, 'mean') for run in own]),
                     '**' + plus_minus([value(run, 'final') for run in own]) + '**'])
    return markdown(['Arm', 'What', 'Seeds', 'Training loss, epoch 1', 'Validation loss, epoch 1',
                     'Accuracy, mean of epochs', 'Accuracy at the end'], rows)


def describe_comparison(comparison):
    sign = {'higher': '>', 'lower': '<', 'equal': '≈', 'holds': '≥'}[comparison.expected]
    return f'`{comparison.arm}` {sign} `{comparison.reference}`: {MEASURES[comparison.measure][0]}'


def comparison_rows(runs, claim):
    """What each comparison of a claim found: expectation, difference, interval and verdict, as Markdown."""
    rows = []
    for comparison in claim.comparisons:
        found = difference(runs, comparison)
        if found:
            mean, low, high = interval(found)
            numbers = [f'{mean:+.3f}', f'{low:+.3f} to {high:+.3f}' if len(found) > 1 else 'one seed']
        else:
            numbers = ['not run', '']
        answer = judge(runs, comparison)
        small = answer == HELD and comparison.expected in ('higher', 'lower') \
            and abs(mean) < MEASURES[comparison.measure][1]
        rows.append([describe_comparison(comparison), *numbers,
                     f'**{answer}**' + (', by less than the margin' if small else '')])
    return markdown(['Expected', 'Difference', '90 % interval', 'Verdict'], rows)


def summary_rows(runs):
    """The verdict on every claim's main comparison, and on all of them by number, as Markdown."""
    rows = []
    for claim in CLAIMS:
        verdicts = [judge(runs, comparison) for comparison in claim.comparisons]
        rows.append([f'[{claim.number}. {claim.title}](#claim-{claim.number})',
                     describe_comparison(claim.comparisons[0]), f'**{verdicts[0]}**',
                     *(f'{verdicts.count(answer)} of {len(verdicts)}' if answer in verdicts else ''
                       for answer in (HELD, FAILED, OPEN))])
    return markdown(['Claim', 'Main comparison', 'Verdict', 'Of all: held', 'did not hold', 'open'], rows)


def claim_arms(claim):
    """Names of the arms that a claim compares, in the order of the table."""
    used = {name for comparison in claim.comparisons for name in (comparison.arm, comparison.reference)}
    return [arm.name for arm in ARMS if arm.name in used]


def describe_setting(runs):
    """What all runs share, as Markdown."""
    first = runs[0]
    seconds = [run['seconds'] for run in runs if run['seconds']]
    extreme = constants.BATCH * WORKERS['extreme']
    versions = {', '.join(f'{name} {text}' for name, text in run['versions'].items() if text)
                for run in runs}
    etas = {run['total_batch']: run['eta_base'] for run in runs
            if _ARM[run['arm']].eta_scale == ETA_SCALE}
    return '\n'.join([
        f'- Data: {first["n_train"]:,} training and {first["n_val"]:,} validation JPEG files of '
        f'{first["n_class"]} classes; fingerprint `{first["data"]}`.',
        f'- Shared options: `{COMMON.format(eta_scale=ETA_SCALE)}`.',
        f'- Length: {first["n_epochs"]:g} epochs; everything counted in epochs scales by '
        f'{first["n_epochs"] / constants.EPOCHS:.4f}. An iteration of {extreme:,} images is '
        f'{extreme / first["n_train"]:.0%} of the data set, {first["n_train"] / extreme:.1f} make an epoch '
        f'and {math.ceil(first["n_epochs"] * first["n_train"] / extreme)} the training (the paper: 2.6 %, '
        '39 and 3,519).',
        f'- η_base, {ETA_SCALE} times the linear rule\'s: '
        + ', '.join(f'{eta:g} at {batch:,}' for batch, eta in sorted(etas.items()))
        + '; the two arms called unscaled have the linear rule\'s own.',
        f'- Machine: {", ".join(sorted({run["machine"] for run in runs}))}; one thread a run; '
        f'{plus_minus(seconds, 0)} s a run beside another.',
        f'- Versions: {"; ".join(sorted(versions))}.'])


def report(results):
    """The report as Markdown."""
    runs = results.current()
    if not runs:
        raise UserError(f'{results.path}: no runs yet; give TRAIN VAL')
    complete = [seed for seed in sorted({run['seed'] for run in runs})
                if {run['arm'] for run in runs if run['seed'] == seed} == set(_ARM)]
    parts = [
        '# The paper\'s claims, tested at a small size',
        'Written by `python jobs/ablation.py TRAIN VAL` (the text from `results.json`: `--report`).',
        results.remarks.get('summary', ''),
        '## Verdicts', summary_rows(runs),
        f'{len(runs)} runs; all {len(ARMS)} arms with seeds {", ".join(map(str, complete)) or "none"}. '
        'Differences are taken seed by seed (the same weights, order of images and augmentation), with a '
        '90 % interval by Student\'s t. A verdict: ">" held if the interval is above 0, and did not hold if '
        'it is below the margin ("<" likewise); "≈" held if the interval is inside ± the margin, and did not '
        'hold if it is outside; "≥" held if it is above minus the margin, and did not hold if it is below. '
        'All else this size cannot tell. Margins: '
        + ', '.join(f'{margin:g} ({name})' for name, margin in MEASURES.values())
        + f'. Of {sum(len(claim.comparisons) for claim in CLAIMS)} verdicts, each at 95 % one-sided, one or '
        'so errs by chance. The intervals are about seeds; all runs are validated on the same images, and '
        f'another {runs[0]["n_val"]:,} would move an accuracy of 0.25 by a standard deviation of '
        f'{math.sqrt(0.25 * 0.75 / runs[0]["n_val"]):.3f}.',
        '## Setting', describe_setting(runs), results.remarks.get('setting', ''),
        '## All arms', 'Mean ± sample standard deviation over the seeds.', arm_table(runs),
        '![Accuracy at the end of every arm](arms.png)']
    for claim in CLAIMS:
        parts += [f'<a id="claim-{claim.number}"></a>\n\n## {claim.number}. {claim.title}', claim.paper,
                  comparison_rows(runs, claim), results.remarks.get(str(claim.number), ''),
                  f'![Claim {claim.number}: {claim.title}](claim{claim.number}.png)']
    checked = [f'- `{entry["arm"]}`, seed {entry["seed"]}: '
               + (f'differs in {", ".join(entry["different"])}' if entry['different'] else
                  'the same to the last digit')
               + f' ({entry["machine"]})' for entry in results.verified]
    parts += ['## Run again', 'Curves of losses and accuracies, recorded against a second run of the same '
              'command:' if checked else '', '\n'.join(checked), '## Commands',
              'What is missing is run, and an interrupted set continued, by',
              '```\npython jobs/ablation.py TRAIN VAL\n```',
              'A single run is repeated by its own command; the order of the arms is that of the table, and '
              'other seeds differ in `--seed` alone:',
              '```\n' + '\n'.join(shell_command(arm, SEEDS[0]) for arm in ARMS) + '\n```']
    return '\n\n'.join(part for part in parts if part) + '\n'


def _means(runs, name, key):
    """Epochs, means and standard deviations over the seeds of an arm's curve, as far as all seeds have it."""
    own = [run['curves'] for run in runs if run['arm'] == name]
    length = min((len(curves[key]) for curves in own), default=0)
    points = [spread([curves[key][k] for curves in own]) for k in range(length)]
    epochs = own[0]['epoch'][:length] if own else []
    return epochs, [mean for mean, _ in points], [deviation for _, deviation in points]


def draw_claim(claim, runs, path):
    """Training loss, validation loss and validation accuracy over the epochs of the arms of a claim."""
    from matplotlib import figure
    picture = figure.Figure(figsize=(11.0, 4.2), dpi=110, layout='constrained')
    panels = picture.subplots(1, 3)
    names = claim_arms(claim)
    styles = ('-', '--', '-.', ':')
    handles = []
    for axes, key, label in zip(panels, (LOSS, VAL_LOSS, VAL_ACCURACY),
                                ('Training loss', 'Validation loss', 'Validation accuracy')):
        highest = 0.0
        for name in names:
            # One colour in all figures; of curves that coincide, one shows between the other's dashes.
            k = list(_ARM).index(name)
            epochs, means, deviations = _means(runs, name, key)
            line, = axes.plot(epochs, means, color=f'C{k % 10}', linestyle=styles[names.index(name) % 4],
                              marker='o', markersize=3.5, linewidth=1.6, label=name)
            axes.fill_between(epochs, [m - d for m, d in zip(means, deviations)],
                              [m + d for m, d in zip(means, deviations)], color=f'C{k % 10}', alpha=0.15,
                              linewidth=0)
            highest = max([highest, *means])
            if key == LOSS:
                handles.append(line)
        if key == VAL_LOSS and highest > 6:
            axes.set_yscale('log')
        axes.set(xlabel='Epoch', title=label)
        axes.grid(alpha=0.3)
    seeds = ', '.join(map(str, sorted({run['seed'] for run in runs})))
    picture.suptitle(f'{claim.number}. {claim.title}: mean ± standard deviation over the seeds '
                     f'({seeds})', fontsize=11)
    picture.legend(handles=handles, loc='outside lower center', ncol=len(names), frameon=False)
    _save(picture, path)


def draw_arms(runs, path):
    """Accuracy at the end of every arm: each seed, mean and standard deviation."""
    from matplotlib import figure
    picture = figure.Figure(figsize=(8.5, 5.0), dpi=110, layout='constrained')
    axes = picture.subplots()
    for k, arm in enumerate(ARMS):
        values = [value(run, 'final') for run in runs if run['arm'] == arm.name]
        if values:
            mean, deviation = spread(values)
            axes.plot(values, [k + 0.3] * len(values), '.', color='0.55')
            axes.errorbar(mean, k, xerr=deviation, fmt='o', color=f'C{k % 10}', capsize=4)
    axes.axvline(1 / runs[0]['n_class'], color='0.7', linestyle=':')
    axes.set_yticks(range(len(ARMS)), [arm.what for arm in ARMS])
    axes.set_ylim(len(ARMS) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel('Validation accuracy at the end: mean ± standard deviation\n'
                    '(grey: single seeds; dotted line: guessing)')
    axes.grid(alpha=0.3)
    _save(picture, path)


def _save(picture, path):
    temporary = f'{path}.tmp'
    picture.savefig(temporary, format='png')
    os.replace(temporary, path)


def write_report(results):
    """README.md and the figures, beside the results."""
    text = report(results)
    directory = results.path.parent
    (directory / 'README.md').write_text(text)
    runs = results.current()
    draw_arms(runs, directory / 'arms.png')
    for claim in CLAIMS:
        draw_claim(claim, runs, directory / f'claim{claim.number}.png')


# --- The command line

def _seeds(text):
    try:
        return tuple(int(word) for word in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of numbers such as 0,1,2') from None


def _arms(text):
    unknown = [name for name in text.split(',') if name not in _ARM]
    if unknown:
        raise argparse.ArgumentTypeError(f'no arm {unknown[0]!r}: choose from {", ".join(_ARM)}')
    return tuple(_ARM[name] for name in text.split(','))


def main(argv=None):
    parser = OneLineParser(prog='ablation.py', allow_abbrev=False,
                           description='Test the paper\'s claims at a size that fits a small machine.')
    add = parser.add_argument
    add('train', nargs='?', metavar='TRAIN', help='training images, as train_imagenet.py takes them')
    add('val', nargs='?', metavar='VAL', help='validation images')
    add('--seeds', type=_seeds, default=SEEDS, metavar='N,N', help='seeds to run (0,1,2)')
    add('--arms', type=_arms, default=ARMS, metavar='A,A', help='arms to run (all)')
    add('--at-a-time', type=int, default=len(os.sched_getaffinity(0)), metavar='N',
        help='runs at a time, of one thread each (the number of cores)')
    add('--runs', type=pathlib.Path, default=pathlib.Path('ablation-runs'), metavar='DIR',
        help='where runs leave their output (ablation-runs)')
    add('--results', type=pathlib.Path, default=RESULTS, metavar='FILE',
        help='what is kept of them; the report is written beside it (jobs/ablation/results.json)')
    add('--verify', type=_arms, metavar='A,A', help='run these arms again and compare to the last digit')
    add('--report', action='store_true', help='only write the report')
    add('--commands', action='store_true', help='only print the commands of all runs')
    args = parser.parse_args(argv)
    if args.commands:
        print('\n'.join(shell_command(arm, seed) for seed in args.seeds for arm in args.arms))
        return errors.EXIT_FINISHED
    if not args.report and args.val is None:
        parser.error('TRAIN VAL are missing; without them there are --report and --commands')
    try:
        results, failures = Results(args.results.resolve()), []
        if not args.report:
            what = (args.seeds, os.path.abspath(args.train), os.path.abspath(args.val), args.runs.resolve(),
                    args.at_a_time)
            failures = verify(results, args.verify, *what) if args.verify \
                else run_missing(results, args.arms, *what)
        write_report(results)
        print(arm_table(results.current()))
    except UserError as error:
        print(f'ablation.py: {error}', file=sys.stderr)
        return errors.EXIT_USER_ERROR
    for failure in failures:
        print(f'ablation.py: {failure}', file=sys.stderr)
    return errors.EXIT_FAULT if failures else errors.EXIT_FINISHED


if __name__ == '__main__':
    sys.exit(main())
