"""Run by test_guard on two ranks: each case asserts on every rank, and rank 0 prints its name.

With the argument ``unguarded`` the update has a defect: it does not ask whether an exchange has failed.
"""

import contextlib
import pathlib
import sys
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from lib.checkpoint import state  # noqa: E402
from lib.communication import communicators  # noqa: E402
from lib.errors import TrainingFault  # noqa: E402
from lib.gpu import flat  # noqa: E402
from lib.run import devices  # noqa: E402

import chainer  # noqa: E402
import numpy as np  # noqa: E402

from jobs import gpu_check  # noqa: E402
from models import stages  # noqa: E402
from tests import ranks_cases  # noqa: E402

DEVICES = []
stages._PART, stages._PART_PER_PROCESS = 1000, 0


def make_updater(*options, virtual_workers=1):
    """Of a small network whose gradients travel in several parts, and that learns."""
    comm = communicators.create_communicator('pure_nccl', virtual_workers=virtual_workers)
    if not DEVICES:
        DEVICES.append(devices.bind('pure_nccl', comm))
    updater = gpu_check.make_updater(DEVICES[0], comm, 'resnet8', 16, '-B', '2', *options)
    assert len(updater.plan.parts) > 1
    updater.get_optimizer('main').lr = 0.1
    return updater


@contextlib.contextmanager
def nan_on_rank_1(updater):
    """The gradients of one rank are NaN."""
    forward = updater.model.fc.forward
    factor = float('nan') if updater.comm.rank == 1 else 1.0
    with mock.patch.object(updater.model.fc, 'forward', lambda x: forward(x) * factor):
        yield


def values(updater):
    """Parameters and state on the host, without counters and batch normalization's statistics."""
    return {name: array for name, array in state.flatten(
        updater.model, updater.get_optimizer('main')).items() if array.ndim and 'avg_' not in name}


def assert_same(arrays, others):
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.tobytes() == others[name].tobytes(), name


def fault_of(act):
    try:
        act()
    except TrainingFault as fault:
        return str(fault)
    raise AssertionError('nothing was noticed')


def assert_named(text, iteration):
    assert text.startswith(f'iteration {iteration} '), text
    assert 'holds NaN before the exchange, on rank 1' in text, text


@ranks_cases.case
def nan_is_named_one_iteration_later_and_nothing_has_changed_since():
    for options in ([], ['--virtual-workers', '2'], ['--no-overlap']):
        updater = make_updater(*options, virtual_workers=2 if '2' in options else 1)
        for _ in range(2):
            updater.update()
        before = values(updater)
        with nan_on_rank_1(updater):
            updater.update()
        text = fault_of(updater.update)
        assert_named(text, 3)
        assert_same(values(updater), before)


@ranks_cases.case
def nan_is_named_by_the_first_parameter_of_all_parts():
    updater = make_updater()
    with nan_on_rank_1(updater):
        updater.update()
    first = min(name for name, _ in updater.model.namedparams())
    text = fault_of(updater.confirm)
    assert_named(text, 1)
    assert f'gradient of {first} ' in text, text


@ranks_cases.case
def all_processes_stop_where_the_first_has_learned_of_it():
    updater = make_updater()
    with nan_on_rank_1(updater):
        updater.update()
    known, asked = updater.comm.is_known_to_have_failed, []

    def slowly():
        """Rank 0's GPU seems to lag behind by two iterations, the others' for ever."""
        asked.append(known())
        return updater.comm.rank == 0 and len(asked) > 2 and asked[-1]

    with mock.patch.object(updater.comm, 'is_known_to_have_failed', slowly):
        updater.update()
        updater.update()
        assert_named(fault_of(updater.update), 1)


@ranks_cases.case
def what_one_process_alone_takes_for_a_fault_ends_all():
    updater = make_updater()
    updater.update()
    if updater.comm.rank == 1:
        updater.comm._finished[0].mean[...] = np.nan
        updater.comm.guard.failed_at[...] = 1
        updater.comm.guard.publish()
    text = fault_of(updater.confirm)
    assert text.startswith('iteration 1 ') and 'is not finite on rank 1 alone' in text, text


@ranks_cases.case
def a_fault_that_was_told_is_forgotten():
    updater = make_updater()
    with nan_on_rank_1(updater):
        updater.update()
    fault_of(updater.confirm)
    before = values(updater)
    updater.update()
    updater.confirm()
    after = values(updater)
    assert any(array.tobytes() != before[name].tobytes() for name, array in after.items())
    assert all(np.isfinite(array).all() for array in after.values())


@ranks_cases.case
def overflow_of_the_wire_and_of_the_sum_are_told_with_their_values():
    comm = communicators.create_communicator('pure_nccl', loss_scale=2.0)
    for on_rank, value, expected in (
            (1, -70000.0, '/p1 overflows float16 on the wire, on rank 1: largest |g| 70000'),
            (None, 40000.0, 'element 5 of the gradient of /p1 overflows float16: 80000, limit 65504')):
        model = chainer.Link()
        with model.init_scope():
            for name, size in (('p0', 5000), ('p1', 7), ('p2', 3)):
                setattr(model, name, chainer.Parameter(np.zeros(size, np.float32)))
        model.to_device(DEVICES[0])
        for param in model.params():
            param.grad = DEVICES[0].xp.ones(param.size, 'float32')
        if on_rank in (None, comm.rank):
            model.p1.grad[5] = value
        comm.multi_node_mean_grad(model)
        assert not comm.gradient_is_finite()
        text = comm.explain_non_finite()
        assert expected in text, text


if __name__ == '__main__':
    if sys.argv[1:] == ['unguarded']:
        flat.UPDATE = flat.UPDATE.replace('if (*failed_at != NEVER) return;', '')
    ranks_cases.run()
