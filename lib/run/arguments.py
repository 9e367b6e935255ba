"""The command line of ``train_imagenet.py``."""

import argparse
import difflib
import math
import os
import sys
import time

from lib import constants, errors, recipe
from lib.communication.launcher import launched_rank

import models

SECONDS_FOR_RANK_0 = 5
MAX_LOADERS = 256  # per rank; a decoder takes some 60 MB
# Beyond what any memory holds, and below where sizes of arrays overflow.
MAX_INSIZE, MAX_BATCHSIZE = 1 << 14, 1 << 20


VAL_BATCHSIZE = 250


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong on one line, once per job, and exits with status 2 on every rank."""

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split('=')[0]
            near = difflib.get_close_matches(word, self._option_string_actions, 1)
            self.error(f'unrecognized arguments: {" ".join(unknown)}'
                       + (f'; did you mean {near[0]}?' if near and word.startswith('-') else ''))
        return options

    def error(self, message):
        if launched_rank() == 0:
            errors.say_line(f'{self.prog}: {message} (see {self.prog} --help)')
        else:
            # mpirun ends all ranks when the first fails: that must be the one with the message.
            time.sleep(SECONDS_FOR_RANK_0)
        sys.exit(errors.EXIT_USER_ERROR)

    def print_help(self, file=None):
        if launched_rank() == 0:
            super().print_help(file)


class HelpFormatter(argparse.HelpFormatter):
    """Appends the default where there is one to tell."""

    def _get_help_string(self, action):
        none = action.default in (None, argparse.SUPPRESS) or isinstance(action.default, bool)
        has_default = action.option_strings and not none
        return f'{action.help} (%(default)s)' if has_default else action.help


def integer(low, high=2**31 - 1):
    """Type of an option: an integer from ``low`` to ``high``."""
    def convert(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not an integer from {low} to {high}')
        return value
    return convert


def positive_number(text):
    """Convert an option: a number above 0, to a billion; whole ones as int."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive number of at most 1e9')
    return int(value) if value.is_integer() else value


def _parser():
    parser = OneLineParser(
        prog='train_imagenet.py', allow_abbrev=False,
        usage='mpirun -np N python train_imagenet.py [TRAIN VAL] [options]',
        description='Train ResNet-50 on ImageNet with extremely large minibatches '
                    '(Akiba, Suzuki, Fukuda 2017).',
        formatter_class=HelpFormatter)
    add = parser.add_argument
    add('train', metavar='TRAIN', nargs='?',
        help='training images: a directory <class>/*.JPEG or a list file; without it the sample set')
    add('val', metavar='VAL', nargs='?', help='validation images, likewise')
    add('--root', default='.', help='where the paths of a list file begin')
    add('--synthetic', action='store_true', help='images made in memory: measures without a disk')

    group = parser.add_argument_group('training')
    add = group.add_argument
    add('--recipe', choices=sorted(recipe.PUBLISHED, reverse=True), default='paper',
        help='every hyperparameter as published')
    add('--arch', choices=tuple(models.ARCHITECTURES),
        help='network (default: resnet50; on the sample set resnet8)')
    add('--insize', type=integer(8, MAX_INSIZE),
        help='side of the input in pixels (default: the network\'s own)')
    add('-B', '--batchsize', type=integer(1, MAX_BATCHSIZE), default=constants.BATCH,
        help='images per worker')
    add('--virtual-workers', metavar='K', type=integer(1),
        help='workers that each process plays in turn: the same training as K times as many processes (1)')
    add('--workers', metavar='N', type=integer(1),
        help='workers that all processes play together, evenly or within one of each other; with --plan: of '
             'another job')
    add('-E', '--epoch', type=positive_number, default=constants.EPOCHS,
        help='length of the training; all that is counted in epochs scales with it')
    add('--seed', type=integer(0, 2**32 - 1), default=0,
        help='of the weights, the order and the augmentation')
    add('--initmodel', metavar='PATH',
        help='start from these weights: those of a run (its --out), a checkpoint or a weights file')
    add('--initmodel-skip', metavar='LAYER',
        help='with --initmodel: start this layer anew, fc for another number of classes')
    add('--jitter', action='store_true', help='color jitter and lighting besides crop and flip')

    group = parser.add_argument_group('parts of the recipe, exchanged one by one')
    add = group.add_argument
    add('--transition', choices=recipe.TRANSITIONS,
        help='from RMSprop to SGD; none is plain SGD (default: the recipe\'s)')
    add('--schedule', choices=recipe.SCHEDULES, help='learning rate schedule (default: the recipe\'s)')
    add('--eta-scale', metavar='X', type=positive_number, default=1, help='factor on the base learning rate')
    add('--bn-statistics', choices=recipe.BN_STATISTICS,
        help='what validation normalizes with (default: the recipe\'s)')
    add('--bn-variance', choices=recipe.BN_VARIANCES, default='mean',
        help='variances averaged over workers, or pooled with the variance of the means')

    group = parser.add_argument_group('communication and arithmetic')
    add = group.add_argument
    add('--communicator', choices=('pure_nccl', 'naive'),
        help='pure_nccl on GPUs, naive on CPUs (default: by what is there)')
    add('--allreduce-grad-dtype', choices=('float16', 'float32'), default='float16',
        help='wire format of gradients')
    add('--loss-scale', metavar='S', type=positive_number, default=1,
        help='scales the loss before backward, undone in float32')
    add('--no-overlap', dest='overlap', action='store_false',
        help='exchange gradients after backward, not during it: the same bits')
    add('--dtype', choices=('float32', 'mixed16'), default='float32', help='precision of the computation')
    add('--tf32', action='store_true',
        help='multiply float32 in TF32 on GPUs that have it, from Ampere on: faster, less exact')

    group = parser.add_argument_group('input')
    add = group.add_argument
    add('-j', '--loaderjob', type=integer(0, MAX_LOADERS), default=2,
        help='processes or threads per rank that decode images; 0 decodes in the training process')
    add('--loader', choices=('process', 'thread'), default='process', help='what they are')
    add('-b', '--val-batchsize', type=integer(1, MAX_BATCHSIZE), default=VAL_BATCHSIZE,
        help='images per validation step')
    add('--on-bad-image', choices=('error', 'skip'), default='error', help='what an undecodable image does')

    group = parser.add_argument_group('the run')
    add = group.add_argument
    add('-o', '--out', default='result', help='output directory')
    add('-r', '--resume', metavar='{auto,PATH}',
        help='continue; auto takes the newest valid checkpoint in --out, starts afresh where there is none')
    add('--force', action='store_true', help='reuse a non-empty --out; removes the old run\'s checkpoints')
    add('--wait', action='store_true',
        help='for a run that still holds --out, as long as one that was cut off needs to end itself')
    add('--checkpoint-interval', metavar='N', type=integer(1),
        help='iterations between checkpoints, besides one per epoch')
    add('--stall-timeout', metavar='S', type=positive_number,
        help='give up after S seconds without an iteration (default: off)')
    add('--tensorboard', action='store_true', help='write event files too')
    add('--test', action='store_true', help='a few iterations and one validation, end to end')

    group = parser.add_argument_group('planning')
    add = group.add_argument
    add('--plan', action='store_true', help='print everything that follows from the options, and exit')
    add('--n-train', metavar='N', type=integer(1),
        help='with --plan or --synthetic: size of the training set')
    return parser


def parse(argv=None):
    """Parse and check the command line.

    Every rank parses the same words, so each finds the same mistake by itself: rank 0 prints one line, and
    all exit with status 2.

    Args:
        argv (list of str): Words of the command line; ``sys.argv[1:]`` by default.

    Returns:
        argparse.Namespace: Options as in the table of ``--help``.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.train is None) != (args.val is None):
        parser.error(f'TRAIN is {args.train!r} but VAL is missing: give both, or neither for the sample set')
    if args.synthetic and args.train is not None:
        parser.error(f'--synthetic makes its own images: leave out {args.train!r} and {args.val!r}')
    if args.workers is not None and args.virtual_workers is not None and not args.plan:
        parser.error(f'--workers {args.workers} divides them among the processes and --virtual-workers '
                     f'{args.virtual_workers} fixes how many each plays: leave out one')
    if args.n_train is not None and not (args.plan or args.synthetic):
        parser.error('--n-train goes with --plan or --synthetic; a run counts its images itself')
    args.virtual_workers = args.virtual_workers or 1
    if args.workers is not None and args.workers % args.virtual_workers:
        parser.error(f'--workers {args.workers} is not a multiple of --virtual-workers '
                     f'{args.virtual_workers}: every process plays the same number of workers')
    if args.initmodel_skip and not args.initmodel:
        parser.error(f'--initmodel-skip {args.initmodel_skip}: goes with --initmodel')
    if args.force and args.resume:
        parser.error('--force starts afresh and --resume continues: leave out one')
    if args.tf32 and os.environ.get('NVIDIA_TF32_OVERRIDE') == '0':
        parser.error('--tf32: NVIDIA_TF32_OVERRIDE=0 in the environment forbids it; unset that, or leave out '
                     '--tf32')
    return args


def plans_imagenet(args):
    """Tell whether a plan without data is one of ImageNet, not of the sample set."""
    return args.plan and args.train is None and (args.n_train is not None or args.workers is not None)


def chosen_recipe(args):
    """Return the published recipe with the exchanges that the options ask for, as a ``lib.recipe.Recipe``."""
    published = recipe.PUBLISHED[args.recipe]
    return recipe.Recipe(
        args.recipe,
        transition=args.transition or published.transition,
        schedule=args.schedule or published.schedule,
        bn_statistics=args.bn_statistics or published.bn_statistics,
        bn_variance=args.bn_variance,
        epochs=args.epoch,
        eta_scale=args.eta_scale)
