"""Check the GPU path against the CPU's, and measure it, on one GPU.

    python jobs/gpu_check.py

Compares the update rule, the normalization of images, batch normalization's statistics and the exchange of
gradients with what the CPU computes; then trains ResNet-50 on synthetic images, 32 at a time, and prints
images per second, the parts of an iteration, and the update's bandwidth beside that of a copy. Started by
mpirun it also exchanges between GPUs. Exit status 0 if all agree, 1 if not, 2 without a usable GPU.
"""

import argparse
import itertools
import pathlib
import statistics
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from lib import constants, errors  # noqa: E402
from lib.batch_statistics import BatchStatistics  # noqa: E402
from lib.communication import collectives, communicators, launcher, wire  # noqa: E402
from lib.data import normalization  # noqa: E402
from lib.optimizers import RMSpropWarmup  # noqa: E402
from lib.run import arguments, devices, excepthook, machine, timing  # noqa: E402
from lib.updater import WorkerUpdater  # noqa: E402

import chainer  # noqa: E402
import chainer.links as L  # noqa: E402
import numpy as np  # noqa: E402
from chainer.backends import cuda  # noqa: E402

import train_imagenet  # noqa: E402

WARM_UP = 5  # iterations in which cuDNN tries its algorithms and CuPy compiles
REPEATS = 20


def parameters(arrays, device):
    link = chainer.Link()
    with link.init_scope():
        for index, array in enumerate(arrays):
            setattr(link, f'p{index}', chainer.Parameter(array.copy()))
    link.to_device(device)
    return link


def close(got, expected, tolerance):
    got, expected = cuda.to_cpu(got), cuda.to_cpu(expected)
    worst = abs(got.astype(float) - expected).max() / abs(expected).max()
    assert worst <= tolerance, f'differs by {worst:.2g} of the largest, expected at most {tolerance:.2g}'


def check_update(device, comm):
    """The update rule: 50 steps, with and without each of its terms."""
    rng = np.random.default_rng(0)
    theta, grads = rng.standard_normal(5000), rng.standard_normal((50, 5000))
    for hyperparameters in ({}, {'alpha_rmsprop': 0.002, 'alpha_sgd': 0.3, 'weight_decay': 1e-4},
                            {'alpha_rmsprop': 0.002, 'alpha_sgd': 0.0}):
        links = []
        places = [(chainer.get_device('@numpy'), False), (device, False), (device, True)]
        for place, laid_flat in places if comm.guard else places[:2]:
            link = parameters([theta.astype(np.float32)], place)
            optimizer = RMSpropWarmup(0.1, **hyperparameters).setup(link)
            if laid_flat:
                optimizer.lay_flat(comm.guard)
            for grad in grads:
                link.p0.grad = place.send(grad.astype(np.float32))
                optimizer.update()
            links.append(link)
        for link in links[1:]:
            close(link.p0.array, links[0].p0.array, 1e-4)


def check_normalization(device, comm):
    """Normalized images: the same bits."""
    images = np.random.default_rng(1).integers(0, 256, (8, 33, 47, 3), np.uint8)
    for dtype in (np.float32, np.float16):
        got = normalization.normalize(device.send(images), dtype)
        assert (cuda.to_cpu(got) == normalization.normalize(images, dtype)).all()


def check_statistics(device, comm):
    """Batch normalization's statistics: updated in the worker's own row, and averaged."""
    images = np.random.default_rng(2).standard_normal((2, 8, 12, 5, 5)).astype(np.float32)
    averages = []
    for place in (chainer.get_device('@numpy'), device):
        model = chainer.Sequential(L.BatchNormalization(12, decay=0.9), L.BatchNormalization(12, decay=0.0))
        model.to_device(place)
        rows = BatchStatistics(model, virtual_workers=2)
        for k in range(2):
            rows.select(k)
            model(place.send((k + 1) * images[k] + k))
        on_host, in_use = rows.rows_on_host(), cuda.to_cpu(model[0].avg_mean)
        averages.append([on_host, _average(rows, model, comm, 'mean'), _average(rows, model, comm, 'pooled')])
        assert (on_host[0] != on_host[1]).any(), 'the statistics were not updated in place'
        close(in_use, on_host[1][:12], 0)
    for expected, got in zip(*averages):
        close(got, expected, 1e-4)


def _average(rows, model, comm, variance):
    rows.select_average(comm, variance)
    return np.concatenate([cuda.to_cpu(array) for link in model for array in (link.avg_mean, link.avg_var)])


def check_exchange(device, comm):
    """Gradients packed, exchanged and unpacked: exact where float16 is; on one GPU the CPU's bits."""
    shapes = (3, 64, 7, 7), (64,), (1000, 13)
    whole, infinite = (whole_gradients(comm.rank, shapes) for _ in range(2))
    infinite[1][5] = np.inf
    # First all that the processes do together: one that finds a difference takes no more part in its check.
    means, finite = _exchanged(device, comm, whole)
    _, unnoticed = _exchanged(device, comm, infinite)
    totals = [sum(arrays) for arrays in zip(*(whole_gradients(rank, shapes) for rank in range(comm.size)))]
    for mean, total in zip(means, totals):
        assert (mean == total / np.float32(comm.size)).all(), 'whole numbers came out different'
    assert finite, 'whole numbers were taken for infinite ones'
    assert not unnoticed, 'an infinite gradient was not noticed'
    if comm.size == 1:
        rng = np.random.default_rng(3)
        for sigma in (1e-7, 1e-3, 1e3):
            drawn = [(sigma * rng.standard_normal(shape)).astype(np.float32) for shape in shapes]
            for mean, array in zip(_exchanged(device, comm, drawn)[0], drawn):
                payload = np.empty(array.size, comm.wire_dtype)
                wire.to_wire(array, payload)
                assert (mean.ravel() == payload.astype(np.float32)).all(), sigma


def whole_gradients(rank, shapes):
    """Numbers of -1, 0 and 1, float32: float16 holds their sums over 2048 ranks exactly, in any order."""
    rng = np.random.default_rng([3, rank])
    return [rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes]


def _exchanged(device, comm, gradients):
    """Exchange gradients; return their means on the host, and whether they were found to be finite."""
    link = parameters(gradients, device)
    for param, gradient in zip(link.params(), gradients):
        param.grad = device.send(gradient)
    comm.multi_node_mean_grad(link)
    return [np.array(cuda.to_cpu(param.grad)) for param in link.params()], comm.gradient_is_finite()


CHECKS = check_update, check_normalization, check_statistics, check_exchange


def check_all(device, comm):
    """Run the checks; yield of each a line, and whether all processes' GPUs agree with the CPU."""
    for check in CHECKS:
        fault = None
        try:
            check(device, comm)
        except AssertionError as error:
            fault = str(error)
        faults = comm.mpi_comm.allgather(fault)
        rank = next((rank for rank, fault in enumerate(faults) if fault is not None), None)
        outcome = 'as on the CPU' if rank is None else f'DIFFERENT FROM THE CPU: rank {rank}: {faults[rank]}'
        yield f'{check.__doc__} {outcome}', rank is None


def make_updater(device, comm, arch, insize, *options):
    """Make what trains a network on a synthetic minibatch, the same in every iteration."""
    args = arguments.parse(['--synthetic', '--arch', arch, '--insize', str(insize), *options])
    model = train_imagenet.make_model(args, constants.IMAGENET_CLASSES)
    plan = train_imagenet.make_plan(args, constants.IMAGENET_TRAIN, constants.IMAGENET_VAL, model, comm.size)
    collectives.broadcast_model(comm, model)
    model.to_device(device)
    optimizer = train_imagenet.make_optimizer(plan, model)
    optimizer.lr = 0.0  # the images are noise: measured, not learned
    rng = np.random.default_rng(4)
    batch = (rng.integers(0, 256, (plan.batch, insize, insize, 3), np.uint8),
             rng.integers(0, plan.n_class, plan.batch).astype(np.int32))
    return WorkerUpdater(plan, model, optimizer, comm, itertools.repeat(batch),
                         BatchStatistics(model, len(plan.workers_of(comm.rank))),
                         timing.Timer(device.xp is not np),
                         types.SimpleNamespace(received=None, iteration_done=lambda: None))


def train(device, comm, arch, insize, iterations):
    """Train on synthetic images; return the updater, and median seconds of an iteration's parts."""
    updater = make_updater(device, comm, arch, insize)
    for _ in range(WARM_UP):
        updater.update()
    updater.timer.collect()
    for _ in range(iterations):
        updater.update()
    spans = updater.timer.collect()
    updater.confirm()  # after a fault an update would do nothing, quickly
    return updater, {name: statistics.median(seconds) for name, seconds in spans.items()}


def time_update(updater):
    """Median seconds of an update alone."""
    timer, xp = updater.timer, updater.model.xp
    filled = xp.empty(0 if xp is np else 1 << 28, np.float32)
    for _ in range(REPEATS):
        filled.fill(0)  # a GPU is at it while its host asks for the update, which takes the host as long
        with timer('update'):
            updater.get_optimizer('main').update()
    return statistics.median(timer.collect()['update'])


def copy_bandwidth():
    """Bytes per second, read and written, of copies of 1 GiB within the GPU."""
    source = cuda.cupy.zeros(1 << 28, np.float32)
    target = cuda.cupy.empty_like(source)
    timer = timing.Timer(True)
    for _ in range(REPEATS):
        with timer('copy'):
            cuda.cupy.copyto(target, source)
    return 2 * source.nbytes / statistics.median(timer.collect()['copy'])


def report(plan, model, seconds):
    """Lines about what ``train`` and ``time_update`` have measured."""
    parts = {name: seconds[name] for name in ('allreduce', 'update', 'data')}
    parts = {'forward and backward': seconds['iteration'] - sum(parts.values()), **parts}
    yield (f'{plan.arch}, {plan.workers} x {plan.batch} images: '
           f'{plan.total_batch / seconds["iteration"]:.0f} images/s, {1e3 * seconds["iteration"]:.1f} ms an '
           'iteration (' + ', '.join(f'{name} {1e3 * value:.1f}' for name, value in parts.items()) + ')')
    # Reads gradient, theta, m and delta; writes the last three.
    rate = 7 * 4 * model.count_params() / seconds['update']
    yield f'update: {rate / 1e9:.0f} GB/s'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--insize', type=int, default=constants.INSIZE)
    parser.add_argument('--iterations', type=int, default=50)
    args = parser.parse_args()
    try:
        communicator = devices.choose_communicator('pure_nccl')
        comm = communicators.create_communicator(communicator)
        excepthook.install_excepthook(comm.mpi_comm)
        device = devices.bind(communicator, comm)
    except errors.UserError as error:
        if launcher.launched_rank() == 0:
            print(f'gpu_check.py: {error}', file=sys.stderr)
        return errors.EXIT_USER_ERROR

    def say(text):
        if comm.rank == 0:
            print(text, flush=True)

    say(machine.describe(device, comm))
    for note in machine.notes(communicator):
        say(note)
    agree = True
    for line, agrees in check_all(device, comm):
        agree = agree and agrees
        say(line)
    updater, seconds = train(device, comm, args.arch, args.insize, args.iterations)
    memory = cuda.memory_pool.total_bytes()  # before the measurements take more
    seconds['update'] = time_update(updater)
    for line in report(updater.plan, updater.model, seconds):
        say(line)
    say(f'copy within the GPU: {copy_bandwidth() / 1e9:.0f} GB/s; memory taken: {memory / 1e9:.1f} GB')
    return errors.EXIT_FINISHED if agree else errors.EXIT_FAULT


if __name__ == '__main__':
    sys.exit(main())
