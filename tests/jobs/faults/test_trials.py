import itertools
import random
import types

from lib.checkpoint import file

import numpy as np
import pytest

from jobs.faults import soak, trials


@pytest.mark.parametrize('trial', [trials.damaged_checkpoint, trials.odd_image])
def test_drawn_files_are_survived(trial, tmp_path):
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert trial(random.Random(seed), folder) == ''


def test_damage_that_is_taken_for_whole_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(file, 'read', lambda path: ({'model/W': np.ones(1), 'log/sums': np.ones(1)}, {}))
    assert trials.damaged_checkpoint(random.Random(0), tmp_path)


def test_what_hangs_is_a_problem(tmp_path, monkeypatch):
    def hang(*arguments):
        trials.signal.raise_signal(trials.signal.SIGALRM)

    monkeypatch.setattr(trials, 'load_validation', hang)
    assert '_Hang' in trials.odd_image(random.Random(0), tmp_path)


def test_trials_are_counted_by_kind_and_what_was_not_survived_is_told_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, 'Runs', lambda *arguments: trials)
    for name in ('request_to_stop', 'full_disk', 'hostile_archive'):
        monkeypatch.setattr(trials, name, lambda bits, folder: '', raising=False)
    monkeypatch.setattr(soak.Trials, '_kill', lambda self, bits, folder: '')
    monkeypatch.setattr(trials, 'odd_image', lambda bits, folder: '' if bits.random() < 0.5 else 'a\nproblem')
    told = []
    monkeypatch.setattr(soak, 'time', types.SimpleNamespace(monotonic=itertools.count().__next__))
    done = soak.Trials(tmp_path, 0, told.append).run(100)  # that many trials
    failed = done.tried['odd image'] - done.survived['odd image']
    assert 0 < failed == len(told) == len(list(tmp_path.iterdir()))
    assert told[0].endswith(r': a\nproblem')
    assert done.tried['damaged checkpoint'] == done.survived['damaged checkpoint'] > 0
    assert done.summary().endswith('FAILED')
