#!/usr/bin/env python
"""Train ResNet-50 on ImageNet with extremely large minibatches (Akiba, Suzuki, Fukuda 2017).

    mpirun -np 1024 python train_imagenet.py TRAIN VAL

One process per GPU, or per core on a CPU; without mpirun one process. ``--plan`` prints what the options
imply; README.md is the manual.
"""

import os
import signal
import sys

STOP_SIGNALS = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
if __name__ == '__main__':
    # Imports may take seconds on a shared disk: a signal that comes meanwhile waits for their end.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

import contextlib
import gc

from lib import compiled, constants, errors, files, validation
from lib.batch_statistics import BatchStatistics
from lib.checkpoint import resume, state, weights
from lib.communication import collectives, launcher
from lib.data import input, sample_set
from lib.errors import TrainingFault, UserError, printable
from lib.optimizers import RMSpropWarmup, exempt_from_weight_decay
from lib.plan import Plan
from lib.run import arguments, description, lock, machine, output
from lib.run.job import count_workers, join
from lib.run.signals import Stopped, StopRequest
from lib.run.timing import Timer
from lib.updater import WorkerUpdater

from chainer import training

import extensions
import models
from extensions import progress
from models import stages

# Length of --test: training, and validation of every process.
TEST_ITERATIONS = 4
TEST_VALIDATION_STEPS = 2


def main():
    stop_request = StopRequest(STOP_SIGNALS)
    try:
        stop_request.install()
        args = arguments.parse()
        if args.plan:
            return show_plan(args)
        with contextlib.ExitStack() as stack:
            return train(args, stack, stop_request)
    except (UserError, TrainingFault) as error:
        if launcher.launched_rank() == 0:
            errors.say(f'train_imagenet.py: {printable(error)}')
        return errors.EXIT_USER_ERROR if isinstance(error, UserError) else errors.EXIT_FAULT
    except Stopped as stopped:
        errors.say(f'train_imagenet.py: rank {launcher.launched_rank()}: {stopped}')
        if launcher.launched_size() > 1:
            stop_request.end(errors.EXIT_STOPPED)  # the others wait for this one
        return errors.EXIT_STOPPED
    finally:
        stop_request.close()


def show_plan(args):
    """Print the plan of this job, or of another, and touch nothing; return the exit status."""
    if launcher.launched_rank() == 0:
        if args.train is not None:
            train_set, val_set = input.open_sets(args.train, args.val, args.root)
            n_train, n_val, n_class = len(train_set), len(val_set), train_set.n_class
        elif arguments.plans_imagenet(args) or args.synthetic:
            n_train, n_val = constants.IMAGENET_TRAIN, constants.IMAGENET_VAL
            n_class = constants.IMAGENET_CLASSES
        else:
            n_train, n_val, n_class = sample_set.N_TRAIN, sample_set.N_VAL, len(sample_set.CLASSES)
        processes = launcher.launched_size()
        if args.workers and processes == 1:
            processes = args.workers // args.virtual_workers
        plan = make_plan(args, args.n_train or n_train, n_val, make_model(args, n_class), processes)
        errors.say(description.describe(plan), sys.stdout)
        errors.check_output()
    return errors.EXIT_FINISHED


def train(args, stack, stop_request):
    """Run the job that ``args`` describe, as one of its processes; return the exit status.

    What has to be closed in the end goes on ``stack``.
    """
    job = join(args, stack, stop_request)
    train_set, val_set = open_data(args, job)
    model = make_model(args, train_set.n_class)
    plan = make_plan(args, len(train_set), len(val_set), model, job.comm.size,
                     f'{train_set.fingerprint()} {val_set.fingerprint()}')
    versions = job.everyone(machine.versions)
    machine.check_job(job.comm.mpi_comm, {
        **plan.identity(), **versions, 'loops': None, 'host': None, 'vectors': None,
        compiled.VARIABLE: versions['vectors'] if job.on_cpu else None})
    claim_output(args, job, stack)

    found = resume.load(args.resume, args.out, job.comm, plan) if args.resume else None
    if args.initmodel and not found:
        job.first(weights.load, args.initmodel, model, args.initmodel_skip, errors.say_line)
    collectives.broadcast_model(job.comm, model)
    model.to_device(job.device)
    optimizer = make_optimizer(plan, model)
    network = weights.describe(plan, train_set.class_names, args.val_batchsize)
    if found and found.iteration >= plan.iterations:
        return finish_again(job, plan, args.out, found, model, optimizer, network)

    hardware = machine.describe(job.device, job.comm)
    job.say('\n'.join([description.describe(plan), ', '.join(map(' '.join, versions.items())), hardware,
                       *machine.notes(job.communicator)]))
    job.first(output.clear, args.out, [errors.FINISHED_MARK])
    data = input.Input(plan, job.comm.rank, job.pool, train_set, val_set, args.val_batchsize,
                       args.on_bad_image)
    batches = job.everyone(data.training_batches, found.iteration if found else 0)
    updater = WorkerUpdater(plan, model, optimizer, job.comm, batches,
                            BatchStatistics(model, len(plan.workers_of(job.comm.rank))),
                            Timer(job.communicator == 'pure_nccl'), stop_request)
    trainer = job.everyone(make_trainer, args, job.watchdog, updater, data, versions, network)
    begin(args, job, trainer, found, versions['vectors'])
    found = None  # its arrays are large
    job.first(files.write_json, os.path.join(args.out, 'plan.json'),
              {**description.as_dict(plan), **network, 'software': versions, 'hardware': hardware})
    stop_request.begin()
    return run(job, trainer, args.out, network)


def open_data(args, job):
    """Open the training and the validation set, the same on every process."""
    on_sample_set = args.train is None and not args.synthetic
    if on_sample_set:
        places = job.everyone(sample_set.ensure_sample_set)  # in this host's own cache
    sets = job.first(input.open_sets, args.train, args.val, args.root, args.synthetic, args.n_train)
    if on_sample_set:
        for images, place in zip(sets, places):
            images.root = place
    return sets


def claim_output(args, job, stack):
    """Lock the output directory until ``stack`` is closed, and make it ready; on rank 0."""
    patience = lock.patience(args.stall_timeout) if args.wait else 0
    if job.watchdog:
        job.watchdog.beat(ahead=patience)
    job.everyone(lambda: job.comm.rank == 0 and stack.enter_context(lock.hold(args.out, patience)))
    job.first(output.prepare, args.out, args.resume, args.force)


def make_model(args, n_class):
    """Make the network that the options name, with its initial weights."""
    on_sample_set = not (args.train or args.synthetic or arguments.plans_imagenet(args))
    model = models.build(args.arch or ('resnet8' if on_sample_set else 'resnet50'), n_class, args.seed)
    models.set_batch_normalization_decay(model, arguments.chosen_recipe(args).bn_decay)
    return model


def make_plan(args, n_train, n_val, model, processes, fingerprint=''):
    """Derive the plan that follows from options, sizes and fingerprint of the data, and network."""
    if args.test:
        n_val = min(n_val, TEST_VALIDATION_STEPS * args.val_batchsize * processes)
    insize = args.insize or model.insize
    if insize < model.min_insize:
        raise UserError(f'--insize {insize}: {models.name_of(model)} takes {model.min_insize} pixels or more')
    plan = Plan(
        recipe=arguments.chosen_recipe(args), arch=models.name_of(model), insize=insize,
        n_class=model.fc.out_size, stage_sizes=stages.sizes(model),
        n_statistics=BatchStatistics(model).size, n_train=n_train, n_val=n_val, data=fingerprint,
        workers=count_workers(args, processes), processes=processes, batch=args.batchsize, seed=args.seed,
        allreduce_grad_dtype=args.allreduce_grad_dtype, loss_scale=args.loss_scale, dtype=args.dtype,
        tf32=args.tf32, jitter=args.jitter, skip_bad_images=args.on_bad_image == 'skip',
        synthetic=args.synthetic, initmodel=args.initmodel, initmodel_skip=args.initmodel_skip,
        overlap=args.overlap, max_iterations=TEST_ITERATIONS if args.test else None)
    plan.check()
    return plan


def make_optimizer(plan, model):
    """Make the paper's optimizer, with Goyal's weight decay on all but batch normalization's parameters."""
    first = plan.hyperparameters(0)
    optimizer = RMSpropWarmup(*first, weight_decay=constants.WEIGHT_DECAY)
    optimizer.setup(model)
    exempt_from_weight_decay(model)
    if plan.dtype == 'mixed16':
        optimizer.use_fp32_update()
    return optimizer


def make_trainer(args, watchdog, updater, data, versions, network):
    """Make Chainer's trainer with all that happens around the updates, on every process or on rank 0."""
    plan, comm, model, statistics = updater.plan, updater.comm, updater.model, updater.statistics
    optimizer = updater.get_optimizer('main')
    epoch_end = extensions.EpochEnd(plan)
    checkpoint_due = extensions.CheckpointDue(plan, args.checkpoint_interval)

    def validation_batches(start, stop):
        again = updater.iteration < plan.iterations and not updater.stopping
        for batch in data.validation_batches(start, stop, again):
            if watchdog:
                watchdog.beat()
            yield batch

    job_log = extensions.JobLog(comm, len(plan.workers_of(comm.rank)), args.out, epoch_end)
    timing_path = os.path.join(args.out, 'timing.csv') if comm.rank == 0 else None
    # In the order in which they act after an iteration: what reports, the log, who reads it, the checkpoint.
    acting = [
        (extensions.RecipeSchedule(plan, optimizer), None),
        (extensions.FiniteMeans(), checkpoint_due),
        (extensions.AveragedStatistics(statistics, comm, plan.recipe.bn_variance), checkpoint_due),
        (extensions.Validation(comm, lambda: validation.evaluate_share(
            plan, comm.rank, model, statistics, validation_batches)), epoch_end),
        *([(extensions.SkippedImages(data.skipped, comm.rank), epoch_end)] if plan.skip_bad_images else []),
        (extensions.IterationTimes(comm, plan, updater.timer, timing_path, epoch_end, checkpoint_due), None),
        (job_log, None),
        *([(extensions.Heartbeat(watchdog), None)] if watchdog else []),
        *(watched(args, plan, epoch_end) if comm.rank == 0 else []),
        (extensions.Checkpointing(plan, model, optimizer, comm, statistics, job_log, args.out, versions,
                                  network), checkpoint_due),
    ]
    # Chainer makes the directory: only where rank 0 writes.
    out = args.out if comm.rank == 0 else os.curdir
    trainer = training.Trainer(updater, extensions.RunEnd(plan), out=out)
    for place, (extension, trigger) in enumerate(acting):
        trainer.extend(extension, trigger=trigger, priority=-place)  # the highest acts first
    return trainer


def watched(args, plan, epoch_end):
    """List what people look at, with its triggers; for rank 0."""
    return [
        (progress.table(), epoch_end),
        *([(progress.bar(), None)] if progress.on_terminal() else []),
        (extensions.Plots(plan, args.out), epoch_end),
        *([(extensions.TensorBoard(os.path.join(args.out, output.EVENTS)), epoch_end)]
          if args.tensorboard else []),
    ]


def begin(args, job, trainer, found, vectors):
    """Put the trainer where a checkpoint stands, or clear away what an earlier run has left."""
    if found:
        resume.restore(found, trainer)
        job.say(f'resumed from {found.path} at iteration {found.iteration}')
        before = found.description['versions'].get('vectors', 'none')
        if job.on_cpu and before != vectors:
            job.say(f'computed with vectors {before} until now, from now on with {vectors}: results differ '
                    f'by rounding ({compiled.VARIABLE}={before} keeps them)')
        return
    job.first(output.clear, args.out)
    if args.resume:
        job.say(f'no checkpoint in {args.out}: starting afresh')


def run(job, trainer, out, network):
    """Train to the end, or until asked to stop; return the exit status."""
    gc.freeze()  # what there is now stays: an iteration's garbage is collected without a look at it
    trainer.run(show_loop_exception_msg=False)
    updater, plan = trainer.updater, trainer.updater.plan
    if updater.stopping and updater.iteration < plan.iterations:
        if trainer.get_extension('Checkpointing').failed:
            raise TrainingFault(f'stopped at iteration {updater.iteration}, but without a checkpoint')
        job.say(f'stopped at iteration {updater.iteration}; continue with --resume auto')
        return errors.EXIT_STOPPED
    last, mark = (os.path.join(out, name) for name in (weights.NAME, errors.FINISHED_MARK))
    job.first(write_last, last, weights.save, updater.model, network)
    summary = description.summarize(plan, trainer.get_extension('LogReport').log)
    job.say(summary)
    job.first(write_last, mark, files.write_line, summary)
    return errors.EXIT_FINISHED


def finish_again(job, plan, out, found, model, optimizer, network):
    """Say that the run has finished; write what it was stopped before, behind its last checkpoint."""
    last, mark = (os.path.join(out, name) for name in (weights.NAME, errors.FINISHED_MARK))
    if not job.first(os.path.exists, last):
        state.restore(found.arrays, model, optimizer)
        job.first(write_last, last, weights.save, model, network)
    if not job.first(os.path.exists, mark):
        job.first(write_last, mark, files.write_line,
                  description.summarize(plan, found.description['log']))
    job.say(f'{found.path}: finished already, all {plan.iterations} iterations are done')
    return errors.EXIT_FINISHED


def write_last(path, write, *content):
    """Write ``model.npz``, with the averaged statistics of the last iteration, or the mark of the end."""
    try:
        write(path, *content)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); make room and start again with '
                        '--resume auto, which writes it from the last checkpoint') from None


if __name__ == '__main__':
    errors.outlast_streams()
    sys.exit(main())
