"""Weak scaling on this machine or allocation: the paper's Figure 1 and its scaling efficiencies.

    python jobs/scaling.py                                              # 1, 2, 4, ... processes, ResNet-50
    python jobs/scaling.py --processes 1,2,4 -- --arch resnet8          # small enough for a CPU
    python jobs/scaling.py --processes 1,8,64 --mpirun '--hostfile hosts --map-by ppr:8:node'

For each number of processes runs ``train_imagenet.py``, on images made in memory unless TRAIN VAL are among
the options after ``--``, and takes the times of every iteration after the warm-up. Writes ``scaling.csv`` and
``scaling.png``, and prints the table. What is measured already is kept: run again to continue. On a CPU every
process has one BLAS thread, however many cores are idle: weak scaling compares like with like. Takes the time
of 110 iterations for each number of processes: seconds with ResNet-8, minutes with ResNet-50 on CPUs. Expect
an efficiency of some 90 % while each process has a core, and half of it with two on each.
"""

import argparse
import csv
import json
import os
import pathlib
import shlex
import subprocess
import sys

from lib import errors
from lib.data import datasets
from lib.errors import UserError
from lib.run import arguments, devices
from lib.run.arguments import OneLineParser

import numpy as np

LAUNCH = pathlib.Path(__file__).resolve().parent / 'launch.sh'
MIN_ITERATIONS = 100  # the paper's averages are over 100 iterations (section 4)

COLUMNS = ('processes', 'workers', 'batch', 'wire_bytes', 'iterations', 'iteration_time', 'iteration_time_q1',
           'iteration_time_q3', 'allreduce_time', 'allreduce_time_q1', 'allreduce_time_q3', 'data_time',
           'oversubscribed', 'options')


def read_times(path, warm_up):
    """Times of the iterations after the warm-up.

    Args:
        path (path-like): ``timing.csv`` of a run: iteration (from 1), iteration_time, allreduce_time and
            data_time in seconds.
        warm_up (int): Iterations left out at the start.

    Returns:
        numpy.ndarray: float64 ``(iterations, 3)``.

    Raises:
        UserError: If the file has too few iterations or cannot be read.
    """
    try:
        with open(path, newline='') as file:
            rows = [[float(row[name]) for name in ('iteration_time', 'allreduce_time', 'data_time')]
                    for row in csv.DictReader(file) if int(row['iteration']) > warm_up]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: no table of iteration times ({error}); run again') from None
    if not rows:
        raise UserError(f'{path}: nothing after the warm-up of {warm_up} iterations; run again')
    return np.array(rows)


def summarize(times):
    """Medians, and quartiles as the spread, of ``read_times``: dict of float, in seconds."""
    summary = {'iterations': len(times)}
    for column, name in enumerate(('iteration_time', 'allreduce_time')):
        q1, median, q3 = np.percentile(times[:, column], (25, 50, 75)).tolist()
        summary.update({name: median, f'{name}_q1': q1, f'{name}_q3': q3})
    summary['data_time'] = float(np.median(times[:, 2]))
    return summary


def efficiency(rows, baseline):
    """Weak-scaling efficiency: time of an iteration on ``baseline`` processes, over the row's own.

    Returns:
        dict: By number of processes; empty if the baseline was not measured.
    """
    times = {row['processes']: row['iteration_time'] for row in rows}
    return {n: times[baseline] / seconds for n, seconds in times.items() if n >= baseline} \
        if baseline in times else {}


def read_table(path, options):
    """Rows measured so far with these options; none if the file does not exist.

    Raises:
        UserError: If it holds rows measured with other options, or is no such table.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path, newline='') as file:
            rows = [{name: row[name] if name in ('options', 'oversubscribed') else
                     float(row[name]) if 'time' in name else int(row[name]) for name in COLUMNS}
                    for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: not a table of this program ({error!r}); start over with --fresh') from None
    for row in rows:
        if row['options'] != options:
            raise UserError(f'{path}: measured with options {row["options"]!r}, not {options!r}; '
                            'start over with --fresh, or choose another --out')
    return rows


def write_table(path, rows):
    """Write all rows, atomically."""
    temporary = f'{path}.tmp'
    with open(temporary, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(COLUMNS)
        for row in sorted(rows, key=lambda row: row['processes']):
            writer.writerow([f'{row[name]:.6f}' if 'time' in name else row[name] for name in COLUMNS])
    os.replace(temporary, path)


def describe(rows, node_size):
    """The table as text, with both of the paper's efficiencies."""
    against_one, against_node = efficiency(rows, 1), efficiency(rows, node_size)
    lines = [('processes', 'iteration', '(quartiles)', 'all-reduce', '(quartiles)', 'images/s', 'vs 1',
              f'vs {node_size}', '')]
    for row in sorted(rows, key=lambda row: row['processes']):
        n = row['processes']
        texts = []
        for name in ('iteration_time', 'allreduce_time'):
            texts += [f'{1e3 * row[name]:.1f} ms',
                      f'({1e3 * row[f"{name}_q1"]:.1f}-{1e3 * row[f"{name}_q3"]:.1f})']
        share = [f'{values[n]:.0%}' if n in values else '' for values in (against_one, against_node)]
        lines.append((str(n), *texts, f'{row["workers"] * row["batch"] / row["iteration_time"]:,.0f}', *share,
                      'oversubscribed' if row['oversubscribed'] == 'yes' else ''))
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = ([text.rjust(width) for text, width in zip(line, widths)] for line in lines)
    return '\n'.join('  '.join(line).rstrip() for line in padded)


def draw(rows, path, what):
    """The paper's Figure 1: time of an iteration and of its communication over the number of processes.

    Args:
        rows (list of dict): The table.
        path (path-like): PNG file to write.
        what (str): What a process runs on, for the axis.
    """
    from matplotlib import figure
    picture = figure.Figure(figsize=(6.4, 4.2), dpi=150, layout='constrained')
    axes = picture.subplots()
    rows = sorted(rows, key=lambda row: row['processes'])
    n = [row['processes'] for row in rows]
    shared = np.array([row['oversubscribed'] == 'yes' for row in rows])
    highest, handles = 0.0, []
    for name, label, color, marker in (('iteration_time', 'Iteration', 'C0', 'o'),
                                        ('allreduce_time', 'Communication (all-reduce)', 'C1', 's')):
        median, q1, q3 = (1e3 * np.array([row[name + suffix] for row in rows])
                          for suffix in ('', '_q1', '_q3'))
        handles.append(axes.errorbar(n, median, yerr=[median - q1, q3 - median], color=color, marker=marker,
                                     capsize=3, label=label))
        axes.plot(np.array(n)[shared], median[shared], marker, color=color, markerfacecolor='white',
                  zorder=4)
        highest = max(highest, q3.max())
    if shared.any():
        handles += axes.plot([], [], 'o', color='0.4', markerfacecolor='white',
                             label='more processes than cores')
    axes.set_xscale('log', base=2)
    axes.set_xticks(n, [str(value) for value in n])
    axes.minorticks_off()
    axes.set(xlabel=f'Number of {what}', ylabel='Time (ms)', ylim=(0, 1.08 * highest))
    images = rows[0]['batch'] * rows[0]['workers'] // rows[0]['processes']
    axes.set_title(f'Weak scaling, {images} images per process: median and quartiles of '
                   f'{min(row["iterations"] for row in rows)} iterations', fontsize='medium')
    axes.grid(alpha=0.3)
    axes.legend(handles=handles)
    temporary = f'{path}.tmp'
    picture.savefig(temporary, format='png')
    os.replace(temporary, path)


def measure(processes, args, options, out, cores):
    """Run the training on ``processes`` processes and return its row of the table.

    Raises:
        UserError: If its output cannot be used.
        subprocess.CalledProcessError: If it did not finish.
    """
    workers = processes * options.virtual_workers
    images = (args.warm_up + args.iterations) * workers * options.batchsize
    length = ['--epoch', '1', '--n-train', str(images)]
    if options.train is not None:
        n_train = len(datasets.open_pair(options.train, options.val, options.root)[0])
        length = ['--epoch', repr(images / n_train)]
    run = out / str(processes)
    command = ['bash', str(LAUNCH), str(processes), *shlex.split(args.mpirun), '--', *args.options, *length,
               '--out', str(run), '--force']
    environment = {'OPENBLAS_NUM_THREADS': '1', **os.environ, 'PYTHON': sys.executable}
    with open(f'{run}.txt', 'w') as output:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=True,
                       env=environment)
    with open(run / 'plan.json') as file:
        plan = json.load(file)
    nodes = -(-processes // args.node_size) if args.mpirun else 1
    return {'processes': processes, 'workers': workers, 'batch': options.batchsize,
            'wire_bytes': plan['wire_bytes_per_iteration'],
            **summarize(read_times(run / 'timing.csv', args.warm_up)),
            'oversubscribed': 'yes' if cores is not None and processes > cores * nodes else 'no',
            'options': shlex.join(args.options)}


def _processes(text):
    try:
        values = sorted({int(word) for word in text.split(',')})
    except ValueError:
        values = [0]
    if values[0] < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of positive numbers such as 1,2,4,8')
    return values


def parse(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    own, options = argv, []
    if '--' in argv:
        own, options = argv[:argv.index('--')], argv[argv.index('--') + 1:]
    parser = OneLineParser(prog='scaling.py', allow_abbrev=False,
                     usage='scaling.py [options] [-- training options]',
                     description='Weak scaling: iteration and all-reduce time on 1, 2, 4, ... processes.')
    add = parser.add_argument
    add('--processes', type=_processes, metavar='N,N', help='such as 1,2,4 (powers of 2, up to the devices)')
    add('--node-size', type=int, default=8, metavar='G', help='processes per node, the second baseline (8)')
    add('--mpirun', default='', metavar='OPTIONS', help='mpirun options that spread processes over nodes')
    add('--iterations', type=int, default=MIN_ITERATIONS, metavar='I', help='iterations measured (100)')
    add('--warm-up', type=int, default=10, metavar='W', help='iterations before them (10)')
    add('--out', default='result/scaling', help='output directory (result/scaling)')
    add('--fresh', action='store_true', help='measure again what scaling.csv holds')
    args = parser.parse_args(own)
    for name, low in (('node_size', 1), ('iterations', MIN_ITERATIONS), ('warm_up', 0)):
        if getattr(args, name) < low:
            parser.error(f'--{name.replace("_", "-")} is {getattr(args, name)}: expected {low} or more')
    args.options = options
    return args


def main(argv=None):
    args = parse(argv)
    on_data = arguments.parse(args.options).train is not None
    if not on_data and '--synthetic' not in args.options:
        args.options = ['--synthetic', *args.options]
    options = arguments.parse(args.options)
    try:
        return run(args, options)
    except UserError as error:
        print(f'scaling.py: {error}', file=sys.stderr)
        return errors.EXIT_USER_ERROR


def run(args, options):
    gpus = devices.choose_communicator(options.communicator) == 'pure_nccl'
    cores = None if gpus else len(os.sched_getaffinity(0))
    counts = args.processes or [2 ** k for k in range((_n_gpus() if gpus else cores).bit_length())]
    out = pathlib.Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out {out}: cannot be made ({error.strerror}); choose another directory') from None
    table = out / 'scaling.csv'
    rows = [] if args.fresh else read_table(table, shlex.join(args.options))
    for n in counts:
        if any(row['processes'] == n for row in rows):
            print(f'{n} processes: measured already', flush=True)
            continue
        print(f'{n} processes: {args.warm_up} + {args.iterations} iterations', flush=True)
        try:
            rows.append(measure(n, args, options, out, cores))
        except subprocess.CalledProcessError as error:
            output = (out / f'{n}.txt').read_text().strip().splitlines()[-15:]
            print(*output, f'scaling.py: {n} processes ended with status {error.returncode}; '
                  f'their output is in {out / f"{n}.txt"}', sep='\n', file=sys.stderr)
            return error.returncode
        write_table(table, rows)
    print(describe(rows, args.node_size))
    draw(rows, out / 'scaling.png', 'GPUs' if gpus else 'processes')
    print(f'{table} and {out / "scaling.png"} written')
    return errors.EXIT_FINISHED


def _n_gpus():
    import cupy
    return cupy.cuda.runtime.getDeviceCount()


if __name__ == '__main__':
    sys.exit(main())
