"""Trains with the program's own parts and says after every iteration whether all ranks hold the same bits."""

import sys

from lib import constants
from lib.batch_statistics import BatchStatistics
from lib.communication import collectives, communicators
from lib.data.synthetic import SyntheticBatches
from lib.optimizers import RMSpropWarmup, exempt_from_weight_decay
from lib.plan import Plan
from lib.recipe import PUBLISHED
from lib.run.signals import StopRequest
from lib.run.timing import Timer
from lib.sharding import Share
from lib.updater import WorkerUpdater

import chainer
import numpy as np

import models
from models import stages

dtype = sys.argv[1]
comm = communicators.create_communicator('naive', dtype)
model = models.build('resnet8', 5, seed=comm.rank)  # different weights: the broadcast must make them equal
collectives.broadcast_model(comm, model)
plan = Plan(recipe=PUBLISHED['paper'], arch='resnet8', insize=16, n_class=5,
            stage_sizes=stages.sizes(model), n_statistics=0, n_train=100, n_val=0, data='',
            workers=comm.size, processes=comm.size, batch=4, allreduce_grad_dtype=dtype)
optimizer = RMSpropWarmup(*plan.hyperparameters(0), weight_decay=constants.WEIGHT_DECAY).setup(model)
exempt_from_weight_decay(model)
batches = SyntheticBatches(5, 16, Share(0, 4, comm.size, comm.rank, 1, 0, 6))
updater = WorkerUpdater(plan, model, optimizer, comm, batches, BatchStatistics(model), Timer(False),
                        StopRequest([]))

reporter = chainer.Reporter()
before = np.concatenate([param.array.ravel() for param in model.params()])
for iteration in range(6):
    with reporter.scope({}):
        updater.update()
    state = [param.array for param in model.params()]
    state += [array for param in model.params() for array in param.update_rule.state.values()]
    bits = np.concatenate([array.ravel() for array in state]).tobytes()
    same = len(set(comm.mpi_comm.allgather(bits))) == 1
    if comm.rank == 0:
        after = np.concatenate([param.array.ravel() for param in model.params()])
        print(f'iteration {iteration + 1}: same {same}, moved {bool((after != before).any())}')
        before = after
