import types

from lib.optimizers import RMSpropWarmup
from lib.plan import Plan
from lib.recipe import PUBLISHED

import chainer
import pytest

from extensions import RecipeSchedule


@pytest.fixture
def plan():
    return Plan(recipe=PUBLISHED['paper'], arch='', insize=1, n_class=2, stage_sizes=(1,), n_statistics=0,
                n_train=1281167, n_val=0, data='', workers=1024, processes=1024)


def values(optimizer):
    return optimizer.lr, optimizer.alpha_sgd, optimizer.alpha_rmsprop


def trainer_at(iteration):
    return types.SimpleNamespace(updater=types.SimpleNamespace(iteration=iteration))


@pytest.mark.parametrize('start', [0, 1000])
def test_first_iteration_of_a_start_or_a_resume_has_its_own_values(plan, start):
    optimizer = RMSpropWarmup(lr=123.0)
    RecipeSchedule(plan, optimizer).initialize(trainer_at(start))
    assert values(optimizer) == tuple(plan.hyperparameters(start))


def test_every_iteration_is_made_and_reported_with_the_values_of_its_own_epoch(plan):
    optimizer = RMSpropWarmup(lr=123.0)
    extension = RecipeSchedule(plan, optimizer)
    extension.initialize(trainer_at(0))
    reporter = chainer.Reporter()
    for iteration in range(plan.iterations):
        expected = tuple(plan.hyperparameters(iteration))
        assert values(optimizer) == expected
        observed = {}
        with reporter.scope(observed):
            extension(trainer_at(iteration + 1))  # Chainer counts the finished iteration
        assert (observed['lr'], observed['alpha_sgd'], observed['alpha_rmsprop']) == expected
    assert extension.trigger == (1, 'iteration')
