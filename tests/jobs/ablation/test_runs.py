"""How a set is run, on a stand-in for the training."""

import json
import os
import signal
import subprocess

import pytest

from jobs.ablation import results
from jobs.ablation.results import Results
from jobs.ablation.runs import trainings


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take seconds."""
    monkeypatch.setattr('jobs.ablation.pictures.draw', lambda *arguments: set())


def stored(tmp_path):
    return {path.stem: json.loads(path.read_text()) for path in (tmp_path / 'kept').rglob('*.json')}


def names(calls):
    return [name for name, _, _ in calls()]


def test_a_stage_is_run_seed_by_seed_and_what_chooses_a_rate_before_what_needs_it(calls, ablation_main):
    assert ablation_main() == 0
    assert names(calls) == ['paper-0', 'goyal-eta4-100', 'goyal-eta8-100', 'goyal-0', 'paper-1', 'goyal-1',
                            'no-warmup-0', 'once-0', 'no-warmup-1']


def test_the_rate_of_highest_accuracy_is_chosen_and_of_equals_the_lowest(calls, ablation_main, tmp_path, tiny,
                                                                        made_up):
    ablation_main('--arms', 'goyal', '--seeds', '0')
    results = Results(tmp_path / 'kept')
    assert results.eta_scale(tiny, tiny.arms['goyal']) == 8
    assert '--eta-scale 8 ' in stored(tmp_path)['goyal-0']['command']
    for eta_scale in (8, 4):
        results.add('tiny', {**made_up(tiny, 'goyal', 100, 0.3, eta_scale=eta_scale), 'arm': f'g{eta_scale}'})
    results = Results(tmp_path / 'other')
    for eta_scale in (8, 4):
        results.add('tiny', {**made_up(tiny, 'goyal', 100, 0.3, eta_scale=eta_scale), 'arm': f'g{eta_scale}'})
    assert results.eta_scale(tiny, tiny.arms['goyal']) == 4


def test_no_rate_is_chosen_before_all_were_tried(tmp_path, tiny, made_up):
    results = Results(tmp_path)
    results.add('tiny', made_up(tiny, 'goyal', 100, 0.3, eta_scale=4))
    assert results.eta_scale(tiny, tiny.arms['goyal']) is None
    assert [training.command is None for training in trainings(tiny, ['goyal'], (0,), results)] \
        == [False, False, True]


def test_runs_have_one_thread_each_and_the_lowest_priority(calls, ablation_main):
    ablation_main('--arms', 'paper', '--seeds', '0')
    assert calls() == [['paper-0', '1', 19]]


def test_results_hold_what_the_report_needs_and_no_host_or_path(calls, ablation_main, tmp_path):
    ablation_main('--arms', 'paper', '--seeds', '1')
    run = stored(tmp_path)['paper-1']
    assert run['log']['validation/main/accuracy'] == pytest.approx([0.2055, 0.411])
    assert run['loss'] == {'every': 1, 'means': [3.0, 1.5]}
    assert run['seconds'] == 14 and run['diverged'] is None and run['commit']
    assert run['hardware'].startswith('1 process on 2-core X, ')
    text = json.dumps(run) + (tmp_path / 'kept' / 'README.md').read_text()
    assert 'secret' not in text and str(tmp_path) not in text


def test_second_start_runs_only_what_is_missing(calls, ablation_main):
    ablation_main('--arms', 'paper,no-warmup', '--seeds', '0')
    ablation_main('--arms', 'paper,no-warmup', '--seeds', '0,1')
    assert names(calls)[2:] == ['paper-1', 'no-warmup-1']


def test_runs_of_two_machines_add_up(calls, ablation_main, tmp_path):
    ablation_main('--arms', 'paper', '--seeds', '0')
    (tmp_path / 'kept').rename(tmp_path / 'one')
    ablation_main('--arms', 'paper', '--seeds', '1')
    os.rename(tmp_path / 'one' / 'results' / 'tiny' / 'paper-0.json',
              tmp_path / 'kept' / 'results' / 'tiny' / 'paper-0.json')
    ablation_main('--arms', 'paper', '--seeds', '0,1')
    assert len(calls()) == 2 and len(stored(tmp_path)) == 2


def test_arm_whose_options_changed_is_run_again(calls, ablation_main, tmp_path, tiny, monkeypatch):
    ablation_main('--arms', 'paper', '--seeds', '0')
    object.__setattr__(tiny, 'options', tiny.options + ' --jitter')
    try:
        ablation_main('--arms', 'paper', '--seeds', '0')
    finally:
        object.__setattr__(tiny, 'options', tiny.options.replace(' --jitter', ''))
    assert len(calls()) == 2 and '--jitter' in stored(tmp_path)['paper-0']['command']


def test_diverged_run_is_a_result(calls, ablation_main, tmp_path, monkeypatch):
    monkeypatch.setenv('DIVERGES', 'none')
    assert ablation_main('--arms', 'no-warmup,paper', '--seeds', '0') == 0
    assert stored(tmp_path)['no-warmup-0']['diverged'] == 2
    assert 'diverged: 1' in (tmp_path / 'kept' / 'README.md').read_text()


def test_failed_run_is_named_and_the_others_are_kept(calls, ablation_main, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BREAKS', 'none')
    assert ablation_main('--arms', 'no-warmup,paper', '--seeds', '0') == 1
    assert set(stored(tmp_path)) == {'paper-0'}
    assert 'no-warmup, seed 0: status 2' in capsys.readouterr().err


def test_run_that_ended_with_0_in_the_middle_is_not_a_result(calls, ablation_main, tmp_path, monkeypatch,
                                                             capsys):
    monkeypatch.setenv('LOST', 'none')
    assert ablation_main('--arms', 'no-warmup,paper', '--seeds', '0') == 1
    assert set(stored(tmp_path)) == {'paper-0'}
    assert 'no-warmup, seed 0: status 0' in capsys.readouterr().err


def test_a_signal_stops_the_runs_under_way_with_status_75_and_starts_no_more(calls, ablation_main, tmp_path,
                                                                            monkeypatch):
    monkeypatch.setenv('WAITS', 'none')
    monkeypatch.setenv('PARENT', str(os.getpid()))
    assert ablation_main() == 75
    assert names(calls)[-1] == 'no-warmup-0' and 'no-warmup-0' not in stored(tmp_path)


def test_a_result_that_cannot_be_kept_ends_the_runs_under_way(calls, ablation_main, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, 'No space left on device', 'paper-0.json')

    monkeypatch.setattr(results.Results, 'add', full)
    monkeypatch.setenv('WAITS', 'none')
    with subprocess.Popen(['sleep', '60']) as told:  # in this program's place
        monkeypatch.setenv('PARENT', str(told.pid))
        assert ablation_main('--arms', 'paper,no-warmup', '--seeds', '0', at_a_time=2) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'No space left on device' in line and 'paper-0.json' in line


def test_a_signal_as_the_last_run_ends_has_stopped_nothing(calls, ablation_main, monkeypatch):
    add = results.Results.add

    def add_and_stop(*words):
        add(*words)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(results.Results, 'add', add_and_stop)
    assert ablation_main('--arms', 'paper', '--seeds', '0') == 0


def test_progress_tells_what_is_done_and_the_time_left(calls, ablation_main, capsys):
    ablation_main('--arms', 'paper', '--seeds', '0,1,2')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '0 of 3 runs done, under way: paper-0 0%'
    assert any(line.startswith('1 of 3 runs done, under way: paper-1') and line.endswith(' left')
               for line in lines)
    assert '3 of 3 runs done' in lines


@pytest.mark.parametrize('digit, different, status', [(0.0, [], 0), (1e-12, ['main/loss'], 1)])
def test_verify_compares_every_digit(calls, ablation_main, tmp_path, digit, different, status):
    ablation_main('--arms', 'paper', '--seeds', '0')
    path = tmp_path / 'kept' / 'results' / 'tiny' / 'paper-0.json'
    run = json.loads(path.read_text())
    run['log']['main/loss'][1] += digit
    path.write_text(json.dumps(run))
    assert ablation_main('--arms', 'paper', '--seeds', '0', '--verify') == status
    assert stored(tmp_path)['paper-0']['again']['different'] == different
    assert len(calls()) == 2


def test_too_few_images_are_a_user_error(calls, ablation_main, monkeypatch, capsys):
    images = [0] * 31
    monkeypatch.setattr('jobs.ablation.runs.input.open_sets',
                        lambda *_: (type('Images', (list,), {'fingerprint': lambda self: 'a'})(images),) * 2)
    assert ablation_main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert '31 images are too few for the set tiny, in which 32 make one minibatch' in line


def test_runs_on_other_images_are_not_mixed_in(calls, ablation_main, tmp_path, made_up, tiny, capsys):
    Results(tmp_path / 'kept').add('tiny', {**made_up(tiny, 'paper', 0, 0.3), 'plan': {
        **made_up(tiny, 'paper', 0, 0.3)['plan'], 'data': 'c d'}})
    assert ablation_main() == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and calls() == []
