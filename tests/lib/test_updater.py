"""One process's iterations; tests of the whole program show what several do together."""

from lib.communication import communicators
from lib.errors import TrainingFault, UserError

import chainer
import numpy as np
import pytest

from jobs import gpu_check


@pytest.fixture
def updater():
    """Of a process that plays two workers, and that learns."""
    comm = communicators.create_communicator('naive', 'float32', virtual_workers=2)
    updater = gpu_check.make_updater(chainer.get_device('@numpy'), comm, 'resnet8', 16, '-B', '4',
                                     '--virtual-workers', '2')
    updater.get_optimizer('main').lr = 0.1
    return updater


def update(updater):
    with chainer.Reporter().scope({}):
        updater.update()


def parameters(updater):
    return np.concatenate([param.array.ravel() for param in updater.model.params()])


def test_an_iteration_that_is_done_is_noted_and_a_stop_that_is_asked_for_is_known(updater):
    done = []
    updater._stop_request.iteration_done = lambda: done.append(updater.iteration)
    update(updater)
    assert done == [1] and not updater.stopping
    updater._stop_request.received = 'SIGTERM'
    update(updater)
    assert done == [1, 2] and updater.stopping


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
    answers = np.full(updater.plan.n_class, -3e38, np.float32)
    answers[0] = 3e38
    true_forward = updater.model.fc.forward
    updater.model.fc.forward = lambda x: 0 * true_forward(x) + chainer.functions.broadcast_to(
        chainer.Variable(answers), (len(x), len(answers)))
    before = parameters(updater)
    with pytest.raises(TrainingFault, match='^iteration 1 '):
        update(updater)
    assert np.array_equal(parameters(updater), before)
