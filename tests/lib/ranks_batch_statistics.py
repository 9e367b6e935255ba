"""Run by test_batch_statistics: four workers train a small network on 1, 2 or 4 processes.

Rank 0 prints one JSON object: the averages after training, NumPy's own from the workers' last minibatches,
and the calls of MPI that each average took.
"""

import json

from lib.batch_statistics import BatchStatistics
from lib.communication import communicators

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from mpi4py import MPI

WORKERS, ITERATIONS, BATCH, CHANNELS = 4, 3, 6, 3
EPS = 1e-5


class CountingComm:
    """An MPI communicator that counts the calls made of it."""

    def __init__(self, comm):
        self._comm = comm
        self.calls = []

    def __getattr__(self, name):
        value = getattr(self._comm, name)
        if callable(value):
            self.calls.append(name)
        return value


class Network(chainer.Chain):
    """Normalizes its input, mixes channels, normalizes again: the second depends on trained parameters."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        with self.init_scope():
            self.b_input = L.BatchNormalization(CHANNELS, decay=0.0, eps=EPS)
            self.mix = L.Linear(CHANNELS, 2, initialW=rng.standard_normal((2, CHANNELS)).astype(np.float32))
            self.a_mixed = L.BatchNormalization(2, decay=0.0, eps=EPS)

    def forward(self, x):
        return self.a_mixed(self.mix(self.b_input(x)))


def batch_of(iteration, worker):
    rng = np.random.default_rng([iteration, worker])
    return (rng.standard_normal((BATCH, CHANNELS)) * 2 + worker).astype(np.float32)


def numpy_statistics(x, gamma, beta, W, b):
    """Both layers' means and unbiased variances of one minibatch, in float64."""
    x = x.astype(np.float64)
    h = ((x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * gamma + beta) @ W.T + b
    return [h.mean(0), x.mean(0)], [h.var(0, ddof=1), x.var(0, ddof=1)], h


def main():
    mpi_comm = CountingComm(MPI.COMM_WORLD)
    K = WORKERS // mpi_comm.size
    comm = communicators.create_communicator('naive', 'float32', virtual_workers=K, mpi_comm=mpi_comm)
    model = Network()
    optimizer = chainer.optimizers.SGD(lr=0.1).setup(model)
    statistics = BatchStatistics(model, K)
    for iteration in range(ITERATIONS):
        at = [np.array(p.array, np.float64) for p in (model.b_input.gamma, model.b_input.beta, model.mix.W,
                                                      model.mix.b)]
        model.cleargrads()
        for k in range(K):
            statistics.select(k)
            y = model(batch_of(iteration, comm.rank * K + k))
            F.sum(y ** 3).backward()
        comm.multi_node_mean_grad(model)
        optimizer.update()

    result = {'size': statistics.size}
    rows = statistics.rows_on_host()
    for variance in ('mean', 'pooled'):
        mpi_comm.calls.clear()
        statistics.select_average(comm, variance)
        result[f'{variance} calls'] = list(mpi_comm.calls)
        links = [model.a_mixed, model.b_input]
        averages = [link.avg_mean for link in links] + [link.avg_var for link in links]
        result[variance] = np.concatenate(averages).tolist()
    assert np.array_equal(rows, statistics.rows_on_host())

    last = [numpy_statistics(batch_of(ITERATIONS - 1, worker), *at) for worker in range(WORKERS)]
    means = [np.mean([means[layer] for means, _, _ in last], axis=0) for layer in (0, 1)]
    variances = [np.mean([variances[layer] for _, variances, _ in last], axis=0) for layer in (0, 1)]
    result['numpy mean'] = np.concatenate(means + variances).tolist()
    # The variance of all images together holds the biased ones of the workers: take m/(m-1) back.
    images = [batch_of(ITERATIONS - 1, worker) for worker in range(WORKERS)]
    every = [np.concatenate([h for _, _, h in last]), np.concatenate(images).astype(np.float64)]
    pooled = [values.var(0) + variance / BATCH for values, variance in zip(every, variances)]
    result['numpy pooled'] = np.concatenate(means + pooled).tolist()
    everywhere = mpi_comm.allgather((result['mean'], result['pooled']))
    assert all(other == everywhere[0] for other in everywhere)
    if comm.rank == 0:
        print(json.dumps(result))


if __name__ == '__main__':
    main()
