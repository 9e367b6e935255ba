#!/usr/bin/env python
"""Train ResNet-50 on ImageNet with extremely large minibatches (Akiba, Suzuki, Fukuda 2017).

    mpirun -np 1024 python train_imagenet.py TRAIN VAL

One process per GPU, or per core on a CPU; without mpirun one process. ``--plan`` prints what the options
imply; README.md is the manual.
"""

import signal
import sys

early_signals = []
if __name__ == '__main__':
    # Imports may take seconds on a shared disk: a signal that comes meanwhile is remembered, not deadly.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: early_signals.append(number))

import contextlib
import os

from lib import (  # before NumPy: see lib.run.environment
    arguments,
    checkpoint,
    constants,
    errors,
    job_input,
    launcher,
    output,
    sample_set,
    summary,
)
from lib.errors import TrainingFault, UserError
from lib.loader import ImagePool
from lib.plan import Plan
from lib.run import lock
from lib.signals import StopRequest

# Length of --test: training, and validation of every process.
TEST_ITERATIONS = 4
TEST_VALIDATION_STEPS = 2


def main():
    stop_request = StopRequest(early_signals).install()
    args = arguments.parse()
    try:
        if args.plan:
            return show_plan(args)
        with contextlib.ExitStack() as stack:
            return train(args, stack, stop_request)
    except (UserError, TrainingFault) as error:
        if launcher.launched_rank() == 0:
            print(f'train_imagenet.py: {error}', file=sys.stderr, flush=True)
        return errors.EXIT_USER_ERROR if isinstance(error, UserError) else errors.EXIT_FAULT


def show_plan(args):
    """Print the plan of this job, or of another, and touch nothing; return the exit status."""
    if launcher.launched_rank() == 0:
        if args.train is not None:
            train_set, val_set = job_input.open_sets(args.train, args.val, args.root)
            sizes = len(train_set), len(val_set), train_set.n_class
        elif args.n_train is not None or args.synthetic:
            sizes = constants.IMAGENET_TRAIN, constants.IMAGENET_VAL, constants.IMAGENET_CLASSES
        else:
            sizes = sample_set.N_TRAIN, sample_set.N_VAL, len(sample_set.CLASSES)
        workers = args.workers or launcher.launched_size() * args.virtual_workers
        plan, _ = make_plan(args, args.n_train or sizes[0], *sizes[1:], data='', workers=workers)
        print(plan.describe())
    return errors.EXIT_FINISHED


def make_plan(args, n_train, n_val, n_class, data, workers):
    """The plan that follows from the options and the data, and the network that it is about."""
    import chainer
    import numpy as np

    import models
    from lib.batch_statistics import BatchStatistics

    chainer.global_config.dtype = chainer.mixed16 if args.dtype == 'mixed16' else np.dtype(args.dtype)
    on_sample_set = args.train is None and args.n_train is None and not args.synthetic
    arch = args.arch or ('resnet8' if on_sample_set else 'resnet50')
    model = models.build(arch, n_class, args.seed)
    recipe = arguments.chosen_recipe(args)
    models.set_batch_normalization_decay(model, recipe.bn_decay)
    test_images = TEST_VALIDATION_STEPS * args.val_batchsize * workers // args.virtual_workers
    plan = Plan(
        recipe=recipe, arch=arch, insize=args.insize or model.insize, n_class=n_class,
        n_parameters=model.count_params(), n_statistics=BatchStatistics(model).size,
        n_train=n_train, n_val=min(n_val, test_images) if args.test else n_val, data=data, workers=workers,
        virtual_workers=args.virtual_workers, batch=args.batchsize, seed=args.seed,
        allreduce_grad_dtype=args.allreduce_grad_dtype, loss_scale=args.loss_scale, dtype=args.dtype,
        jitter=args.jitter, skip_bad_images=args.on_bad_image == 'skip', synthetic=args.synthetic,
        initmodel=args.initmodel, max_iterations=TEST_ITERATIONS if args.test else None)
    return plan, model


def train(args, stack, stop_request):
    """Run the job that ``args`` describe, as one of its processes; return the exit status.

    What has to be closed in the end goes on ``stack``.
    """
    # Processes that decode images start before MPI, which does not survive a fork on every network.
    pool = attempt(lambda: stack.enter_context(
        ImagePool(0 if args.synthetic else args.loaderjob, args.loader)))

    # Imported here, because they import Chainer's parts of MPI.
    from extensions import checkpointing
    from lib import communicators, devices, faults, timing
    from lib.batch_statistics import BatchStatistics
    from lib.updater import WorkerUpdater

    world = communicators.world()
    faults.install_excepthook(world)
    stop_request.install()  # again, since MPI may have set handlers of its own

    def everyone(function, *arguments):
        """Call on every process; a failure of one is everyone's."""
        return faults.collectively(world, lambda: function(*arguments))

    def first(function, *arguments):
        """Call on rank 0; the result, or the failure, is everyone's."""
        return world.bcast(everyone(lambda: function(*arguments) if world.rank == 0 else None))

    pool = everyone(pool)

    # One process per device, joined by a communicator.
    communicator = everyone(devices.choose_communicator, args.communicator)
    comm = communicators.create_communicator(communicator, args.allreduce_grad_dtype, args.loss_scale,
                                             args.virtual_workers, world)
    device = devices.bind(communicator, comm)
    communicators.check_sum(comm, device.xp)

    # Data, network and plan, the same on every process.
    if args.train is None and not args.synthetic:
        everyone(sample_set.ensure_sample_set)  # on every host
    train_set, val_set = first(job_input.open_sets, args.train, args.val, args.root, args.synthetic,
                               args.n_train)
    plan, model = make_plan(args, len(train_set), len(val_set), train_set.n_class,
                            data=f'{train_set.fingerprint()} {val_set.fingerprint()}',
                            workers=comm.size * args.virtual_workers)
    versions = faults.versions()
    faults.check_job(comm.mpi_comm, {**plan.identity(), **versions, 'loops': None, 'host': None})
    everyone(lambda: world.rank == 0 and stack.enter_context(
        lock.hold(args.out, lock.patience(args.stall_timeout) if args.wait else 0)))
    first(output.prepare, args.out, args.resume, args.force)

    found = checkpointing.load(args.resume, args.out, comm, plan) if args.resume else None
    start = found.iteration if found else 0
    if args.initmodel and not found:
        first(checkpoint.load_model, args.initmodel, model,
              lambda line: print(line, file=sys.stderr, flush=True))
    communicators.broadcast_model(comm, model)
    model.to_device(device)
    optimizer = make_optimizer(plan, model)
    statistics = BatchStatistics(model, plan.virtual_workers)

    weights, mark = (os.path.join(args.out, name) for name in (output.WEIGHTS, errors.FINISHED_MARK))
    if start >= plan.iterations:
        if not first(os.path.exists, weights):  # stopped between the last checkpoint and the weights
            checkpoint.restore(found.arrays, model, optimizer)
            first(write_last, weights, checkpoint.save_model, model)
        if not first(os.path.exists, mark):
            first(write_last, mark, output.write_line, summary.describe(plan, found.description['log']))
        say(comm, f'{found.path}: finished already, all {plan.iterations} iterations are done')
        return errors.EXIT_FINISHED
    hardware = devices.describe(device, comm)
    say(comm, '\n'.join([plan.describe(), ', '.join(f'{name} {value}' for name, value in versions.items()),
                         hardware, *devices.notes(communicator)]))

    # Training.
    first(output.clear, args.out, [errors.FINISHED_MARK])
    images = job_input.Input(plan, comm.rank, pool, train_set, val_set, args.val_batchsize, args.on_bad_image)
    batches = everyone(images.training_batches, start)
    timer = timing.Timer(communicator == 'pure_nccl')
    updater = WorkerUpdater(plan, model, optimizer, comm, batches, statistics, timer, stop_request)
    trainer = everyone(make_trainer, args, updater, statistics, images, versions)
    if found:
        checkpointing.restore(found, trainer, statistics)
        say(comm, f'resumed from {found.path} at iteration {start}')
        found = None  # its arrays are large
    else:
        first(output.clear, args.out)
        if args.resume:
            say(comm, f'no checkpoint in {args.out}: starting afresh')
    first(output.write_json, os.path.join(args.out, 'plan.json'),
          {**plan.as_dict(), 'software': versions, 'hardware': hardware})
    trainer.run(show_loop_exception_msg=False)

    if updater.stopping and updater.iteration < plan.iterations:
        if trainer.get_extension('Checkpointing').failed:
            raise TrainingFault(f'stopped at iteration {updater.iteration}, but without a checkpoint')
        say(comm, f'stopped at iteration {updater.iteration}; continue with --resume auto')
        return errors.EXIT_STOPPED
    first(write_last, weights, checkpoint.save_model, model)
    told = summary.describe(plan, trainer.get_extension('LogReport').log)
    say(comm, told)
    first(write_last, mark, output.write_line, told)
    return errors.EXIT_FINISHED


def attempt(function):
    """Call now, and give a function that returns the result, or raises what was raised, later."""
    try:
        result = function()
    except UserError as raised:
        error = raised

        def fail():
            raise error
        return fail
    return lambda: result


def write_last(path, write, content):
    """Write ``model.npz``, with the averaged statistics of the last iteration, or the mark of the end."""
    try:
        write(path, content)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); make room and start again with '
                        '--resume auto, which writes it from the last checkpoint') from None


def make_optimizer(plan, model):
    """The paper's optimizer, with Goyal's weight decay on all but batch normalization's gamma and beta."""
    from lib.optimizers import RMSpropWarmup, exempt_from_weight_decay

    first = plan.hyperparameters(0)
    optimizer = RMSpropWarmup(*first, weight_decay=constants.WEIGHT_DECAY)
    optimizer.setup(model)
    exempt_from_weight_decay(model)
    if plan.dtype == 'mixed16':
        optimizer.use_fp32_update()
    return optimizer


def make_trainer(args, updater, statistics, images, versions):
    """Chainer's trainer with all that happens around the updates, on every process or on rank 0."""
    from chainer import training

    import extensions
    from extensions import progress
    from lib import faults, validation

    plan, comm, model = updater.plan, updater.comm, updater.model
    optimizer = updater.get_optimizer('main')
    epoch_end = extensions.EpochEnd(plan)
    checkpoint_due = extensions.CheckpointDue(plan, args.checkpoint_interval)
    trainer = training.Trainer(updater, extensions.RunEnd(plan), out=args.out)

    watchdog = faults.StallWatchdog(comm.mpi_comm, args.stall_timeout) if args.stall_timeout else None

    def validation_batches(start, stop):
        for batch in images.validation_batches(start, stop):
            if watchdog:
                watchdog.beat()
            yield batch

    # On every process, in the order in which they act after an iteration.
    trainer.extend(extensions.RecipeSchedule(plan, optimizer))
    trainer.extend(extensions.AveragedStatistics(statistics, comm, plan.recipe.bn_variance),
                   trigger=checkpoint_due)
    trainer.extend(extensions.Validation(comm, lambda: validation.evaluate_share(
        plan, comm.rank, model, statistics, validation_batches)), trigger=epoch_end)
    if args.on_bad_image == 'skip':
        trainer.extend(extensions.SkippedImages(images.skipped, comm.rank), trigger=epoch_end)
    timing_path = os.path.join(args.out, 'timing.csv') if comm.rank == 0 else None
    trainer.extend(extensions.IterationTimes(comm, plan, updater.timer, timing_path, epoch_end,
                                             checkpoint_due))
    job_log = extensions.JobLog(comm, plan.virtual_workers, args.out, epoch_end)
    trainer.extend(job_log)
    trainer.extend(extensions.Checkpointing(plan, model, optimizer, comm, statistics, job_log, args.out,
                                            versions), trigger=checkpoint_due)
    if watchdog:
        trainer.extend(extensions.Heartbeat(watchdog))
    if comm.rank != 0:
        return trainer

    # What people look at.
    trainer.extend(progress.table(), trigger=epoch_end)
    if progress.on_terminal():
        trainer.extend(progress.bar())
    trainer.extend(extensions.Plots(plan, args.out), trigger=epoch_end)
    if args.tensorboard:
        trainer.extend(extensions.TensorBoard(args.out), trigger=epoch_end)
    return trainer


def say(comm, text):
    """Print on rank 0, at once."""
    if comm.rank == 0:
        print(text, flush=True)


if __name__ == '__main__':
    sys.exit(main())
