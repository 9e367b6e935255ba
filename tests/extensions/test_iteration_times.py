import contextlib
import os
import types

from lib.communication import collectives

import chainer
import numpy as np
import pytest

from extensions import IterationTimes

HEADER = 'iteration,iteration_time,allreduce_time,exchange_time,data_time,loss\n'
PLAN = types.SimpleNamespace(total_batch=60, workers_of=lambda rank: range(2), parts=[(1,), (0,)])


def spans_of(allreduce=(), **spans):
    """Spans of iterations that do not wait for others and exchange two parts, half a second each."""
    return {'agree': [0.0] * len(allreduce), 'allreduce': list(allreduce),
            'exchange': [0.5, 0.5] * len(allreduce), **spans}


class Timer:
    """Gives out what it was told."""

    def __init__(self, **spans):
        self.spans = spans_of(**spans)

    def collect(self):
        spans, self.spans = self.spans, {}
        return spans


def always(trainer):
    return True


def extension_of(timer, path=None, log_due=always, checkpoint_due=always):
    return IterationTimes(types.SimpleNamespace(rank=0, size=1), PLAN, timer, path, log_due, checkpoint_due)


def trainer_at(iteration, loss=1.5):
    return types.SimpleNamespace(updater=types.SimpleNamespace(iteration=iteration),
                                 observation={'main/loss': np.float32(loss)})


def report_of(extension, *trainers):
    """What is observed in the last of these iterations."""
    for trainer in trainers or [trainer_at(1)]:
        observed = {}
        with chainer.Reporter().scope(observed):
            extension(trainer)
    return observed


def test_means_over_the_iterations_are_reported():
    timer = Timer(iteration=[2.0, 4.0], agree=[0.25, 0.25], allreduce=[0.25, 1.25],
                  exchange=[0.5, 0.75, 1.0, 0.25], data=[0.1, 0.2, 0.3, 0.4])
    extension = extension_of(timer)
    extension.initialize(trainer_at(0))
    assert report_of(extension) == pytest.approx({
        'iteration_time': 3.0, 'allreduce_time': 1.0, 'exchange_time': 1.25, 'data_time': 0.5,
        'images_per_sec': 20.0})


def test_a_row_of_the_log_has_the_means_since_the_last_whatever_checkpoints_come_between():
    timer = Timer(iteration=[2.0], allreduce=[0.5], data=[0.1, 0.2])
    extension = extension_of(timer, log_due=lambda trainer: trainer.updater.iteration > 1)
    extension.initialize(trainer_at(0))
    assert report_of(extension, trainer_at(1)) == {}
    timer.spans = spans_of(iteration=[4.0], allreduce=[1.5], data=[0.3, 0.4])
    assert report_of(extension, trainer_at(2))['iteration_time'] == 3.0
    timer.spans = spans_of(iteration=[7.0], allreduce=[1.5], data=[0.3, 0.4])
    assert report_of(extension, trainer_at(3))['iteration_time'] == 7.0


def test_every_iteration_is_written_with_its_loss_before_a_checkpoint(tmp_path):
    path = tmp_path / 'timing.csv'
    timer = Timer(iteration=[2.0, 3.0], allreduce=[0.5, 0.25], data=[0.1, 0.2, 0.0, 0.0])
    extension = extension_of(timer, path, lambda trainer: False,
                             lambda trainer: trainer.updater.iteration == 2)
    extension.initialize(trainer_at(0))
    report_of(extension, trainer_at(1, 2.75))
    assert path.read_text() == HEADER
    report_of(extension, trainer_at(2, 2.5))
    assert path.read_text() == (HEADER + '1,2.000000,0.500000,1.000000,0.300000,2.75\n'
                                '2,3.000000,0.250000,1.000000,0.000000,2.5\n')


def test_iterations_after_the_last_checkpoint_of_a_failed_run_have_times_alone(tmp_path):
    timer = Timer(iteration=[2.0], allreduce=[0.5], data=[0.1, 0.2])
    extension = extension_of(timer, tmp_path / 'timing.csv', lambda trainer: False, lambda trainer: False)
    extension.initialize(trainer_at(0))
    report_of(extension, trainer_at(1))
    extension.finalize()
    assert (tmp_path / 'timing.csv').read_text() == HEADER + '1,2.000000,0.500000,1.000000,0.300000,\n'


def test_the_loss_is_the_mean_over_the_workers_of_all_processes(tmp_path, monkeypatch):
    def add_another_process(comm, sums):  # with one worker, of loss 4
        sums += [1, 4]
    monkeypatch.setattr(collectives, 'sum_over_processes', add_another_process)
    path = tmp_path / 'timing.csv'
    extension = extension_of(Timer(iteration=[2.0], allreduce=[0.5], data=[0, 0]), path)
    extension.initialize(trainer_at(0))
    report_of(extension, trainer_at(1, 1.0))
    assert path.read_text().endswith(',2\n')  # (2 * 1 + 1 * 4) / 3


def test_resumed_run_continues_the_file(tmp_path):
    path = tmp_path / 'timing.csv'
    path.write_text(HEADER + '1,2,1,1,0,3\n')
    extension = extension_of(Timer(iteration=[3.0], allreduce=[0.5], data=[0, 0]), path)
    extension.initialize(trainer_at(1))
    report_of(extension, trainer_at(2))
    assert path.read_text().splitlines()[-1].startswith('2,3.0')
    assert len(path.read_text().splitlines()) == 3


def test_killed_run_leaves_no_row_twice_and_no_half_row(tmp_path):
    path = tmp_path / 'timing.csv'
    path.write_text(HEADER + '1,2,1,1,0,3\n2,2,1,1,0,3\n3,2,1,1,0,3\n2')  # of 24
    extension_of(Timer(), path).initialize(trainer_at(2))
    assert path.read_text() == HEADER + '1,2,1,1,0,3\n2,2,1,1,0,3\n'


def test_full_disk_leaves_no_half_row_and_later_iterations_are_written(tmp_path, capsys, full_disk):
    path = tmp_path / 'timing.csv'
    timer = Timer()
    extension = extension_of(timer, str(path))
    extension.initialize(trainer_at(0))
    for seconds in (1.0, 2.0, 3.0):
        timer.spans = spans_of(iteration=[seconds], allreduce=[0.5], data=[0.0, 0.25])
        with full_disk(path.stat().st_size + 10) if seconds == 2 else contextlib.nullcontext():
            report_of(extension)
    assert path.read_text().splitlines() == [
        HEADER.strip(), '1,1.000000,0.500000,1.000000,0.250000,1.5',
        '3,3.000000,0.500000,1.000000,0.250000,1.5']
    assert 'timing.csv was not written (No space left on device); training goes on' in capsys.readouterr().err


@pytest.mark.parametrize('exchanges', [[0.5], [0.5, 0.6]])  # failed before the exchange, or after
def test_iteration_that_failed_is_left_out(exchanges):
    timer = Timer(iteration=[2.0], allreduce=exchanges * 3, data=[0.1, 0.2, 0.3])
    extension = extension_of(timer)
    extension.initialize(trainer_at(0))
    assert report_of(extension)['data_time'] == pytest.approx(0.3)


def test_a_link_or_a_pipe_in_the_files_place_is_replaced_and_not_written_to(tmp_path):
    (tmp_path / 'precious').write_text('text')
    (tmp_path / 'link').symlink_to(tmp_path / 'precious')
    os.mkfifo(tmp_path / 'pipe')
    for name in ('link', 'pipe'):
        extension_of(Timer(), tmp_path / name).initialize(trainer_at(3))
        assert (tmp_path / name).read_text() == HEADER
    assert (tmp_path / 'precious').read_text() == 'text'
