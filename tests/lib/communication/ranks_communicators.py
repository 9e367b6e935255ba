"""Run by test_communicators on several ranks: each case asserts on every rank, and rank 0 prints its name."""

from unittest import mock

from lib.communication import allreduce, communicators, non_finite, wire

import chainer
import chainer.functions as F
import numpy as np
from mpi4py import MPI

from tests import ranks_cases

world = MPI.COMM_WORLD
P = world.size


def make_model(shapes, dtype=np.float32):
    model = chainer.Link()
    with model.init_scope():
        for index, shape in enumerate(shapes):
            setattr(model, f'p{index}', chainer.Parameter(np.zeros(shape, dtype)))
    return model


def gradients_of(rank, shapes, sigma=1e-3, seed=0):
    rng = np.random.default_rng([seed, rank])
    return [(rng.standard_normal(shape) * sigma).astype(np.float32) for shape in shapes]


def exchange(comm, shapes, sigma=1e-3):
    model = make_model(shapes)
    for param, gradient in zip(model.params(), gradients_of(comm.rank, shapes, sigma)):
        param.grad = gradient
    comm.multi_node_mean_grad(model)
    return np.concatenate([param.grad.ravel() for param in model.params()])


def flat(rank, shapes, sigma=1e-3):
    return np.concatenate([gradient.ravel() for gradient in gradients_of(rank, shapes, sigma)])


def assert_same_everywhere(value):
    values = world.allgather(value)
    assert all(other == values[0] for other in values)


@ranks_cases.case
def mean_is_within_the_stated_bound():
    shapes = [(3, 7, 5), (1001,), (64, 33)]
    for dtype, u, tiny in (('float16', 2.0 ** -11, 2.0 ** -25), ('float32', 2.0 ** -24, 0.0)):
        for K in (1, 3):
            for S in (1.0, 128.0):
                comm = communicators.create_communicator('naive', dtype, S, K)
                for sigma in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
                    G = np.stack([flat(rank, shapes, sigma * S * K) for rank in range(P)]).astype(np.float64)
                    M, A = G.mean(axis=0) / (K * S), abs(G).mean(axis=0) / (K * S)
                    bound = u * (abs(M) + A) + (1 + 1 / P) * tiny / S + (P + 2) * 2.0 ** -24 * A
                    g = exchange(comm, shapes, sigma * S * K)
                    assert (abs(g - M) <= (1 + 4 * u) * bound).all(), (dtype, K, S, sigma)


@ranks_cases.case
def mean_over_workers_is_exact_where_processes_play_more_or_fewer():
    # Process r plays r + 1 workers, whose gradients are all r, times the loss scale.
    n = P * (P + 1) // 2
    for dtype, tolerance in (('float16', 2.0 ** -10), ('float32', 2.0 ** -22)):
        comm = communicators.create_communicator('naive', dtype, 4.0, n / P)
        model = make_model([(5,)])
        model.p0.grad = np.full(5, 4 * world.rank * (world.rank + 1), np.float32)
        comm.multi_node_mean_grad(model)
        np.testing.assert_allclose(model.p0.grad, sum(r * (r + 1) for r in range(P)) / n, rtol=tolerance)


@ranks_cases.case
def ranks_hold_the_same_bits():
    for dtype in ('float16', 'float32'):
        comm = communicators.create_communicator('naive', dtype)
        for sizes in ([12 * 64], [1], [P - 1], [P + 1], [70001, 3]):
            assert_same_everywhere(exchange(comm, [(size,) for size in sizes]).tobytes())


@ranks_cases.case
def exchange_gives_the_bits_of_the_pure_functions():
    assert_bits_of_the_pure_functions()


@ranks_cases.case
def between_hosts_it_gives_the_same_bits():
    with mock.patch.object(allreduce, '_share_memory', lambda *_: None):
        assert_bits_of_the_pure_functions()


def assert_bits_of_the_pure_functions():
    shapes = [(123, 7), (600001,)]  # several turns, the last not a multiple of the ranks
    for dtype in ('float16', 'float32'):
        comm = communicators.create_communicator('naive', dtype, 8.0, 3)
        payloads = np.empty((P, 123 * 7 + 600001), dtype)
        for rank in range(P):
            wire.to_wire(flat(rank, shapes), payloads[rank], 3)
        total = np.empty(payloads.shape[1], dtype)
        wire.sum_payloads(payloads, total)
        expected = np.empty(total.size, np.float32)
        wire.from_wire(total, P * 8.0, expected)
        assert exchange(comm, shapes).tobytes() == expected.tobytes()


def exchange_in_parts(comm, shapes):
    """The last parameters first, as backward has them; a later part is larger than the first."""
    model = make_model(shapes)
    for param, gradient in zip(model.params(), gradients_of(comm.rank, shapes)):
        param.grad = gradient
    params = sorted(model.namedparams())
    for part in (params[2:], params[1:2], params[:1]):
        comm.start_mean_grad(part)
    comm.finish_mean_grad()
    return np.concatenate([param.grad.ravel() for param in model.params()])


@ranks_cases.case
def parts_have_the_bits_of_the_whole():
    shapes = [(17,), (600001,), (123, 7), (P,)]
    for share_memory in (allreduce._share_memory, lambda *_: None):
        with mock.patch.object(allreduce, '_share_memory', share_memory):
            for dtype in ('float16', 'float32'):
                for K in (1, 3, 2.4):
                    comm = communicators.create_communicator('naive', dtype, 8.0, K)
                    whole = exchange(comm, shapes)
                    assert exchange_in_parts(comm, shapes).tobytes() == whole.tobytes()
                    assert comm.gradient_is_finite()


@ranks_cases.case
def between_hosts_a_part_moves_on_between_functions_of_backward():
    with mock.patch.object(allreduce, '_share_memory', lambda *_: None):
        comm = communicators.create_communicator('naive', 'float16')
        model = filled_model(world.rank)
        comm.start_mean_grad(sorted(model.namedparams()))
    with comm.in_background():
        while comm._waiting:  # until it is done, without a wait for it
            F.sum(chainer.Variable(np.ones(3, np.float32))).backward()
    assert [turn for part in comm._started for turn in part.finite] == [True]
    comm.finish_mean_grad()
    for param in model.params():
        assert (param.grad == (P - 1) / 2).all()


@ranks_cases.case
def processes_that_come_to_the_parts_at_different_times_get_the_same():
    shapes = [(17,), (60001,), (123, 7), (P,)]
    with mock.patch.object(allreduce, '_share_memory', lambda *_: None):
        comm = communicators.create_communicator('naive', 'float32')
        for late in range(P):
            if comm.rank == late:  # moves on at the very end alone
                with mock.patch.object(comm, '_progress', lambda: None):
                    got = exchange_in_parts(comm, shapes)
            else:
                got = exchange_in_parts(comm, shapes)
            assert_same_everywhere(got.tobytes())


@ranks_cases.case
def fewer_elements_than_ranks():
    comm = communicators.create_communicator('naive', 'float32')
    model = make_model([(1,)])
    model.p0.grad = np.array([world.rank], np.float32)
    comm.multi_node_mean_grad(model)
    assert model.p0.grad.tolist() == [(P - 1) / 2]


@ranks_cases.case
def missing_gradient_counts_as_zero():
    comm = communicators.create_communicator('naive', 'float16')
    for zero_fill in (False, True):
        model = make_model([(5,), (2, 2), (3,)])
        model.p0.grad = np.full(5, 2, np.float32)
        model.p2.grad = np.full(3, 4, np.float32)
        if world.rank == 0:
            model.p1.grad = np.full((2, 2), P, np.float32)
        comm.multi_node_mean_grad(model, zero_fill)
        assert (model.p0.grad == 2).all() and (model.p2.grad == 4).all()
        if zero_fill or world.rank == 0:
            assert (model.p1.grad == 1).all()
        else:
            assert model.p1.grad is None


@ranks_cases.case
def split_communicators_average_their_own_ranks():
    comm = communicators.create_communicator('naive', 'float32', 2.0)
    part = comm.split(world.rank % 2, world.rank)
    model = make_model([(4,)])
    model.p0.grad = np.full(4, world.rank, np.float32)
    part.multi_node_mean_grad(model)
    assert (model.p0.grad == np.mean(range(world.rank % 2, P, 2)) / 2).all()


def explain(comm, model):
    comm.multi_node_mean_grad(model)
    assert not comm.gradient_is_finite()
    text = comm.explain_non_finite()
    assert_same_everywhere(text)
    assert '\n' not in text
    return text


def filled_model(value):
    model = make_model([(50000,), (7,), (3,)])
    for param in model.params():
        param.grad = np.full(param.shape, value, np.float32)
    return model


@ranks_cases.case
def finite_mean_is_called_finite_everywhere():
    comm = communicators.create_communicator('naive', 'float16')
    comm.multi_node_mean_grad(filled_model(1000))
    assert comm.gradient_is_finite()


@ranks_cases.case
def nan_is_explained_by_rank_and_parameter():
    for dtype in ('float16', 'float32'):
        comm = communicators.create_communicator('naive', dtype)
        model = filled_model(1)
        if world.rank == P - 1:
            model.p1.grad[2] = np.nan
            model.p2.grad[0] = np.inf
        text = explain(comm, model)
        assert f'/p1 holds NaN before the exchange, on rank {P - 1}' in text, text


@ranks_cases.case
def a_part_s_fault_is_explained_by_the_first_name_of_all_parts():
    comm = communicators.create_communicator('naive', 'float16')
    model = filled_model(1)
    model.p2.grad[1] = model.p1.grad[2] = np.nan
    for part in reversed(sorted(model.namedparams())):
        comm.start_mean_grad([part])
    comm.finish_mean_grad()
    assert not comm.gradient_is_finite()
    assert '/p1 holds NaN' in comm.explain_non_finite(), comm.explain_non_finite()


@ranks_cases.case
def overflow_of_a_payload_is_explained():
    comm = communicators.create_communicator('naive', 'float16', 64.0, 2)
    model = filled_model(1)
    if world.rank == 1:
        model.p1.grad[3] = -2 * 70000
    text = explain(comm, model)
    assert '/p1 overflows float16 on the wire, on rank 1: largest |g| 70000' in text, text
    assert '--loss-scale smaller than 64' in text and '--allreduce-grad-dtype float32' in text, text


@ranks_cases.case
def overflow_of_a_sum_is_explained():
    comm = communicators.create_communicator('naive', 'float16')
    model = filled_model(1)
    model.p1.grad[5] = 40000
    text = explain(comm, model)
    assert f'sum over {P} processes of element 5 of the gradient of /p1 overflows float16' in text, text
    assert f'{40000 * P}, limit 65504' in text, text
    assert np.isfinite(np.delete(model.p1.grad, 5)).all()
    assert np.isfinite(model.p0.grad).all() and np.isfinite(model.p2.grad).all()


@ranks_cases.case
def a_mean_that_is_not_finite_on_one_rank_alone_is_told_by_all():
    comm = communicators.create_communicator('naive', 'float32')
    mean = np.array([1, np.nan if world.rank == 1 else 1, 1], np.float32)
    text = non_finite.explain(comm, ['/p0'], [1.0], [lambda offset: 1.0], [mean])
    assert_same_everywhere(text)
    assert 'mean of element 1 of the gradient of /p0 is not finite on rank 1 alone' in text, text


@ranks_cases.case
def overflow_of_a_sum_is_told_for_one_worker():
    comm = communicators.create_communicator('naive', 'float16', 1.0, 2)
    model = filled_model(1)
    model.p1.grad[5] = 2 * 40000
    text = explain(comm, model)
    assert f'element 5 of the gradient of /p1 overflows float16: {40000 * P}, limit' in text, text


@ranks_cases.case
def one_bad_turn_of_several_is_not_called_finite():
    for element in (0, 25, 49):
        with mock.patch.object(allreduce, '_TURN', 20):
            comm = communicators.create_communicator('naive', 'float16')
            model = make_model([(50,)])
            model.p0.grad = np.ones(50, np.float32)
            model.p0.grad[element] = np.nan
            comm.multi_node_mean_grad(model)
            assert not comm.gradient_is_finite()


if __name__ == '__main__':
    ranks_cases.run()
