"""One iteration of the method: n workers' gradients, their mean, one update."""

import collections

from lib.communication import collectives
from lib.data import normalization
from lib.errors import TrainingFault, UserError
from lib.gpu.upload import Upload

import chainer
import chainer.functions as F
import numpy as np

from models import stages


class WorkerUpdater(chainer.training.Updater):
    """Updates the model as n synchronous workers, K of them played by this process in turn.

    An iteration: each worker computes the gradient of its own b images, normalized by batch normalization
    with those images alone; the communicator averages over all n workers; the optimizer makes one step.
    The gradients of the network's last layers leave while those of the first are computed. Before the last
    backward pass, in which they begin to, the processes agree on whether one of them has met an error or was
    asked to stop, so that all leave at the same iteration.

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
        self._upload = Upload(model.device)
        self.statistics = statistics
        self._stop_request = stop_request
        self._workers = len(plan.workers_of(comm.rank))
        self._params = stages.parameters(model)
        self._exchanged = None  # the iteration whose gradients were exchanged last
        if comm.guard is not None:
            optimizer.lay_flat(comm.guard)
        # By the stage after which it is complete.
        self._parts = {part[-1]: [param for stage in part for param in self._params[stage]]
                       for part in plan.parts}

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
            TrainingFault: On every process, if the mean gradient is not finite: on a CPU before the update;
                on a GPU, which then changes no parameter any more, in a later iteration, once the host of
                one process has learned of it, or by :meth:`confirm`.
        """
        with self.timer('iteration'):
            losses, corrects, sums, backward, error = [], [], {}, (), None
            try:
                for k in range(self._workers):
                    collections.deque(backward, maxlen=0)  # of the worker before
                    loss, correct, cuts = self._forward(k)
                    backward = self._backward(loss, cuts, sums)
                    losses.append(loss.array.astype('float64'))
                    corrects.append(correct)
            except UserError as raised:
                error = raised
            # Waiting for the slowest process is part of communication, as it is inside an all-reduce.
            with self.timer('agree'):
                failed, self.stopping, broken = collectives.agree(
                    self.comm, error is not None, self._stop_request.received is not None,
                    self.comm.is_known_to_have_failed())
                if failed:
                    collectives.raise_together(self.comm.mpi_comm, error)
            if broken:
                self.confirm()
            self._exchange_during(backward)
            self._exchanged = self.iteration
            if self.comm.guard is None:
                self.confirm()
            self._optimizer.update()
        self.iteration += 1
        self._stop_request.iteration_done()
        chainer.report({'main/loss': sum(losses) / self._workers,
                        'main/accuracy': sum(corrects) / (self._workers * self.plan.batch)})

    def confirm(self):
        """Make sure that all mean gradients so far were finite; on a GPU, wait until it has computed them.

        Raises:
            TrainingFault: On every process, if one was not: which, and why.
        """
        if self.comm.gradient_is_finite():
            return
        why = self.comm.explain_non_finite()
        iteration = self._exchanged - self.comm.since_fault
        # Before the first update the learning rate has done nothing.
        suspect = 'the learning rate may be too high (--eta-scale); ' if iteration else ''
        raise TrainingFault(f'iteration {iteration + 1} ({self.plan.moment(iteration)}): {suspect}{why}')

    def _forward(self, k):
        """Compute the loss of this process's worker ``k``, how many answers are right, and the cuts."""
        with self.timer('data'):
            batch = next(self._batches)
        images, t = self._upload.send(*batch)
        x = normalization.normalize(images, chainer.get_dtype(map_mixed16='float16'))
        self.statistics.select(k)
        y, cuts = stages.forward(self.model, x)
        y = F.cast(y, 'float32')
        loss = F.softmax_cross_entropy(y, t)
        # 0 * loss is NaN unless the loss is finite, and spoils the gradient, which all ranks check.
        loss.grad = self.model.xp.asarray(0 * loss.array + np.float32(self.plan.loss_scale))
        return loss, (y.array.argmax(axis=1) == t).sum(), cuts

    def _backward(self, loss, cuts, sums):
        """Run a worker's backward pass; yields each stage whose gradients, added to ``sums``, are there."""
        self.model.cleargrads()
        for stage in stages.backward(loss, cuts):
            if self._workers > 1:
                for name, param in self._params[stage]:
                    self._add_to(sums, name, param)
            yield stage

    @staticmethod
    def _add_to(sums, name, param):
        """Add a gradient to ``sums`` in float32, and take the sum for it: in float16 that may overflow."""
        if param.grad is not None:
            if name in sums:
                sums[name] += param.grad
            else:
                sums[name] = param.grad.astype('float32')
            param._set_grad_without_check(sums[name])  # float32 for float16 parameters too

    def _exchange_during(self, backward):
        """Run the last backward pass, and exchange gradients on the way, or after it."""
        late = []
        with self.comm.in_background():
            for stage in backward:
                if stage in self._parts:
                    if self.plan.overlap:
                        self.comm.start_mean_grad(self._parts[stage], self.timer('exchange'))
                    else:
                        late.append(self._parts[stage])
        with self.timer('allreduce'):
            for params in late:
                self.comm.start_mean_grad(params, self.timer('exchange'))
            self.comm.finish_mean_grad()
