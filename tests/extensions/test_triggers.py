import types

import pytest

from extensions.triggers import CheckpointDue, EpochEnd, RunEnd


def trainer_at(iteration, stopping=False):
    return types.SimpleNamespace(updater=types.SimpleNamespace(iteration=iteration, stopping=stopping))


def plan(n_train=10, total_batch=4, iterations=6):
    return types.SimpleNamespace(n_train=n_train, total_batch=total_batch, iterations=iterations)


@pytest.mark.parametrize('n_train, total_batch, iterations, expected', [
    (10, 4, 6, [3, 5, 6]),      # 12, 20 and, though within an epoch, 24 images
    (10, 5, 6, [2, 4, 6]),      # exactly on the multiples
    (10, 25, 2, [1, 2]),        # several epochs in one iteration
    (10, 1, 10, [10])])
def test_epoch_ends_where_images_cross_a_multiple_and_at_the_last_iteration(n_train, total_batch, iterations,
                                                                            expected):
    trigger = EpochEnd(plan(n_train, total_batch, iterations))
    assert [i for i in range(1, iterations + 1) if trigger(trainer_at(i))] == expected


def test_checkpoints_come_at_their_interval_besides():
    trigger = CheckpointDue(plan(), interval=2)
    assert [i for i in range(1, 7) if trigger(trainer_at(i))] == [2, 3, 4, 5, 6]


def test_checkpoint_is_due_when_the_job_is_asked_to_stop():
    assert not CheckpointDue(plan())(trainer_at(1))
    assert CheckpointDue(plan())(trainer_at(1, stopping=True))


def test_run_ends_after_the_last_iteration_or_when_asked():
    trigger = RunEnd(plan())
    assert not trigger(trainer_at(5))
    assert trigger(trainer_at(6))
    assert trigger(trainer_at(1, stopping=True))
