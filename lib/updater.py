"""One iteration of the method: n workers' gradients, their mean, one update."""

from lib.communication import collectives
from lib.data import normalization
from lib.errors import TrainingFault, UserError

import chainer
import chainer.functions as F
import numpy as np


class WorkerUpdater(chainer.training.Updater):
    """Updates the model as n synchronous workers, K of them played by this process in turn.

    An iteration: each worker computes the gradient of its own b images, normalized by batch normalization
    with those images alone; the communicator averages over all n workers; the optimizer makes one step.
    Before the exchange the processes agree on whether one of them has met an error or was asked to stop, so
    that all leave at the same iteration.

    Attributes:
        iteration (int): Iterations done.
        statistics (lib.batch_statistics.BatchStatistics): The workers' statistics.
        stopping (bool): Whether any process was asked to stop, the same on all processes.
    """

    def __init__(self, plan, model, optimizer, comm, batches, statistics, timer, stop_request):
        self.plan = plan
        self.model = model
        self.comm = comm
        self.timer = timer
        self.iteration = 0
        self.stopping = False
        self._optimizer = optimizer
        self._batches = batches
        self.statistics = statistics
        self._stop_request = stop_request

    # What Chainer's trainer, triggers and extensions ask for. The clock is the number of images seen.

    @property
    def epoch_detail(self):
        """Images seen over N, fractional."""
        return self.plan.epoch_at(self.iteration)

    @property
    def previous_epoch_detail(self):
        return self.plan.epoch_at(max(self.iteration - 1, 0))

    @property
    def epoch(self):
        return int(self.epoch_detail)

    def connect_trainer(self, trainer):
        pass

    def finalize(self):
        pass

    def get_optimizer(self, name):
        return {'main': self._optimizer}[name]

    def get_all_optimizers(self):
        return {'main': self._optimizer}

    def update(self):
        """Run one iteration.

        Raises:
            UserError: On every process, if the data of one cannot be read.
            TrainingFault: On every process, before the update, if the mean gradient is not finite.
        """
        with self.timer('iteration'):
            error = None
            try:
                loss, accuracy = self._compute_gradient()
            except UserError as raised:
                error = raised
            # Waiting for the slowest process is part of communication, as it is inside an all-reduce.
            with self.timer('allreduce'):
                failed, self.stopping = collectives.agree(
                    self.comm, error is not None, self._stop_request.received is not None)
                if failed:
                    collectives.raise_together(self.comm.mpi_comm, error)
                self.comm.multi_node_mean_grad(self.model)
            if not self.comm.gradient_is_finite():
                # Before the first update the learning rate has done nothing.
                suspect = 'the learning rate may be too high (--eta-scale); ' if self.iteration else ''
                raise TrainingFault(f'iteration {self.iteration + 1} ({self.plan.moment(self.iteration)}): '
                                    f'{suspect}{self.comm.explain_non_finite(self.model)}')
            self._optimizer.update()
        self.iteration += 1
        self._stop_request.iteration_done()
        chainer.report({'main/loss': loss, 'main/accuracy': accuracy})

    def _compute_gradient(self):
        """Leave in ``param.grad`` the sum over this process's workers; return mean loss and accuracy."""
        plan = self.plan
        device = self.model.device
        losses, corrects, gradients = 0, 0, {}
        for k in range(plan.virtual_workers):
            with self.timer('data'):
                images, labels = next(self._batches)
            x = normalization.normalize(device.send(images), chainer.get_dtype(map_mixed16='float16'))
            t = device.send(labels)
            self.statistics.select(k)
            self.model.cleargrads()
            y = F.cast(self.model(x), 'float32')
            loss = F.softmax_cross_entropy(y, t)
            # 0 * loss is NaN unless the loss is finite, and spoils the gradient, which all ranks check.
            loss.grad = device.xp.asarray(0 * loss.array + np.float32(plan.loss_scale))
            loss.backward()
            if plan.virtual_workers > 1:
                self._add_gradients(gradients)
            losses += loss.array.astype('float64')
            corrects += (y.array.argmax(axis=1) == t).sum()
        for name, param in self.model.namedparams():
            if name in gradients:
                param._set_grad_without_check(gradients[name])  # float32 for float16 parameters too
        return losses / plan.virtual_workers, corrects / (plan.virtual_workers * plan.batch)

    def _add_gradients(self, sums):
        """Add the model's gradients to ``sums`` by name, in float32: in float16 the sum of K may overflow."""
        for name, param in self.model.namedparams():
            if param.grad is not None:
                if name in sums:
                    sums[name] += param.grad
                else:
                    sums[name] = param.grad.astype('float32')
