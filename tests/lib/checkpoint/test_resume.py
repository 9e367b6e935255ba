"""What must agree between a checkpoint and the job that resumes from it."""

import types

from lib import recipe
from lib.checkpoint import directory, file, resume
from lib.errors import UserError
from lib.plan import Plan

import numpy as np
import pytest

from tests.lib.checkpoint.examples import ARRAYS, description


def test_equal_jobs_have_no_differences_after_a_round_trip(tmp_path):
    job = {'seed': 0, 'betas': (10, 5.5), 'recipe': {'transition': 'continuous', 'eta_scale': 1 / 3}}
    file.write(tmp_path / 'a.npz', {}, description(job=job))
    assert resume.compare_jobs(file.read(tmp_path / 'a.npz')[1]['job'], job) == []


def test_differences_are_spelled_out():
    saved = {'seed': 0, 'recipe': {'transition': 'continuous', 'eta': 0.1}, 'gone': True}
    current = {'seed': 1, 'recipe': {'transition': 'printed', 'eta': 0.1}, 'new': None}
    assert resume.compare_jobs(saved, current) == [
        'seed: 0 in the checkpoint, 1 now',
        'recipe.transition: continuous in the checkpoint, printed now',
        'new: not given in the checkpoint, null now',
        'gone: true in the checkpoint, not given now',
    ]


@pytest.mark.parametrize('size', [1, 2, 3])
def test_the_row_of_the_log_under_way_goes_on_with_its_sums_on_any_number_of_processes(monkeypatch, size):
    monkeypatch.setattr(resume.state, 'restore', lambda *trained: None)
    found = resume.Found('', {'log/sums': np.float64([[1, 2, 3], [10, 20, 30]])},
                         {'iteration': 5, 'log': [], 'elapsed_time': 7.5, 'versions': {}})
    restored = []
    log = types.SimpleNamespace(restore=lambda rows, sums: restored.append(sums))
    for rank in range(size):
        comm = types.SimpleNamespace(rank=rank, size=size)
        updater = types.SimpleNamespace(plan=None, comm=comm, model=None, get_optimizer=lambda name: None)
        resume.restore(found, types.SimpleNamespace(updater=updater, get_extension=lambda name: log))
        assert updater.iteration == 5
    assert np.sum(restored, axis=0).tolist() == [11, 22, 33]


@pytest.fixture
def resumed(tmp_path):
    """``resumed(**arrays)``: what a job of one process finds of its own checkpoint with these arrays."""
    plan = Plan(recipe.PUBLISHED['goyal'], 'resnet8', 32, 10, (1000,), 6, 64, 8, 'data', 2, processes=1)
    alone = types.SimpleNamespace(rank=0, size=1, allgather=lambda value: [value], bcast=lambda value: value)
    comm = types.SimpleNamespace(rank=0, size=1, mpi_comm=alone)

    def resume_from(**arrays):
        file.write(directory.path_of(tmp_path, 3), {**ARRAYS, **arrays},
                   description(3, job=plan.identity()))
        return resume.load('auto', tmp_path, comm, plan)
    return resume_from


SUMS = np.zeros((1, 3))


ROWS = np.zeros((2, 6), np.float32)
WHOLE = {'log/sums': SUMS, 'workers/statistics': ROWS}


def test_a_job_finds_its_checkpoint(resumed):
    assert resumed(**WHOLE).iteration == 3


@pytest.mark.parametrize('arrays, missing', [
    ({}, 'sums of the log'),
    ({'log/sums': np.zeros(3)}, 'sums of the log'),
    ({'log/sums': np.zeros((1, 2))}, 'sums of the log'),
    ({'log/sums': np.array(['a'])}, 'sums of the log'),
    ({'log/sums': SUMS}, "workers' statistics"),
    ({'log/sums': SUMS, 'workers/statistics': np.zeros((2, 5), np.float32)}, "workers' statistics"),
    ({'log/sums': SUMS}, "workers' statistics"),
    ({'log/sums': SUMS, 'workers/statistics': np.zeros((1, 6), np.float32)}, "workers' statistics"),
])
def test_rows_that_are_missing_or_of_another_shape_are_damage(resumed, arrays, missing):
    with pytest.raises(UserError, match=f'without the {missing}'):
        resumed(**arrays)


def test_an_older_checkpoint_serves_where_the_newest_counts_too_far(resumed, tmp_path, capsys):
    found = resumed(**WHOLE)
    file.write(directory.path_of(tmp_path, 4), WHOLE,
               {**found.description, 'iteration': 10 ** 12})
    assert resumed(**WHOLE).path.endswith('00000003.npz')
    assert 'iteration 1000000000000 of 90' in capsys.readouterr().err


def test_a_name_from_a_checkpoint_reaches_the_terminal_printable(resumed, tmp_path):
    resumed(**WHOLE)
    foreign = description(job={'\x1b[2J': 'x\n\x9b31m'})
    file.write(directory.path_of(tmp_path, 4), WHOLE, foreign)
    with pytest.raises(UserError) as caught:
        resumed(**WHOLE)
    assert str(caught.value).isprintable() and r'\x1b[2J: x\n\x9b31m in the checkpoint' in str(caught.value)


def test_differences_are_named_by_all_that_they_are_part_of():
    assert resume.compare_jobs({'a': {'b': {'c': 1}}}, {'a': {'b': {'c': 2}}}) == [
        'a.b.c: 1 in the checkpoint, 2 now']
