"""The report on runs made by hand, whose means and medians are known."""

import json
import pathlib
import statistics

from lib.errors import UserError

import pytest

from jobs import report

PLAN = {'workers': 4, 'batch': 32, 'total_batch': 128, 'iterations': 60, 'epochs': 6, 'arch': 'resnet8',
        'recipe': 'paper', 'transition': 'continuous', 'schedule': 'slow-start', 'bn_statistics': 'last',
        'bn_variance': 'mean', 'eta_scale': 1, 'seed': 0, 'processes': 4,
        'software': {'chainer': '7.8.1', 'host': 'node1'}, 'deviations': ['workers: 4 instead of 1024']}


@pytest.fixture
def make_run(tmp_path):
    """``make_run(name, accuracies, seconds, **plan)``: directory of a run, 10 iterations per validation."""

    def make(name, accuracies, seconds=100.0, **plan):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        (directory / 'plan.json').write_text(json.dumps({**PLAN, **plan}))
        rows = [{'epoch': k, 'iteration': 10 * k, 'elapsed_time': seconds * k / len(accuracies),
                 'main/loss': 1 / k, 'main/accuracy': value, 'validation/main/loss': 2 / k,
                 'validation/main/accuracy': value, 'lr': 0.1, 'alpha_sgd': 1.0, 'images_per_sec': 50.0}
                for k, value in enumerate(accuracies, start=1)]
        if rows:
            (directory / 'log').write_text(json.dumps(rows))
        return str(directory)

    return make


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Drawing takes most of the time: only the test of the pictures draws."""
    if 'pictures' not in request.node.name:
        monkeypatch.setattr(report, 'draw', lambda *arguments: None)


def report_on(capsys, tmp_path, *directories):
    assert report.main([*directories, '--out', str(tmp_path / 'pictures')]) == 0
    return capsys.readouterr().out


def cells(out, start):
    (line,) = [line for line in out.splitlines() if line.startswith(f'| {start}')]
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_row_has_mean_and_sample_deviation_over_runs(make_run, capsys, tmp_path):
    scores = ([.1, .2, .3, .4, .5, .70], [.1, .2, .3, .4, .5, .72], [.1, .2, .3, .4, .5, .77])
    runs = [make_run(f'seed{k}', values, 100.0 + 10 * k, seed=k) for k, values in enumerate(scores)]
    row = cells(report_on(capsys, tmp_path, *runs), '3 runs here')
    deviation = statistics.stdev([70, 72, 77])
    assert row[3] == '128'
    assert row[4] == '110.0 ± 10.0 s'
    assert row[5] == f'73.00 % ± {deviation:.2f}'
    assert row[6] == '40.00 % ± 0.00'  # the median of .2 .3 .4 .5 .7


def test_paper_rows_stand_beside(make_run, capsys, tmp_path):
    out = report_on(capsys, tmp_path, make_run('run', [.5] * 6))
    assert cells(out, 'Goyal')[1:6] == ['Tesla P100 × 256', 'Caffe2', '8,192', '1 hr', '76.3 %']
    assert cells(out, 'Akiba')[1:6] == ['Tesla P100 × 1024', 'Chainer', '32,768', '15 min (897.9 ± 3.3 s)',
                                        '74.94 % ± 0.09']


def test_single_run_has_no_deviation(make_run, capsys, tmp_path):
    row = cells(report_on(capsys, tmp_path, make_run('run', [.5] * 6, 7200.0)), 'run here')
    assert row[1] == '4 processes, first on node1'
    assert row[2] == 'Chainer 7.8.1'
    assert row[4:6] == ['2.0 hr', '50.00 %']


def test_name_of_a_run_cannot_command_the_terminal(make_run, capsys, tmp_path):
    out = report_on(capsys, tmp_path, make_run('r\x1b[31mX\n', [.5], epochs=1), make_run('other', [.5]))
    assert '\x1b' not in out and cells(out, r'r\x1b[31mX\n')[1] == '0'


def test_plan_may_name_the_hardware(make_run, capsys, tmp_path):
    row = cells(report_on(capsys, tmp_path, make_run('run', [.5] * 6, hardware='Tesla P100 × 4')), 'run here')
    assert row[1] == 'Tesla P100 × 4'


def test_unfinished_run_is_marked_and_stays_out_of_the_means(make_run, capsys, tmp_path):
    done, running = make_run('done', [.6] * 6), make_run('running', [.2, .3], seed=1)
    out = report_on(capsys, tmp_path, done, running)
    assert cells(out, 'run here')[5] == '60.00 %'
    assert cells(out, 'running')[2] == 'unfinished: 20 of 60 iterations'
    assert 'running: not finished' in out


def test_run_without_a_row_yet_is_reported(make_run, capsys, tmp_path):
    out = report_on(capsys, tmp_path, make_run('young', []))
    assert cells(out, 'young')[2] == 'unfinished: 0 of 60 iterations'
    assert cells(out, 'run here')[4] == 'not finished'


def test_runs_of_different_settings_are_not_averaged(make_run, capsys, tmp_path):
    out = report_on(capsys, tmp_path, make_run('a', [.6] * 6), make_run('b', [.4] * 6, recipe='goyal'))
    assert cells(out, 'run here: resnet8, paper')[5] == '60.00 %'
    assert cells(out, 'run here: resnet8, goyal')[5] == '40.00 %'


def test_processes_and_seed_do_not_set_runs_apart(make_run, capsys, tmp_path):
    four, one = make_run('four', [.5] * 6), make_run('one', [.5] * 6, seed=1, processes=1, virtual_workers=4)
    assert cells(report_on(capsys, tmp_path, four, one), '2 runs here')[5] == '50.00 % ± 0.00'


def test_equal_seeds_are_pointed_out(make_run, capsys, tmp_path):
    out = report_on(capsys, tmp_path, make_run('a', [.5] * 6), make_run('b', [.5] * 6))
    assert 'same seed' in out


def test_deviations_from_the_paper_are_listed(make_run, capsys, tmp_path):
    assert 'workers: 4 instead of 1024' in report_on(capsys, tmp_path, make_run('run', [.5] * 6))


def test_draws_three_pictures(make_run, capsys, tmp_path):
    report_on(capsys, tmp_path, make_run('a', [.5] * 6), make_run('b', [], recipe='goyal'))
    for name in ('loss.png', 'accuracy.png', 'schedule.png'):
        assert (tmp_path / 'pictures' / name).read_bytes().startswith(b'\x89PNG')


def test_names_are_the_shortest_that_differ():
    assert report.short_names(['x/a/result', 'y/b/result']) == {'x/a/result': 'a/result',
                                                                'y/b/result': 'b/result'}
    assert report.short_names(['x/a', 'x/b']) == {'x/a': 'a', 'x/b': 'b'}


def test_legend_names_the_seeds_where_they_are_all_that_differs(make_run):
    runs = [report.read_run(str(make_run(f'runs/{seed}', [0.5], seed=seed))) for seed in (0, 1)]
    other = report.read_run(str(make_run('runs/2', [0.5], seed=2, workers=8)))
    names = report.short_names([run.path for run in [*runs, other]])
    assert list(report.legend_names(runs, names).values()) == ['seed 0', 'seed 1']
    assert list(report.legend_names([*runs, other], names).values()) == ['0', '1', '2']


def test_median_takes_what_there_is_of_a_short_run():
    assert report.median_of_last([0.1, 0.9, 0.4]) == 0.4
    assert report.median_of_last([0.9, 0.1, 0.2, 0.3, 0.4, 0.5]) == 0.3


@pytest.mark.parametrize('name', ['plan.json', 'log'])
def test_what_is_no_regular_file_is_not_read(make_run, special_file, name):
    run = pathlib.Path(make_run('run', [.5] * 6))
    (run / name).unlink()
    special_file(run / name)
    with pytest.raises(UserError, match='not the directory of a run .not a regular file'):
        report.read_run(run)


@pytest.mark.parametrize('content', [None, {}, {'log': '[]'}, {'plan.json': '{"iterations": 5'},
                                     {'plan.json': '{}'}, {'plan.json': json.dumps(PLAN), 'log': '[{}]'}])
def test_directory_that_is_no_run_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / 'run').mkdir()
        for name, text in content.items():
            (tmp_path / 'run' / name).write_text(text)
    with pytest.raises(UserError, match='not the directory of a run'):
        report.read_run(tmp_path / 'run')


def test_mistake_is_one_line_and_status_2(tmp_path, capsys):
    assert report.main([str(tmp_path / 'absent')]) == 2
    err = capsys.readouterr().err
    assert 'absent' in err and len(err.splitlines()) == 1
