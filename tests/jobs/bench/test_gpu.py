"""The script for a machine with a GPU, with small commands in the place of its own."""

import json
import re
import shlex
import sys

import pytest

from jobs.bench import gpu


def piece(name, step, program, **more):
    return gpu.Piece(name, step, [sys.executable, '-c', program], **more)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """``call(pieces, *words)``: exit status, and each piece's outcome in ``figures.json``."""
    def call(pieces, *words, set_up=()):
        monkeypatch.setattr(gpu, 'pieces', lambda args: pieces)
        monkeypatch.setattr(gpu, 'set_up', lambda args: list(set_up))
        status = gpu.main([str(tmp_path / 'out'), *words])
        found = json.loads((tmp_path / 'out' / 'figures.json').read_text())
        return status, {name: result['outcome'] for name, result in found.items()}
    return call


def count(path):
    """A program that adds a character to a file."""
    return f'open({str(path)!r}, "a").write("x")'


def test_a_step_that_fails_is_named_by_the_status_and_the_others_go_on(call, capsys):
    status, outcomes = call([piece('check', 'check', 'print("it broke"); exit(3)'),
                             piece('tests', 'tests', ''), piece('torch 32 1', 'torch', 'exit(1)')])
    assert status == gpu.STATUS['check'] + gpu.STATUS['torch'] == 4 + 64
    assert outcomes == {'check': 'failed', 'tests': 'done', 'torch 32 1': 'failed'}
    out = capsys.readouterr().out
    assert re.search(r'^check: failed in \d+ s: status 3; it broke; see \S+check.txt$', out, re.MULTILINE)
    assert out.splitlines()[-1].endswith('FAILED: check, torch')


def test_what_is_done_is_not_done_again_and_what_failed_only_when_asked(call, tmp_path):
    pieces = [piece('check', 'check', count(tmp_path / 'done')),
              piece('tests', 'tests', count(tmp_path / 'failed') + '; exit(1)')]
    assert [call(pieces)[0], call(pieces)[0], call(pieces, '--retry')[0]] == [8, 8, 8]
    assert (tmp_path / 'done').read_text() == 'x' and (tmp_path / 'failed').read_text() == 'xx'


def test_what_may_not_fit_into_the_time_left_waits_for_the_next_call(call):
    pieces = [piece('check', 'check', ''), piece('tests', 'tests', '', seconds=10 ** 6)]
    assert call(pieces) == (gpu.EXIT_STOPPED, {'check': 'done', 'tests': 'left'})
    assert call(pieces) == (0, {'check': 'done', 'tests': 'done'})  # now it is the first


def test_a_training_that_was_stopped_is_left_and_no_other_command(call):
    pieces = [piece('sample', 'runs', 'exit(75)', training=True), piece('check', 'check', 'exit(75)')]
    assert call(pieces) == (gpu.STATUS['check'], {'sample': 'left', 'check': 'failed'})


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    slow = gpu.Piece('tests', 'tests', ['bash', '-c', 'sleep 1000 & wait'])
    outcome, found, _ = gpu.run(slow, tmp_path, 0.1)
    assert outcome == 'failed' and found['line'].startswith('not finished in 0 s')


def test_figures_that_cannot_be_read_are_a_failure(call):
    assert call([piece('check', 'check', 'print("nothing")', read=lambda output: {}['images'])])[1] == {
        'check': 'failed'}


def test_without_its_set_up_nothing_is_run(call, tmp_path):
    pieces = [piece('check', 'check', count(tmp_path / 'run'))]
    assert call(pieces, set_up=[piece('set-up', 'set-up', 'exit(1)')])[0] == gpu.EXIT_SET_UP
    assert call(pieces, set_up=[piece('set-up', 'set-up', 'exit(1)')])[0] == gpu.EXIT_SET_UP
    assert not (tmp_path / 'run').exists()
    assert call(pieces, set_up=[piece('set-up', 'set-up', '')])[0] == 0


def test_the_plan_names_every_command_once_and_touches_nothing(tmp_path, capsys):
    words = ['--plan', '--photographs', '/data/t', '/data/v', '--torch', 'T']
    assert gpu.main([str(tmp_path / 'out'), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = {name[2:]: shlex.split(command) for name, command in zip(lines[::2], lines[1::2])
                if name != '# set-up'}
    assert len(commands) == 4 + len(gpu.BATCHES) * gpu.TURNS * (len(gpu.OURS) + 1) + 2
    assert not (tmp_path / 'out').exists()
    assert all('pure_nccl' in command for name, command in commands.items()
               if name.split()[0] in ('scaling', 'ours', 'sample', 'photographs'))
    assert commands['torch 256 2'][:4] == ['T', 'jobs/bench/torch_step.py', '-B', '256']
    assert commands['photographs'][4:6] == ['/data/t', '/data/v']


def test_chosen_steps_alone_are_planned(tmp_path, capsys):
    gpu.main([str(tmp_path), 'check', '--plan', 'scaling'])
    names = [line for line in capsys.readouterr().out.splitlines() if line.startswith('# ')]
    assert [name for name in names if name != '# set-up'] == ['# check', '# scaling']


@pytest.mark.parametrize('capability, missing, extras', [
    (9.0, ['cupy', 'chainer'], ['.[gpu]']), (10.0, ['cupy'], ['.[gpu13]']), (9.0, ['chainer'], ['.']),
    (9.0, ['pytest'], ['.[test]']), (9.0, [], [])])
def test_the_set_up_installs_what_is_missing_alone(capability, missing, extras, monkeypatch):
    monkeypatch.setattr(gpu, 'compute_capability', lambda: capability)
    monkeypatch.setattr(gpu.shutil, 'which', lambda *args, **kwargs: '/usr/bin/mpirun')
    monkeypatch.setattr(gpu.importlib.util, 'find_spec', lambda name: None if name in missing else name)
    assert [piece.command[-1] for piece in gpu.set_up(None)] == extras


def test_an_unknown_step_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main([str(tmp_path), 'chekc'])
    assert stop.value.code == 2 and 'chekc: no such step' in capsys.readouterr().err
