"""One process's iterations; tests of the whole program show what several do together."""

import types

from lib.batch_statistics import BatchStatistics
from lib.communication import communicators
from lib.data.synthetic import SyntheticBatches
from lib.errors import TrainingFault, UserError
from lib.optimizers import RMSpropWarmup
from lib.plan import Plan
from lib.recipe import PUBLISHED
from lib.run.timing import Timer
from lib.sharding import Share
from lib.updater import WorkerUpdater

import chainer
import numpy as np
import pytest

import models
from models import stages

WORKERS = 2


@pytest.fixture
def updater():
    """Of a process that plays two workers, with a stand-in for its stop request."""
    model = models.build('resnet8', 5)
    plan = Plan(recipe=PUBLISHED['paper'], arch='resnet8', insize=16, n_class=5,
                stage_sizes=stages.sizes(model), n_statistics=0, n_train=100, n_val=0, data='',
                workers=WORKERS, processes=1, batch=4, allreduce_grad_dtype='float32')
    done = []
    stop_request = types.SimpleNamespace(received=None, done=done, iteration_done=lambda: done.append(1))
    return WorkerUpdater(
        plan, model, RMSpropWarmup(*plan.hyperparameters(0)).setup(model),
        communicators.create_communicator('naive', 'float32', virtual_workers=WORKERS),
        SyntheticBatches(5, 16, Share(0, 4, WORKERS, 0, WORKERS, 0, 6)), BatchStatistics(model, WORKERS),
        Timer(False), stop_request)


def update(updater):
    with chainer.Reporter().scope({}):
        updater.update()


def parameters(updater):
    return np.concatenate([param.array.ravel() for param in updater.model.params()])


def test_an_iteration_that_is_done_is_noted_and_a_stop_that_is_asked_for_is_known(updater):
    update(updater)
    assert len(updater._stop_request.done) == 1 and not updater.stopping
    updater._stop_request.received = 'SIGTERM'
    update(updater)
    assert len(updater._stop_request.done) == 2 and updater.stopping


def test_data_that_cannot_be_read_end_the_iteration_before_the_update(updater):
    def batches(first):
        yield first
        raise UserError('text.JPEG')
    updater._batches = batches(next(updater._batches))
    before = parameters(updater)
    with pytest.raises(UserError, match='text.JPEG'):
        update(updater)
    assert updater.iteration == 0 and np.array_equal(parameters(updater), before)


@pytest.mark.filterwarnings('ignore:(overflow|invalid value):RuntimeWarning')
def test_a_loss_that_is_not_finite_ends_the_training_though_its_gradient_is(updater):
    answers = np.array([3e38, -3e38, -3e38, -3e38, -3e38], np.float32)
    true_forward = updater.model.fc.forward
    updater.model.fc.forward = lambda x: 0 * true_forward(x) + chainer.functions.broadcast_to(
        chainer.Variable(answers), (len(x), 5))
    before = parameters(updater)
    with pytest.raises(TrainingFault, match='^iteration 1 '):
        update(updater)
    assert np.array_equal(parameters(updater), before)
