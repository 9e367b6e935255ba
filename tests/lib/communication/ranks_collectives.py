"""Run by test_collectives on several ranks: each case asserts on every rank, and rank 0 prints its name."""

from lib.communication import collectives, communicators
from lib.errors import UserError

import chainer
import numpy as np
from mpi4py import MPI

from tests import ranks_cases

world = MPI.COMM_WORLD
P = world.size


def make_half():
    link = chainer.Link()
    with link.init_scope():
        link.weight = chainer.Parameter(np.zeros((3, 3), np.float16))
    return link


@ranks_cases.case
def agreement_is_that_of_any_rank():
    comm = communicators.create_communicator('naive')
    assert collectives.agree(comm, False, world.rank == P - 1, True) == (False, True, True)


@ranks_cases.case
def broadcast_copies_parameters_and_persistents():
    comm = communicators.create_communicator('naive')
    model = chainer.Chain(conv=chainer.links.Convolution2D(3, 5, 3), bn=chainer.links.BatchNormalization(5),
                          half=make_half())
    for _, param in model.namedparams():
        param.array[...] = world.rank + 7
    model.bn.avg_mean[...] = world.rank + 1
    model.bn.avg_var[...] = np.arange(5) + world.rank
    model.bn.N = world.rank + 3
    collectives.broadcast_model(comm, model)
    assert all((param.array == 7).all() for param in model.params())
    assert (model.bn.avg_mean == 1).all() and (model.bn.avg_var == np.arange(5)).all() and model.bn.N == 3
    assert model.half.weight.dtype == np.float16


@ranks_cases.case
def broadcast_leaves_out_parameters_that_have_no_values_yet():
    comm = communicators.create_communicator('naive')
    model = chainer.Chain(known=chainer.links.Linear(2, 2), unknown=chainer.links.Linear(None, 2))
    for link in (model.known, model.unknown):
        link.b.array[...] = world.rank + 7
    collectives.broadcast_model(comm, model)
    assert model.unknown.W.array is None
    assert (model.known.b.array == 7).all() and (model.unknown.b.array == 7).all()


@ranks_cases.case
def broadcast_keeps_names_shapes_dtypes_and_bytes():
    comm = communicators.create_communicator('naive')
    arrays = {'scalar': np.array(3, np.int64), 'empty': np.empty((0, 4), np.float32), 'text': np.array('αβ'),
              'odd': np.arange(3, dtype=np.uint8), 'transposed': np.arange(12.0).reshape(3, 4).T}
    received = collectives.broadcast_arrays(comm, arrays if world.rank == 0 else None)
    assert list(received) == list(arrays)
    for name, array in arrays.items():
        assert received[name].shape == array.shape and received[name].dtype == array.dtype
        assert (received[name] == array).all()


def told(ranks, message):
    """What this rank learns of a step that fails on ``ranks``."""
    def step():
        if world.rank in ranks:
            raise UserError(message)
        return world.rank

    try:
        return collectives.collectively(world, step)
    except UserError as error:
        return str(error)


@ranks_cases.case
def all_ranks_learn_the_same_of_a_step_that_failed_on_some():
    host = collectives.host()
    assert told([], '') == world.rank
    assert told([1], 'no data') == f'rank 1 (host {host}): no data'
    assert told(range(P), 'no data') == 'no data'
    assert told([0, 1], f'no data {world.rank}') == (f'rank 0 (host {host}): no data 0; '
                                                     f'rank 1 (host {host}): no data 1')


@ranks_cases.case
def what_the_first_rank_finds_is_everyone_s():
    assert collectives.first(world, lambda value: value + 1, world.rank) == 1


@ranks_cases.case
def rows_of_all_ranks_are_gathered_in_their_order():
    comm = communicators.create_communicator('naive')
    rows = np.full((1 + world.rank % 2, 5), world.rank, np.float32)
    gathered = collectives.gather_rows(comm, rows)
    if world.rank == 0:
        assert gathered.dtype == np.float32
        assert gathered.tolist() == [[rank] * 5 for rank in range(P) for _ in range(1 + rank % 2)]
    else:
        assert gathered is None


if __name__ == '__main__':
    ranks_cases.run()
