import json
import types

from lib.communication import collectives

import numpy as np
import pytest

from extensions import JobLog


class Job:
    """A communicator of one process, and a trainer around it."""

    rank, size = 0, 1

    def __init__(self):
        self.updater = types.SimpleNamespace(iteration=0, epoch_detail=0.0)
        self.is_before_training = False
        self.elapsed_time = 7.0

    def step(self, log, loss, accuracy, **observed):
        self.updater.iteration += 1
        self.updater.epoch_detail = self.updater.iteration / 4
        self.observation = {'main/loss': np.float64(loss), 'main/accuracy': np.float64(accuracy), **observed}
        log(self)


def make(tmp_path, job, workers=1):
    return JobLog(job, workers, tmp_path, lambda trainer: trainer.updater.iteration % 2 == 0)


def test_row_holds_means_over_its_iterations_and_last_values_of_the_rest(tmp_path):
    job = Job()
    log = make(tmp_path, job)
    job.step(log, 3, 0.5, lr=0.1)
    job.step(log, 1, 1.0, lr=0.2, **{'validation/main/accuracy': 0.25})
    job.step(log, 9, 0.0, lr=0.3)
    rows = json.loads((tmp_path / 'log').read_text())
    assert rows == [{'epoch': 0.5, 'iteration': 2, 'elapsed_time': 7.0, 'main/loss': 2.0,
                     'main/accuracy': 0.75, 'lr': 0.2, 'validation/main/accuracy': 0.25}]


def test_every_row_begins_anew(tmp_path):
    job = Job()
    log = make(tmp_path, job)
    for loss in (3, 1, 9, 5):
        job.step(log, loss, 1.0)
    assert [row['main/loss'] for row in log.log] == [2.0, 7.0]


def test_row_is_the_whole_job_s(tmp_path, monkeypatch):
    def add_another_process(comm, sums):
        sums += [2, 10, 0]

    monkeypatch.setattr(collectives, 'sum_over_processes', add_another_process)
    job = Job()
    log = make(tmp_path, job)
    job.step(log, 3, 1.0)
    job.step(log, 1, 1.0)
    assert (log.log[0]['main/loss'], log.log[0]['main/accuracy']) == (3.5, 0.5)


def test_only_the_first_process_writes(tmp_path):
    job = Job()
    job.rank = 1
    log = make(tmp_path, job)
    job.step(log, 3, 1.0)
    job.step(log, 1, 1.0)
    assert len(log.log) == 1 and not (tmp_path / 'log').exists()


def test_row_under_way_continues_from_a_checkpoint(tmp_path):
    job = Job()
    whole = make(tmp_path, job, workers=3)
    for loss in (0.1, 0.7, 0.3):
        job.step(whole, loss, 0)
    rows, sums = list(whole.log), whole.sums
    job.step(whole, 0.9, 0)

    resumed = make(tmp_path, job, workers=3)
    resumed.restore(rows, sums)
    job.updater.iteration = 3
    job.step(resumed, 0.9, 0)
    assert resumed.log == whole.log


def test_full_disk_does_not_end_the_training(tmp_path, capsys):
    job = Job()
    (tmp_path / 'log').mkdir()
    log = make(tmp_path, job)
    job.step(log, 1, 1)
    job.step(log, 1, 1)
    assert 'log was not written' in capsys.readouterr().err
    assert len(log.log) == 1


@pytest.mark.parametrize('workers', [1, 4])
def test_a_minibatch_counts_once_per_worker(tmp_path, workers):
    job = Job()
    log = make(tmp_path, job, workers)
    job.step(log, 2, 0.5)
    assert log.sums.tolist() == [workers, 2 * workers, 0.5 * workers]


def test_values_are_fetched_in_time_and_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('extensions.job_log._UNREAD', 3)
    job = Job()
    log = JobLog(job, 1, tmp_path, lambda trainer: False)
    for loss in range(7):
        job.step(log, loss, 1)
    assert len(log._unread) == 1
    assert log.sums.tolist() == [7, 21, 7]
