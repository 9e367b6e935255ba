import types

import chainer
import pytest

from extensions import IterationTimes


class Timer:
    """Gives out what it was told."""

    def __init__(self, **spans):
        self.spans = spans

    def collect(self):
        spans, self.spans = self.spans, {}
        return spans


def report_of(extension):
    observed = {}
    with chainer.Reporter().scope(observed):
        extension(None)
    return observed


PLAN = types.SimpleNamespace(total_batch=60, virtual_workers=2)


def trainer_at(iteration):
    return types.SimpleNamespace(updater=types.SimpleNamespace(iteration=iteration))


def test_means_over_the_iterations_are_reported():
    timer = Timer(iteration=[2.0, 4.0], allreduce=[0.5, 1.5], data=[0.1, 0.2, 0.3, 0.4])
    extension = IterationTimes(PLAN, timer)
    extension.initialize(trainer_at(0))
    assert report_of(extension) == pytest.approx({
        'iteration_time': 3.0, 'allreduce_time': 1.0, 'data_time': 0.5, 'images_per_sec': 20.0})


def test_every_iteration_is_written(tmp_path):
    timer = Timer(iteration=[2.0], allreduce=[0.5], data=[0.1, 0.2])
    extension = IterationTimes(PLAN, timer, tmp_path / 'timing.csv')
    extension.initialize(trainer_at(0))
    report_of(extension)
    timer.spans = dict(iteration=[3.0], allreduce=[0.25], data=[0.0, 0.0])
    extension.finalize()
    assert (tmp_path / 'timing.csv').read_text().splitlines() == [
        'iteration,iteration_time,allreduce_time,data_time', '1,2.000000,0.500000,0.300000',
        '2,3.000000,0.250000,0.000000']


def test_resumed_run_continues_the_file(tmp_path):
    path = tmp_path / 'timing.csv'
    path.write_text('iteration,iteration_time,allreduce_time,data_time\n1,2,1,0\n')
    extension = IterationTimes(PLAN, Timer(iteration=[3.0], allreduce=[0.5], data=[0, 0]), path)
    extension.initialize(trainer_at(1))
    report_of(extension)
    assert path.read_text().splitlines()[-1].startswith('2,3.0')
    assert len(path.read_text().splitlines()) == 3


def test_killed_run_leaves_no_row_twice_and_no_half_row(tmp_path):
    path = tmp_path / 'timing.csv'
    path.write_text('iteration,iteration_time,allreduce_time,data_time\n1,2,1,0\n2,2,1,0\n3,2,1,0\n4,2')
    IterationTimes(PLAN, Timer(), path).initialize(trainer_at(2))
    assert path.read_text() == 'iteration,iteration_time,allreduce_time,data_time\n1,2,1,0\n2,2,1,0\n'


@pytest.mark.parametrize('exchanges', [[0.5], [0.5, 0.6]])  # failed before the exchange, or after
def test_iteration_that_failed_is_left_out(exchanges):
    timer = Timer(iteration=[2.0], allreduce=exchanges, data=[0.1, 0.2, 0.3])
    extension = IterationTimes(PLAN, timer)
    extension.initialize(trainer_at(0))
    assert report_of(extension)['data_time'] == pytest.approx(0.3)
