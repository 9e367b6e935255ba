"""Test the paper's claims, one by one, at sizes that fit a small machine.

    python -m jobs.ablation TRAIN VAL --set long                   # runs what is missing, writes the report
    python -m jobs.ablation TRAIN VAL --set long --arms paper,no-warmup --seeds 0
    python -m jobs.ablation TRAIN VAL --set long --arms paper --seeds 0 --verify    # again, to the last digit
    python -m jobs.ablation --report                               # the report from the results alone
    python -m jobs.ablation --set long --commands                  # the command of every run

``jobs/ablation/sets.py`` declares the sets. A run of ``short`` takes some 2 minutes of a quiet core, of
``long-shallow`` 2, of ``long`` 6, of ``longest`` 16; a set has 9 to 46 runs, as many at a time as there are
cores, at low priority. Interrupted, it continues: a finished run is kept, one under way goes on from its last
checkpoint. Expect a line per run, and every 5 minutes the time left. Exit status 0 when all runs are there, 1
if one failed, 2 for bad arguments, 75 if a signal stopped it.
"""

import argparse
import os
import pathlib
import shlex
import sys

from lib import errors
from lib.errors import UserError
from lib.run import output
from lib.run.arguments import OneLineParser

from jobs.ablation import report, runs
from jobs.ablation.results import Results
from jobs.ablation.sets import SETS


def _seeds(text):
    words = text.split(',')
    if not all(word.isdecimal() and int(word) < 2**32 for word in words):
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of numbers such as 0,1,2, all below 2**32')
    return tuple(map(int, words))


def _count(text):
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of 1 or more')
    return int(text)


def parse(argv=None):
    parser = OneLineParser(prog='python -m jobs.ablation', allow_abbrev=False,
                           description='Test the paper\'s claims at sizes that fit a small machine.')
    add = parser.add_argument
    add('train', nargs='?', metavar='TRAIN', help='training images, as train_imagenet.py takes them')
    add('val', nargs='?', metavar='VAL', help='validation images')
    add('--set', default=next(iter(SETS)), metavar='SET',
        help=f'of runs: {", ".join(SETS)} ({next(iter(SETS))})')
    add('--arms', metavar='A,A', help='arms to run (all of the set)')
    add('--seeds', type=_seeds, metavar='N,N', help='seeds to run (as the set says)')
    add('--at-a-time', type=_count, default=len(os.sched_getaffinity(0)), metavar='N',
        help='runs at a time, of one thread each (the number of cores)')
    add('--runs', type=pathlib.Path, default=pathlib.Path('ablation-runs'), metavar='DIR',
        help='where runs leave their output (ablation-runs)')
    add('--results', type=pathlib.Path, default=pathlib.Path(__file__).parent, metavar='DIR',
        help='where results, report and pictures are kept (jobs/ablation)')
    add('--verify', action='store_true', help='run again what the results hold, and compare every digit')
    add('--report', action='store_true', help='only write the report')
    add('--commands', action='store_true', help='only print the commands of all runs')
    args = parser.parse_args(argv)
    if args.set not in SETS:
        parser.error(f'--set {args.set}: no such set; choose from {", ".join(SETS)}')
    args.set = SETS[args.set]
    args.arms = list(args.set.arms) if args.arms is None else args.arms.split(',')
    for name in args.arms:
        if name not in args.set.arms:
            parser.error(f'--arms {name}: no such arm in the set {args.set.name}; choose from '
                         f'{", ".join(args.set.arms)}')
    if not (args.report or args.commands) and args.val is None:
        parser.error('TRAIN VAL are missing; without them there are --report and --commands')
    return args


def main(argv=None):
    args = parse(argv)
    failures, stopped = [], False
    try:
        results = Results(args.results)
        requested = args.set, args.arms, args.seeds, results
        if args.commands:
            for training in runs.trainings(*requested):
                print(f'OPENBLAS_NUM_THREADS=1 python train_imagenet.py TRAIN VAL '
                      f'{training.command or "(when its rate is chosen)"} '
                      f'--out {shlex.quote(str(training.out(args.runs)))}')
            return errors.EXIT_FINISHED
        output.check_writable('--results', args.results)
        if not args.report:
            output.check_writable('--runs', args.runs)
            act = runs.verify if args.verify else runs.run_missing
            failures, stopped = act(*requested, args.train, args.val, args.runs.resolve(), args.at_a_time)
        results = Results(args.results)  # with what others have added meanwhile
        if args.report or any(results.runs(name) for name in SETS):
            report.write(results)
            print(f'{results.directory / "README.md"} written')
    except UserError as error:
        print(f'ablation: {error}', file=sys.stderr)
        return errors.EXIT_USER_ERROR
    except OSError as error:
        print(f'ablation: {error}; runs go on from where they are when this is mended', file=sys.stderr)
        return errors.EXIT_USER_ERROR
    for failure in failures:
        print(f'ablation: {failure}', file=sys.stderr)
    return errors.EXIT_STOPPED if stopped else errors.EXIT_FAULT if failures else errors.EXIT_FINISHED


if __name__ == '__main__':
    sys.exit(main())
