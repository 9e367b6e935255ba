from lib.communication import launcher

import pytest


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in launcher._RANK_VARIABLES + launcher._SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_process_launched_alone_is_rank_0_of_1():
    assert (launcher.launched_rank(), launcher.launched_size()) == (0, 1)


@pytest.mark.parametrize('rank, size', [('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
                                        ('PMI_RANK', 'PMI_SIZE'), ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS')])
def test_launchers_tell_rank_and_size(monkeypatch, rank, size):
    monkeypatch.setenv(rank, '5')
    monkeypatch.setenv(size, '8')
    assert (launcher.launched_rank(), launcher.launched_size()) == (5, 8)


def test_mpirun_inside_a_slurm_step_comes_first(monkeypatch):
    for name, value in {'SLURM_STEP_NUM_TASKS': '2', 'OMPI_COMM_WORLD_SIZE': '16',
                        'SLURM_PROCID': '1', 'OMPI_COMM_WORLD_RANK': '9'}.items():
        monkeypatch.setenv(name, value)
    assert (launcher.launched_rank(), launcher.launched_size()) == (9, 16)


@pytest.mark.parametrize('value', ['', 'many'])
def test_variable_without_a_number_says_nothing(monkeypatch, value):
    monkeypatch.setenv('PMI_SIZE', value)
    assert launcher.launched_size() == 1


def test_a_rank_knows_that_it_was_launched(monkeypatch):
    assert not launcher.is_launched()
    monkeypatch.setenv('PMIX_RANK', '0')
    assert launcher.is_launched()
