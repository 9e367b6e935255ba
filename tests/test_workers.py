"""Workers are an idea, processes a means: the same training however it is carried out."""

import json

import numpy as np
import pytest

WORKERS = 4
# 20 iterations of 4 workers x 8 images on 75 images: 8 1/2 epochs.
LENGTH = ['-B', '8', '-E', str(20 * 32 / 75)]


def weights(out):
    with np.load(out / 'model.npz') as arrays:
        return {name: array for name, array in arrays.items() if array.dtype.kind == 'f'}


def largest_difference(a, b):
    """Largest difference over largest magnitude, of the array where that is largest."""
    return max(np.abs(a[name] - b[name]).max() / np.abs(a[name]).max() for name in a if np.any(a[name]))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Runs made so far, by their options: several tests look at the same ones."""
    return {}


@pytest.fixture
def run(train_into, runs, tmp_path_factory):
    def make(processes, *options):
        key = processes, *options
        if key not in runs:
            out = tmp_path_factory.mktemp('run')
            train_into(out / 'out', processes, '--virtual-workers', WORKERS // processes, *LENGTH, *options)
            runs[key] = out / 'out'
        return runs[key]
    return make


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_and_virtual_workers_train_the_same_network(run, processes):
    alone = weights(run(1, '--allreduce-grad-dtype', 'float32'))
    together = weights(run(processes, '--allreduce-grad-dtype', 'float32'))
    assert largest_difference(alone, together) < 1e-4


@pytest.mark.parametrize('processes', [2, 4])
def test_float16_wire_keeps_processes_and_virtual_workers_close(run, processes):
    # A process rounds the mean over its virtual workers once, several processes round each their own. Twenty
    # steps of RMSprop, which divides by the gradient's size, make that a few per cent; hence the bound.
    options = ['--allreduce-grad-dtype', 'float16', '--loss-scale', '1024']
    difference = largest_difference(weights(run(1, *options)), weights(run(processes, *options)))
    assert 0 < difference < 0.1


# 20 iterations of 12 workers x 4 images, which 5 processes do not divide.
UNEVEN = ['--workers', '12', '-B', '4', '-E', str(20 * 48 / 75), '--allreduce-grad-dtype', 'float32']


@pytest.fixture(scope='module')
def uneven(train_into, tmp_path_factory):
    """``uneven(processes, *options)`` trains 12 workers; returns its ``--out``."""
    runs = {}

    def make(processes, *options):
        key = processes, *options
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp('uneven') / 'out'
            train_into(runs[key], processes, *UNEVEN, *options)
        return runs[key]
    return make


def test_workers_that_processes_do_not_divide_train_the_same_network(uneven):
    assert largest_difference(weights(uneven(1)), weights(uneven(5))) < 1e-4


def test_log_and_validation_count_every_worker_once_where_blocks_differ(uneven):
    assert_same_log(uneven(1), uneven(5))


MOVING = ['--recipe', 'goyal', '--bn-variance', 'pooled', '--checkpoint-interval', '1']


def test_a_job_of_n_workers_goes_on_on_other_processes(uneven):
    # With a row of moving averages for each worker in the checkpoint.
    five = uneven(5, *MOVING)
    middle = sorted((five / 'checkpoint').iterdir())[0]
    three = uneven(3, *MOVING, '--resume', middle)
    assert largest_difference(weights(five), weights(three)) < 1e-4
    assert largest_difference(weights(uneven(1, *MOVING)), weights(three)) < 1e-4
    assert_same_log(five, three)


def test_fewer_workers_than_processes_are_refused(train):
    done = train(3, '--workers', '2', check=False)
    assert done.returncode == 2
    assert done.stderr.count('--workers 2: expected at least 3, one for each process') == 1, done.stderr


def test_the_plan_says_which_processes_play_more(uneven):
    plan = json.loads((uneven(5) / 'plan.json').read_text())
    assert (plan['workers'], plan['processes'], plan['virtual_workers']) == (12, 5, [2, 3])


def test_log_is_the_same_however_the_workers_are_played(run):
    rows = assert_same_log(*(run(n, '--allreduce-grad-dtype', 'float32') for n in (1, 4)))
    assert len(rows) == 9
    assert all(row['epoch'] == row['iteration'] * 32 / 75 for row in rows)


def assert_same_log(*outs):
    alone, together = (json.loads((out / 'log').read_text()) for out in outs)
    assert len(alone) == len(together)
    for row, other in zip(alone, together):
        assert (row['iteration'], row['epoch']) == (other['iteration'], other['epoch'])
        for key in ('main/loss', 'main/accuracy', 'validation/main/loss', 'validation/main/accuracy', 'lr',
                    'alpha_sgd', 'alpha_rmsprop'):
            assert row[key] == pytest.approx(other[key], rel=1e-3), key
    return alone


def test_every_row_follows_a_crossed_epoch_or_the_last_iteration(run):
    log = json.loads((run(1, '--allreduce-grad-dtype', 'float32') / 'log').read_text())
    assert [row['iteration'] for row in log] == [3, 5, 8, 10, 12, 15, 17, 19, 20]
