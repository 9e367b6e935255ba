"""The command line: what it refuses, each time on one line, and what it prints."""

import json

import pytest

from jobs.ablation.__main__ import main
from jobs.ablation.results import Results


@pytest.mark.parametrize('options, message', [
    (['--set', 'tiniest', 'a', 'b'], '--set tiniest: no such set; choose from tiny'),
    (['--set', 'tiny', '--arms', 'paper,papre', 'a', 'b'], '--arms papre: no such arm in the set tiny'),
    (['--set', 'tiny', '--seeds', '0,x', 'a', 'b'], "'0,x' is not a list of numbers"),
    (['--set', 'tiny', '--seeds', '4294967296', 'a', 'b'], 'all below 2**32'),
    (['--set', 'tiny', '--at-a-time', '0', 'a', 'b'], "'0' is not a whole number of 1 or more"),
    (['--set', 'tiny'], 'TRAIN VAL are missing'),
])
def test_bad_options_are_named_on_one_line(tiny, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        main(options)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and message in line


@pytest.mark.parametrize('content, message', [
    ('[]', 'no result of this program'), ('{"format": 2}', 'it lacks again, arm, command'),
    ('{"format": 1, "runs": []}', 'format 1, expected 2'), ('{"format": "2"}', "format '2', expected 2"),
    ('nothing', 'no result of this program')])
def test_results_of_another_format_are_named_on_one_line(tmp_path, tiny, capsys, content, message):
    path = tmp_path / 'results' / 'tiny' / 'paper-0.json'
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert main(['--report', '--set', 'tiny', '--results', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and str(path) in line


@pytest.mark.parametrize('changes', [
    {'loss': None}, {'seed': '0'}, {'versions': None}, {'plan.n_class': 0}, {'plan.epochs': None},
    {'log.validation/main/accuracy': []}, {'log.main/loss': 3}])
def test_results_of_another_kind_are_named_on_one_line(tmp_path, tiny, made_up, capsys, changes):
    run = made_up(tiny, 'paper', 0, 0.3)
    for key, value in changes.items():
        place, _, name = key.rpartition('.')
        (run[place] if place else run)[name] = value
    Results(tmp_path).add('tiny', run)
    assert main(['--report', '--set', 'tiny', '--results', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'paper-0.json: no result of this program' in line


@pytest.mark.parametrize('option', ['--results', '--runs'])
def test_a_directory_that_cannot_be_written_is_named_before_anything_runs(
        calls, ablation_main, tmp_path, capsys, option):
    path = tmp_path / 'file'
    path.write_text('')
    assert ablation_main(option, str(path / 'below')) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{option} {path}/below: cannot be written' in line and calls() == []


@pytest.mark.parametrize('name', ['results.json', 'results/tiny.json'])
def test_results_of_an_earlier_version_are_named_on_one_line(tmp_path, tiny, capsys, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"runs": []}')
    assert main(['train', 'val', '--set', 'tiny', '--results', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{path}: results of another format' in line


def test_results_of_two_image_sets_are_named_on_one_line(tmp_path, tiny, made_up, capsys):
    results = Results(tmp_path)
    results.add('tiny', made_up(tiny, 'paper', 0, 0.3))
    run = json.loads(json.dumps(made_up(tiny, 'paper', 1, 0.3)))
    run['plan']['data'] = 'c d'
    results.add('tiny', run)
    assert main(['--report', '--set', 'tiny', '--results', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'paper-1.json: made of other images than paper-0.json' in line


def test_the_directory_of_the_sets_themselves_is_named_on_one_line(tmp_path, tiny, made_up, capsys):
    Results(tmp_path).add('tiny', made_up(tiny, 'paper', 0, 0.3))
    assert main(['train', 'val', '--set', 'tiny', '--results', str(tmp_path / 'results')]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{tmp_path}/results: holds sets of runs itself' in line and line.endswith(f'here {tmp_path}')


def test_a_file_for_results_and_an_empty_directory_are_user_errors(tmp_path, tiny, capsys):
    (tmp_path / 'file').write_text('')
    assert main(['--report', '--set', 'tiny', '--results', str(tmp_path / 'file')]) == 2
    assert main(['--report', '--set', 'tiny', '--results', str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert 'expected a directory' in lines[0] and 'no runs there' in lines[1] and len(lines) == 2


def test_commands_prints_one_line_a_run(tmp_path, capsys):
    assert main(['--commands', '--seeds', '4', '--arms', 'fp32', '--results', str(tmp_path)]) == 0
    assert capsys.readouterr().out == (
        'OPENBLAS_NUM_THREADS=1 python train_imagenet.py TRAIN VAL '
        '--arch resnet8 --insize 24 --batchsize 32 --epoch 5 --loaderjob 0 --eta-scale 8 '
        '--recipe paper --allreduce-grad-dtype float32 --virtual-workers 32 --seed 4 '
        '--out ablation-runs/short/fp32-4\n')
