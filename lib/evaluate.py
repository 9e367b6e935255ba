"""Evaluate a network, or let it name what images show.

    python -m lib.evaluate result /data/imagenet/val     # top-1, top-5 and loss; also under mpirun
    python -m lib.evaluate result photo.jpg              # the five best labels of each image

The figures are those of training's own validation, to the last digit where as many processes do it, except
after ``--bn-statistics last-local``, which validates every worker with statistics of its own; weights hold
their average.
"""

import contextlib
import os
import sys

from lib import errors, sharding, validation
from lib.checkpoint import weights
from lib.communication import collectives, launcher
from lib.data import datasets, decoding
from lib.data.batches import validation_batches
from lib.errors import BadImage, TrainingFault, UserError
from lib.run import arguments, devices, job

import chainer

_EPILOG = ('The weights of a run tell network, input size and classes themselves; --arch and --insize are '
           'for those of other programs.')


def main(argv=None):
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        if _are_images(args.what):
            if launcher.launched_rank() == 0:
                classify(args)
        else:
            with contextlib.ExitStack() as stack:
                measure(args, stack)
        errors.check_output()
        return errors.EXIT_FINISHED
    except (UserError, TrainingFault) as error:
        if launcher.launched_rank() == 0:
            errors.say_line(f'lib.evaluate: {error}')
        return errors.EXIT_USER_ERROR if isinstance(error, UserError) else errors.EXIT_FAULT
    except KeyboardInterrupt:
        if launcher.launched_size() > 1:
            raise  # the others wait for this one: it ends the job
        errors.say('lib.evaluate: interrupted')
        return errors.EXIT_INTERRUPTED


def _parser():
    parser = arguments.OneLineParser(
        prog='python -m lib.evaluate', allow_abbrev=False, epilog=_EPILOG,
        formatter_class=arguments.HelpFormatter,
        description='Measure accuracy and loss on a validation set, or name what images show.')
    parser.set_defaults(**vars(arguments.parse([])))  # a job is joined as a training with no options does
    add = parser.add_argument
    add('source', metavar='RUN|WEIGHTS|CHECKPOINT', help='--out of a run, its model.npz, or a checkpoint')
    add('what', metavar='VAL|IMAGE', nargs='+',
        help='validation set: a directory <class>/*.JPEG or a list file; or image files')
    add('--root', default='.', help='where the paths of a list file begin')
    add('--arch', help='network, if the weights do not tell it')
    add('--insize', type=arguments.integer(8, arguments.MAX_INSIZE),
        help='side of the input in pixels (default: as in training)')
    add('-j', '--loaderjob', type=arguments.integer(0, arguments.MAX_LOADERS), default=2,
        help='processes per rank that decode images; 0 decodes in the evaluating process')
    add('-b', '--val-batchsize', type=arguments.integer(1, arguments.MAX_BATCHSIZE), default=None,
        help='images per step (default: as in training)')
    add('--on-bad-image', choices=('error', 'skip'), default='error', help='what an undecodable image does')
    return parser


def _are_images(paths):
    return len(paths) > 1 or (paths[0].lower().endswith(datasets.IMAGE_SUFFIXES)
                              and not os.path.isdir(paths[0]))


def measure(args, stack):
    """Print the accuracy and the loss on a validation set, as one of the processes of a job."""
    joined = job.join(args, stack)
    comm = joined.comm
    network = joined.everyone(lambda: open_network(args) if comm.rank == 0 else None)
    description = comm.mpi_comm.bcast(network and network[0])
    model = network[1] if network else weights.build(description)
    collectives.broadcast_model(comm, model)
    model.to_device(joined.device)
    images = joined.first(open_validation_set, args.what[0], args.root, description)

    batchsize = args.val_batchsize or description.get('val_batchsize', arguments.VAL_BATCHSIZE)
    share = sharding.block(comm.rank, comm.size, len(images))
    sums = joined.everyone(lambda: validation.evaluate(model, validation_batches(
        joined.pool, images, description['insize'], *share, batchsize, args.on_bad_image)))
    collectives.sum_over_processes(comm, sums)
    if not sums[-1]:
        raise UserError(f'{args.what[0]}: none of its images can be decoded; give another')
    joined.say(summarize(sums))


def open_network(args):
    """Read the weights that the options name.

    Returns:
        tuple: Their completed description (:func:`lib.checkpoint.weights.complete`) and the network.
    """
    found = weights.read(args.source, errors.say_line)
    description = weights.complete(found, args.arch, args.insize)
    model = weights.build(description)
    weights.fill(model, found)
    return description, model


def open_validation_set(path, root, description):
    """Open the images to validate on, labelled as the network's classes are numbered.

    Args:
        path (str): Directory in the ImageNet layout, or list file.
        root (str): Where the paths of a list file begin.
        description (dict): Of the network, which may not know what its classes are called. A directory must
            then have a folder for each, whose sorted names are taken for them.

    Raises:
        UserError: It cannot be read, or does not fit the network.
    """
    if not os.path.isdir(path):
        return datasets.read_list(path, root, description['n_class'])
    images = datasets.read_directory(path, description['classes'])
    if images.n_class != description['n_class']:
        raise UserError(f'{path}: {images.n_class} class folders, and the network has '
                        f'{description["n_class"]} classes, whose names its weights do not tell; give a '
                        'directory with all of them, or a list file')
    if description['classes'] is None:
        errors.say_line(f'{path}: its folders, sorted by name, are taken for the classes, which the weights '
                        'do not name')
    return images


def summarize(sums):
    """Say in a line what ``lib.validation.evaluate`` has added up; the loss as a run's log has it."""
    means = validation.means(sums)
    return (f'top-1 {100 * means["accuracy"]:.3f} %  top-5 {100 * means["accuracy_top5"]:.3f} %  '
            f'loss {means["loss"]!r}  ({int(sums[-1]):,} images)')


def classify(args):
    """Print the five best labels of each image file, with their probabilities."""
    description, model = open_network(args)
    device = chainer.get_device('@numpy' if devices.missing_for_gpus() else '@cupy:0')
    device.use()
    model.to_device(device)
    for path in args.what:
        try:
            pixels = decoding.load_validation(path, description['insize'])
            probabilities = validation.probabilities(model, pixels[None])[0]
        except MemoryError as error:
            raise UserError(f'{path}: {errors.shortage(error)}') from None
        except BadImage as error:
            if args.on_bad_image == 'error':
                raise
            errors.say_line(error)
            continue
        errors.say_line(path, sys.stdout)
        for label in (-probabilities).argsort(kind='stable')[:validation.TOP]:
            name = _name_of(label, description['classes'])
            errors.say_line(f'{100 * probabilities[label]:8.2f} %  {name}', sys.stdout)


def _name_of(label, classes):
    """What a class is called; its number where the weights tell no name."""
    return f'class {label}' if classes is None else classes[label]


if __name__ == '__main__':
    errors.outlast_streams()
    sys.exit(main())
