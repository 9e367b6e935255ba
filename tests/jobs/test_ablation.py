"""The ablation on a stand-in for the training, and its verdicts on hand-made differences."""

import json
import math
import shlex
import sys

from lib.errors import UserError
from lib.run import arguments

import pytest

from jobs import ablation

# Leaves what a training leaves. Accuracy: 0.5 for a small minibatch, 0.4 else, and a bit by the seed.
STAND_IN = '''
import json, os, pathlib, sys
words = sys.argv[1:]
def option(name, default=None):
    return words[words.index(name) + 1] if name in words else default
out, seed = pathlib.Path(option('--out')), int(option('--seed'))
with open(os.environ['CALLS'], 'a') as file:
    file.write(json.dumps([option('--out'), os.environ['OPENBLAS_NUM_THREADS']]) + '\\n')
if option('--transition') == os.environ.get('BREAKS'):
    print('train_imagenet.py: no such images', file=sys.stderr)
    sys.exit(2)
out.mkdir(parents=True, exist_ok=True)
plan = {'n_class': 20, 'epochs': 2, 'n_train': 100, 'n_val': 10, 'data': 'a b', 'total_batch': 64,
        'eta_base': 0.2, 'software': {'python': '3', 'host': 'secret'}}
(out / 'plan.json').write_text(json.dumps(plan))
accuracy = (0.5 if option('--virtual-workers') == '2' else 0.4) + 0.01 * seed
log = [{'epoch': e, 'iteration': e, 'elapsed_time': 7.0 * e, 'main/loss': 3.0 / e, 'main/accuracy': 0.1,
        'validation/main/loss': 2.0, 'validation/main/accuracy': accuracy * e / 2, 'lr': 0.1,
        'alpha_sgd': 1.0, 'images_per_sec': 3.0} for e in (1, 2)]
diverges = option('--transition') == os.environ.get('DIVERGES')
(out / 'log').write_text(json.dumps(log[:1] if diverges else log))
if option('--transition') != os.environ.get('LOST'):
    (out / 'finished').touch()
if diverges:
    print('train_imagenet.py: iteration 9: gradient of /conv1/W holds NaN', file=sys.stderr)
    sys.exit(1)
'''


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A training without training, and reports without figures, which take seconds.

    Returns the calls so far: (output directory, BLAS threads).
    """
    for name in ('draw_arms', 'draw_claim'):
        monkeypatch.setattr(ablation, name, lambda *arguments: None)
    (tmp_path / 'train_imagenet.py').write_text(STAND_IN)
    monkeypatch.setattr(ablation, 'ROOT', tmp_path)
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    for name in ('BREAKS', 'DIVERGES', 'LOST'):
        monkeypatch.setenv(name, 'nothing')

    def read():
        path = tmp_path / 'calls'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def words(tmp_path, *more):
    return ['train', 'val', '--runs', str(tmp_path / 'runs'), '--results', str(tmp_path / 'results.json'),
            *more]


def stored(tmp_path):
    runs = json.loads((tmp_path / 'results.json').read_text())['runs']
    return {(run['arm'], run['seed']): run for run in runs}


def made_up(arm, seed, accuracy, diverged=None):
    """A run as the results hold it, with two epochs of which the second has ``accuracy``."""
    curves = {key: [1.0, 1.0] for key in ablation.KEPT}
    curves[ablation.VAL_ACCURACY] = [0.1, accuracy]
    return {'arm': arm, 'seed': seed, 'diverged': diverged, 'n_class': 20, 'n_epochs': 2, 'curves': curves}


@pytest.mark.parametrize('arm', ablation.ARMS, ids=lambda arm: arm.name)
def test_options_of_every_arm_are_options_of_the_training(arm):
    options = arguments.parse(['train', 'val', *shlex.split(ablation.command(arm, 3))])
    assert options.seed == 3 and options.epoch <= 20
    # Alike for all arms but those that are to show what the linear rule's own rate does.
    assert arguments.chosen_recipe(options).eta_scale == (1 if arm.name.endswith('-unscaled') else 8)


def test_every_arm_differs_from_the_baseline_as_its_name_says():
    def recipe(arm):
        options = arguments.parse(shlex.split(ablation.command(arm, 0)))
        chosen = arguments.chosen_recipe(options)
        return {'transition': chosen.transition, 'schedule': chosen.schedule, 'bn': chosen.bn_statistics,
                'wire': options.allreduce_grad_dtype, 'workers': options.virtual_workers}

    arms = {arm.name: recipe(arm) for arm in ablation.ARMS}
    baseline = arms['paper']
    exchanged = {name: {key: value for key, value in arm.items() if value != baseline[key]}
                 for name, arm in arms.items()}
    goyal = {'transition': 'none', 'schedule': 'goyal', 'bn': 'moving'}
    assert exchanged == {
        'goyal-64': {**goyal, 'workers': 2}, 'goyal-256': {**goyal, 'workers': 8}, 'goyal-1024': goyal,
        'goyal-64-unscaled': {**goyal, 'workers': 2}, 'goyal-1024-unscaled': goyal,
        'paper': {}, 'no-warmup': {'transition': 'none'}, 'sudden': {'transition': 'sudden'},
        'linear': {'transition': 'linear'}, 'sigmoid': {'transition': 'sigmoid'},
        'printed': {'transition': 'printed'}, 'goyal-schedule': {'schedule': 'goyal'},
        'moving': {'bn': 'moving'}, 'last-local': {'bn': 'last-local'}, 'fp32': {'wire': 'float32'}}


def test_every_arm_takes_part_in_a_claim():
    assert {name for claim in ablation.CLAIMS for name in ablation.claim_arms(claim)} \
        == {arm.name for arm in ablation.ARMS}


def test_interval_is_students():
    # 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, and t = 2.920 at two degrees of freedom.
    mean, low, high = ablation.interval([0.01, 0.02, 0.03])
    assert mean == pytest.approx(0.02)
    assert (high - mean, mean - low) == pytest.approx([2.920 * 0.01 / math.sqrt(3)] * 2)


@pytest.mark.parametrize('expected, differences, answer', [
    ('higher', (0.10, 0.11, 0.12), ablation.HELD),
    ('higher', (-0.10, -0.11, -0.12), ablation.FAILED),
    ('higher', (-0.001, 0.0, 0.001), ablation.FAILED),       # certainly below the margin
    ('higher', (-0.1, 0.0, 0.1), ablation.OPEN),
    ('lower', (-0.10, -0.11, -0.12), ablation.HELD),
    ('lower', (0.10, 0.11, 0.12), ablation.FAILED),
    ('equal', (-0.001, 0.0, 0.001), ablation.HELD),
    ('equal', (0.10, 0.11, 0.12), ablation.FAILED),
    ('equal', (-0.1, 0.0, 0.1), ablation.OPEN),
    ('holds', (0.10, 0.11, 0.12), ablation.HELD),
    ('holds', (-0.011, -0.010, -0.009), ablation.HELD),      # lower, but by less than the margin
    ('holds', (-0.10, -0.11, -0.12), ablation.FAILED),
    ('holds', (-0.1, 0.0, 0.1), ablation.OPEN),
    ('higher', (0.5,), ablation.OPEN),                       # one seed proves nothing
    ('higher', (), ablation.OPEN),
])
def test_verdict(expected, differences, answer):
    assert ablation.verdict(list(differences), expected, margin=0.03) == answer


def test_differences_are_taken_seed_by_seed_where_both_arms_ran():
    runs = [made_up('paper', 2, 0.5), made_up('paper', 0, 0.3), made_up('moving', 0, 0.1),
            made_up('moving', 1, 0.2), made_up('moving', 2, 0.4)]
    comparison = ablation.Comparison('paper', 'higher', 'moving', 'final')
    assert ablation.difference(runs, comparison) == pytest.approx([0.2, 0.1])


def test_diverged_run_counts_as_guessing():
    run = made_up('paper', 0, 0.3, diverged=9)
    run['n_epochs'] = 4
    assert ablation.value(run, 'final') == 1 / 20
    assert ablation.value(run, 'mean') == pytest.approx((0.1 + 0.3 + 1 / 20 + 1 / 20) / 4)
    run['curves'][ablation.LOSS] = []
    assert ablation.value(run, 'start') == pytest.approx(math.log(20))


def test_runs_all_arms_of_a_seed_before_the_next_seed(calls, tmp_path):
    assert ablation.main(words(tmp_path, '--seeds', '0,1', '--at-a-time', '1')) == 0
    names = [out.rpartition('/')[2] for out, _ in calls()]
    assert names == [f'{arm.name}-{seed}' for seed in (0, 1) for arm in ablation.ARMS]
    assert {threads for _, threads in calls()} == {'1'}


def test_results_hold_what_the_report_needs_and_no_host_or_path(calls, tmp_path):
    ablation.main(words(tmp_path, '--seeds', '1', '--arms', 'paper'))
    run = stored(tmp_path)['paper', 1]
    assert run['curves'][ablation.VAL_ACCURACY] == pytest.approx([0.205, 0.41])
    assert run['curves'][ablation.LOSS] == [3.0, 1.5]
    assert run['seconds'] == 14 and run['diverged'] is None
    text = (tmp_path / 'results.json').read_text() + (tmp_path / 'README.md').read_text()
    assert 'secret' not in text and str(tmp_path) not in text


def test_second_start_runs_only_what_is_missing(calls, tmp_path):
    ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'paper,fp32'))
    ablation.main(words(tmp_path, '--seeds', '0,1', '--arms', 'fp32,paper', '--at-a-time', '1'))
    names = [out.rpartition('/')[2] for out, _ in calls()]
    assert sorted(names[:2]) == ['fp32-0', 'paper-0'] and names[2:] == ['fp32-1', 'paper-1']


def test_arm_whose_options_changed_is_run_again(calls, tmp_path, monkeypatch):
    ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'paper'))
    monkeypatch.setattr(ablation, 'COMMON', ablation.COMMON + ' --batchsize 16')
    ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'paper'))
    assert len(calls()) == 2 and '--batchsize 16' in stored(tmp_path)['paper', 0]['command']


def test_diverged_run_is_a_result(calls, tmp_path, monkeypatch):
    monkeypatch.setenv('DIVERGES', 'none')
    assert ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'no-warmup,paper')) == 0
    assert stored(tmp_path)['no-warmup', 0]['diverged'] == 9
    assert 'diverged: 1' in (tmp_path / 'README.md').read_text()


def test_failed_run_is_named_and_the_others_are_kept(calls, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BREAKS', 'none')
    assert ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'no-warmup,paper')) == 1
    assert set(stored(tmp_path)) == {('paper', 0)}
    assert 'no-warmup, seed 0: status 2' in capsys.readouterr().err


def test_run_that_ended_with_0_in_the_middle_is_not_a_result(calls, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('LOST', 'none')
    assert ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'no-warmup,paper')) == 1
    assert set(stored(tmp_path)) == {('paper', 0)}
    assert 'no-warmup, seed 0: status 0' in capsys.readouterr().err


def test_table_names_arms_that_were_not_run(calls, tmp_path):
    ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'paper'))
    table = ablation.arm_table(ablation.Results(tmp_path / 'results.json').current())
    assert table.count('not run') == 4 * (len(ablation.ARMS) - 1)
    assert all(f'`{arm.name}`' in table for arm in ablation.ARMS)


def test_table_holds_mean_and_sample_deviation(calls, tmp_path):
    ablation.main(words(tmp_path, '--seeds', '0,1,2', '--arms', 'goyal-64'))
    table = ablation.arm_table(ablation.Results(tmp_path / 'results.json').current())
    assert '**0.510 ± 0.010**' in table  # of 0.50, 0.51 and 0.52


def test_figures_are_drawn_of_complete_and_of_unfinished_sets(tmp_path):
    runs = [made_up(arm.name, seed, 0.3) for arm in ablation.ARMS for seed in (0, 1) if arm.name != 'moving']
    runs[0]['curves'] = {key: [] for key in ablation.KEPT}  # diverged within the first epoch
    runs[0]['diverged'] = 1
    ablation.draw_arms(runs, tmp_path / 'arms.png')
    ablation.draw_claim(ablation.CLAIMS[3], runs, tmp_path / 'claim.png')
    assert all((tmp_path / name).read_bytes().startswith(b'\x89PNG') for name in ('arms.png', 'claim.png'))


def test_report_has_every_claim_figure_and_command(calls, tmp_path):
    ablation.main(words(tmp_path, '--seeds', '0,1'))
    results = json.loads((tmp_path / 'results.json').read_text())
    (tmp_path / 'results.json').write_text(json.dumps({**results, 'remarks': {'5': 'Seen by hand.'}}))
    assert ablation.main(['--report', '--results', str(tmp_path / 'results.json')]) == 0
    text = (tmp_path / 'README.md').read_text()
    for claim in ablation.CLAIMS:
        assert f'## {claim.number}. {claim.title}' in text
        assert f'](claim{claim.number}.png)' in text
    assert text.count('python train_imagenet.py TRAIN VAL ') == len(ablation.ARMS)
    assert 'Seen by hand.' in text
    assert '`paper` ≥ `goyal-64`: accuracy at the end | -0.100' in text


@pytest.mark.parametrize('digit, answer, status', [(0.0, [], 0), (1e-12, [ablation.LOSS], 1)])
def test_verify_compares_every_digit(calls, tmp_path, digit, answer, status):
    ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'paper'))
    content = json.loads((tmp_path / 'results.json').read_text())
    content['runs'][0]['curves'][ablation.LOSS][1] += digit
    (tmp_path / 'results.json').write_text(json.dumps(content))
    assert ablation.main(words(tmp_path, '--seeds', '0', '--verify', 'paper')) == status
    (entry,) = json.loads((tmp_path / 'results.json').read_text())['verified']
    assert entry['different'] == answer
    assert len(calls()) == 2 and calls()[1][0].endswith('again-paper-0')


def test_small_differences_are_called_small():
    runs = [made_up(arm, seed, 0.3 + 0.01 * seed + gain) for seed in (0, 1, 2)
            for arm, gain in (('paper', 0.01), ('goyal-64', 0.0), ('goyal-1024', -0.1))]
    holds, higher = ablation.comparison_rows(runs, ablation.CLAIMS[5]).splitlines()[2:]
    assert holds.endswith('**held** |') and higher.endswith('**held** |')
    runs = [run for run in runs if run['arm'] != 'goyal-1024'] \
        + [made_up('goyal-1024', seed, 0.29 + 0.01 * seed) for seed in (0, 1, 2)]
    assert 'held**, by less than the margin' in ablation.comparison_rows(runs, ablation.CLAIMS[5])


def test_runs_on_other_images_are_not_mixed_in(calls, tmp_path):
    ablation.main(words(tmp_path, '--seeds', '0', '--arms', 'paper'))
    results = ablation.Results(tmp_path / 'results.json')
    with pytest.raises(UserError, match='other images'):
        results.add({**results.runs[0], 'seed': 1, 'data': 'c d'})


def test_foreign_results_file_is_a_user_error(tmp_path, capsys):
    (tmp_path / 'results.json').write_text('[]')
    assert ablation.main(['--report', '--results', str(tmp_path / 'results.json')]) == 2
    assert 'no results of this program' in capsys.readouterr().err


def test_commands_prints_one_line_a_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['ablation.py', '--commands', '--seeds', '4', '--arms', 'fp32'])
    assert ablation.main() == 0
    assert capsys.readouterr().out == (
        'OPENBLAS_NUM_THREADS=1 python train_imagenet.py TRAIN VAL '
        '--arch resnet8 --insize 24 --batchsize 32 --epoch 5 --eta-scale 8 --loaderjob 0 '
        '--recipe paper --allreduce-grad-dtype float32 --virtual-workers 32 --seed 4 '
        '--out ablation-runs/fp32-4\n')
