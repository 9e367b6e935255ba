"""The exchange of gradients, on one process and on several ranks; test_wire.py has its arithmetic."""

import gc
import os
import pathlib
import subprocess
import sys
import weakref

from lib.communication import collectives, communicators
from lib.errors import UserError

import chainer
import numpy as np
import pytest

from tests import ranks_cases

SCRIPT = 'tests/lib/communication/ranks_communicators.py'
ROOT = pathlib.Path(__file__).resolve().parents[3]


# One process

class NoMpi:
    """Stands for an MPI communicator of one process, and refuses everything that communicates."""

    rank, size = 0, 1

    def gather(self, value):
        return [value]

    def scatter(self, values):
        return values[0]


def make_model(dtype=np.float32):
    model = chainer.Link()
    with model.init_scope():
        model.b = chainer.Parameter(np.zeros((4, 3), dtype))
        model.a = chainer.Parameter(np.zeros(5, np.float32))
        model.lazy = chainer.Parameter()
    return model


def single(dtype='float16', scale=1.0, workers=1):
    return communicators.create_communicator('naive', dtype, scale, workers, mpi_comm=NoMpi())


def test_one_process_rounds_like_several_and_calls_no_mpi():
    model = make_model()
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal(5).astype(np.float32), rng.standard_normal((4, 3)).astype(np.float32)
    model.a.grad, model.b.grad = a.copy(), b.copy()
    comm = single(scale=8.0, workers=3)
    comm.multi_node_mean_grad(model)
    for got, values in ((model.a.grad, a), (model.b.grad, b)):
        rounded = (values / np.float32(3)).astype(np.float16)
        assert np.array_equal(got, rounded.astype(np.float32) / np.float32(8))
    assert collectives.agree(comm, True, False) == (True, False)
    collectives.broadcast_model(comm, model)


def test_parameter_without_gradient_is_zero_whatever_was_sent_before():
    model, comm = make_model(), single()
    model.a.grad, model.b.grad = np.ones(5, np.float32), np.ones((4, 3), np.float32)
    comm.multi_node_mean_grad(model)
    model.cleargrads()
    model.a.grad = np.ones(5, np.float32)
    comm.multi_node_mean_grad(model, zero_fill=True)
    assert (model.a.grad == 1).all() and (model.b.grad == 0).all()


def test_gradients_are_views_of_one_buffer_that_is_reused():
    model, comm = make_model(), single()
    bases = []
    for _ in range(2):
        model.a.grad, model.b.grad = np.ones(5, np.float32), np.ones((4, 3), np.float32)
        comm.multi_node_mean_grad(model)
        bases += [model.a.grad.base, model.b.grad.base]
    assert all(base is bases[0] for base in bases)


def test_parameters_are_packed_in_the_order_of_their_names():
    model, comm = make_model(), single()
    model.a.grad, model.b.grad = np.ones(5, np.float32), np.full((4, 3), 2, np.float32)
    comm.multi_node_mean_grad(model)
    assert model.a.grad.base.tolist() == [1] * 5 + [2] * 12


def test_float32_update_of_float16_parameters_gets_the_unscaled_mean_in_float32():
    # 2^-20 / 64 = 2^-26 is below float16's smallest subnormal.
    model, comm = make_model(np.float16), single(scale=64.0)
    del model.lazy
    optimizer = chainer.optimizers.SGD(lr=2.0 ** 20)
    optimizer.use_fp32_update()
    optimizer.setup(model)
    model.cleargrads()
    model.a.grad, model.b.grad = np.zeros(5, np.float32), np.full((4, 3), 2.0 ** -20, np.float16)
    comm.multi_node_mean_grad(model)
    optimizer.update()
    assert model.b.dtype == np.float16
    assert (model.b.array == -2.0 ** -6).all()


def test_local_gradients_are_released_once_the_mean_is_finite():
    model, comm = make_model(), single()
    model.a.grad, model.b.grad = np.ones(5, np.float32), np.ones((4, 3), np.float32)
    local = weakref.ref(model.b.grad)
    comm.multi_node_mean_grad(model)
    assert comm.gradient_is_finite()
    gc.collect()
    assert local() is None


def test_importing_the_module_leaves_mpi_alone():
    # Processes that load data are started before MPI.
    code = ('import sys; from lib import batch_statistics; from lib.communication import communicators; '
            'print("mpi4py.MPI" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout == 'False\n'


@pytest.mark.parametrize('arguments, named', [
    (('flat',), '--communicator flat'),
    (('naive', 'float8'), '--allreduce-grad-dtype float8'),
    (('naive', 'float16', 0.0), '--loss-scale 0.0'),
    (('naive', 'float16', float('inf')), '--loss-scale inf'),
    (('naive', 'float16', 1.0, 0), '--virtual-workers 0'),
])
def test_wrong_argument_is_named_in_one_line(arguments, named):
    with pytest.raises(UserError, match=named) as caught:
        communicators.create_communicator(*arguments, mpi_comm=NoMpi())
    assert '\n' not in str(caught.value)


# Several ranks: one run of all cases per number of ranks.



@pytest.mark.parametrize('case', ranks_cases.names(SCRIPT))
@pytest.mark.parametrize('ranks', [2, 3, 4])
def test_on_ranks(assert_on_ranks, ranks, case):
    assert_on_ranks(SCRIPT, ranks, case)


def test_a_process_without_a_launcher_makes_no_segment_in_shared_memory():
    program = ('import os; from lib.communication import communicators\n'
               'size = communicators.world().Get_size()\n'
               'print(size, "/sm_segment." in open("/proc/self/maps").read(), "OMPI_MCA_btl" in os.environ)')
    alone = {name: value for name, value in os.environ.items()
             if not name.startswith(('OMPI_', 'PMI', 'SLURM_'))}
    done = subprocess.run([sys.executable, '-c', program], text=True, capture_output=True, cwd=ROOT,
                          env=alone)
    assert done.stdout == '1 False False\n', done.stderr
