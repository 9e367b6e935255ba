"""Model what an iteration, an epoch and a training cost on any number of workers.

    python jobs/cost_model.py                         # the paper's cluster, held against what the paper says
    python jobs/cost_model.py --fit result/scaling/scaling.csv --workers 1,8,64
    python jobs/cost_model.py --compute 0.11 --intra 3.4 40 --inter 14 12 --workers 8,256

The model has two levels, workers within a node and nodes. A step of an all-reduce costs alpha + bytes / beta
on the level it crosses: alpha is the latency, beta the bandwidth. As in the paper nothing overlaps: an
iteration is computation, then one all-reduce of all gradients. For the paper's cluster a last table predicts
what the exchange during backward makes of it. Weak scaling: every worker has ``batch`` images. A fit takes
three numbers of workers or more, measured with ``--no-overlap``; what it says of others is an extrapolation.
Takes a second; expect 717 s for the paper's 897.9 s with nominal link speeds, and what the model misses.
"""

import argparse
import csv
import dataclasses
import itertools
import math
import sys

from lib import constants, errors, sharding
from lib.errors import UserError
from lib.run.arguments import OneLineParser, positive_number

import numpy as np

from jobs.tables import duration, table
from models import stages

# Backward computes two products where forward computes one; validation runs forward only.
FORWARD_SHARE = 1 / 3

# Nominal figures of the paper's nodes. NCCL's tuning model has these latencies per ring step; the P100s are
# taken to hang on PCI Express 3.0 x16 (15.75 GB/s), of which a ring through switches sustains about 10. FDR
# sends 64 bits as 66.
NOMINAL_INTRA = (5.7e-6, 10e9)
NOMINAL_INTER = (14e-6, constants.PAPER_NODE_LINKS * constants.PAPER_LINK_BITS * 64 / 66 / 8)

# ResNet-50's stem, res2 to res5 and classifier: parameters, and multiply-adds per image of 224 pixels.
STAGE_PARAMETERS = (9_536, 215_808, 1_219_584, 7_098_368, 14_964_736, 2_049_000)
STAGE_MULTIPLY_ADDS = (118_013_952, 667_942_912, 1_027_604_480, 1_464_336_384, 809_238_528, 2_048_000)

LIMITS = """\
Assumptions and limits:
- The paper gives no computation time. One GPU's is solved from its 70 % and 897.9 s, so these do not test it.
  Both efficiencies are rounded: half a point moves the times of 1 and of 8 GPUs by 0.7 %.
- Validation: {images} images per GPU, a third of an iteration's work per image. The start is not counted.
- Nominal: NCCL's latencies per ring step, 10 GB/s of PCI Express, two FDR links per node. That is what the
  wires allow, a lower bound. What it misses within one node (no network there) is packing and casting
  gradients, waiting for the slowest GPU, and shared PCI Express; on the cluster, the same among 1024 GPUs,
  the NCCL of 2017, and links that groups of nodes share.
- The ring that meets the published figures has two parameters for two figures: it fits by construction, and
  serves to interpolate. Figure 1's own numbers are not public.
- During backward: a prediction, which nothing has measured. A stage's share of backward is that of its
  multiply-adds; parts go one after the other, and computation is not slowed by them. The last part and, if it
  is late, what is left of those before it stay. "Not hidden" is what the nominal ring misses, taken as time
  for which nothing computes: stragglers, packing. How much of it is that, nobody has said."""


@dataclasses.dataclass(frozen=True)
class Level:
    """Connection between neighbors: latency ``alpha`` in seconds, bandwidth ``beta`` in bytes per second."""

    alpha: float
    beta: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """Nodes of ``node_size`` workers; ``compute`` is a worker's iteration in seconds, without exchange."""

    compute: float
    node_size: int
    intra: Level
    inter: Level


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained: ``wire_bytes`` of gradient per iteration, ``statistics`` values per validation."""

    batch: int = constants.BATCH
    epochs: float = constants.EPOCHS
    n_train: int = constants.IMAGENET_TRAIN
    n_val: int = constants.IMAGENET_VAL
    wire_bytes: int = 2 * constants.RESNET50_PARAMETERS
    statistics: int = constants.RESNET50_STATISTICS

    def iterations(self, n):
        """T = ceil(E * N / (n * b))."""
        return sharding.n_iterations(self.epochs, self.n_train, n * self.batch)

    def validation_share(self, n):
        """Computation of one validation, in iterations' worth: the busiest worker's images, forward only."""
        return math.ceil(self.n_val / n) / self.batch * FORWARD_SHARE


def nodes(n, node_size):
    """Nodes that ``n`` workers occupy."""
    return -(-n // node_size)


def allreduce_seconds(n, n_bytes, machine, algorithm='ring'):
    """Time of one all-reduce of ``n_bytes`` over ``n`` workers.

    ``ring``: 2(n-1) steps, of which 2(N-1) cross between the N nodes; every link carries 2(n-1)/n of the
    bytes, so the slowest sets the pace. ``tree``: up and down a binary tree over nodes and a chain within
    each; pipelined along complementary trees, so every link carries twice the bytes.

    Returns:
        float: Seconds; 0 for one worker.
    """
    if n == 1:
        return 0.0
    n_nodes = nodes(n, machine.node_size)
    levels = ([machine.intra] if n > n_nodes else []) + ([machine.inter] if n_nodes > 1 else [])
    beta = min(level.beta for level in levels)
    if algorithm == 'ring':
        return (2 * (n - n_nodes) * machine.intra.alpha + 2 * (n_nodes - 1) * machine.inter.alpha
                + 2 * (n - 1) / n * n_bytes / beta)
    chain = 2 * (min(n, machine.node_size) - 1) * machine.intra.alpha
    return chain + 2 * math.ceil(math.log2(n_nodes)) * machine.inter.alpha + 2 * n_bytes / beta


def iteration_seconds(n, machine, training, algorithm='ring'):
    """Time of one iteration: computation, then the all-reduce."""
    return machine.compute + allreduce_seconds(n, training.wire_bytes, machine, algorithm)


def overlapped_iteration_seconds(n, machine, training, algorithm='ring'):
    """Time of an iteration of ResNet-50 whose gradients leave in parts (``models.stages``) in backward."""
    computed = exchanged = machine.compute * FORWARD_SHARE
    for part in stages.parts(STAGE_PARAMETERS, n):
        work, values = (sum(sizes[stage] for stage in part) / sum(sizes)
                        for sizes in (STAGE_MULTIPLY_ADDS, STAGE_PARAMETERS))
        computed += work * machine.compute * (1 - FORWARD_SHARE)
        exchanged = (max(computed, exchanged)
                     + allreduce_seconds(n, values * training.wire_bytes, machine, algorithm))
    return exchanged


def training_seconds(n, machine, training, algorithm='ring', iteration=iteration_seconds, not_hidden=0.0):
    """Time of the whole training; after every epoch, batch statistics are averaged and validation runs.

    Args:
        iteration (callable): ``iteration_seconds``, or with overlap.
        not_hidden (float): Seconds by which an iteration takes longer in any case.
    """
    validation = (training.validation_share(n) * machine.compute
                  + allreduce_seconds(n, 4 * training.statistics, machine, algorithm))
    return (training.iterations(n) * (iteration(n, machine, training, algorithm) + not_hidden)
            + math.ceil(training.epochs) * validation)


def published_iteration_seconds(training=None):
    """What the paper's total time and efficiencies say of one iteration.

    ``PAPER_SECONDS = T t_1024 + 90 v``, where a validation ``v`` is a share of a single GPU's computation,
    which is ``PAPER_EFFICIENCY_GPU * t_1024``.

    Returns:
        dict: Seconds of one iteration by number of workers: 1, one node, all.
    """
    training = training or Training()
    n = constants.PAPER_WORKERS
    validation = training.validation_share(n) * constants.PAPER_EFFICIENCY_GPU
    t_all = constants.PAPER_SECONDS / (training.iterations(n) + training.epochs * validation)
    return {1: constants.PAPER_EFFICIENCY_GPU * t_all,
            constants.PAPER_NODE_GPUS: constants.PAPER_EFFICIENCY_NODE * t_all,
            n: t_all}


def nominal_machine(compute):
    """The paper's cluster as its data sheets have it, with a GPU's computation given."""
    return Machine(compute, constants.PAPER_NODE_GPUS, Level(*NOMINAL_INTRA), Level(*NOMINAL_INTER))


def effective_machine(published, training):
    """The ring that meets all published figures: one bandwidth from a node, one latency from the cluster.

    Two figures are left once computation is known, so two parameters: the bandwidth is the same on both
    levels, and so is the latency.
    """
    one, node, n = sorted(published)
    at_node, at_all = (published[k] - published[one] for k in (node, n))
    steps = np.array([[2 * (k - 1), 2 * (k - 1) / k * training.wire_bytes] for k in (node, n)])
    alpha, inverse_beta = np.linalg.solve(steps, [at_node, at_all]).tolist()
    level = Level(alpha, 1 / inverse_beta)
    return Machine(published[one], node, level, level)


def fit(rows, node_size):
    """Least-squares fit of a ring to measured all-reduce times.

    Args:
        rows (list of dict): ``workers``, ``iteration_time``, ``allreduce_time`` (seconds), ``wire_bytes``.
        node_size (int): Workers per node.

    Returns:
        Machine: Latencies are at least 0; a bandwidth that the data do not limit is infinite. A level that
        was not measured has the parameters of the other.

    Raises:
        UserError: If there are fewer numbers of workers than parameters, which any parameters would meet.
    """
    measured = sorted({row['workers'] for row in rows})
    if len(measured) < 3:
        raise UserError(f'measured with {" and ".join(map(str, measured))} workers, which fits nothing: '
                        'computation, latency and bandwidth are to be found; measure three numbers of '
                        'workers or more with jobs/scaling.py, each worker on a core or GPU of its own')
    exchange_alone = [row['allreduce_time'] for row in rows if row['workers'] == 1]
    overhead = float(np.median(exchange_alone)) if exchange_alone else 0.0  # packing and casts, not exchange
    compute = float(np.median([row['iteration_time'] - row['allreduce_time'] for row in rows])) + overhead
    rows = [row for row in rows if row['workers'] > 1]
    # Columns: 1/beta and alpha within a node, then between nodes, which is taken to be the slower level and
    # so sets the pace of a ring that spans several.
    design = []
    for row in rows:
        n, n_nodes = row['workers'], nodes(row['workers'], node_size)
        volume = 2 * (n - 1) / n * row['wire_bytes']
        design.append([volume * (n_nodes == 1), 2 * (n - n_nodes), volume * (n_nodes > 1), 2 * (n_nodes - 1)])
    seconds = np.array([max(row['allreduce_time'] - overhead, 0.0) for row in rows])
    intra_beta, intra_alpha, inter_beta, inter_alpha = non_negative_least_squares(np.array(design), seconds)
    intra, inter = (Level(alpha, 1 / beta if beta else math.inf)
                    for alpha, beta in ((intra_alpha, intra_beta), (inter_alpha, inter_beta)))
    spans = {nodes(row['workers'], node_size) > 1 for row in rows}
    if True not in spans:
        inter = intra
    if False not in spans:
        intra = inter
    return Machine(compute, node_size, intra, inter)


def non_negative_least_squares(matrix, target):
    """The x >= 0 that minimises ``|matrix x - target|``, by trying every set of columns.

    Of equally good sets the smallest, and of those the first, wins: a point or two do not call for more.

    Returns:
        list of float: One value per column.
    """
    columns = [k for k in range(matrix.shape[1]) if matrix[:, k].any()]
    best, best_error = [0.0] * matrix.shape[1], float(np.sum(target ** 2))
    for size in range(1, len(columns) + 1):
        for chosen in map(list, itertools.combinations(columns, size)):
            scale = matrix[:, chosen].max(axis=0)  # bytes and steps differ by eight orders of magnitude
            x, _, rank, _ = np.linalg.lstsq(matrix[:, chosen] / scale, target, rcond=None)
            if rank < size or (x < 0).any():
                continue
            error = float(np.sum((matrix[:, chosen] / scale @ x - target) ** 2))
            if error < best_error * (1 - 1e-9) - 1e-18:
                best, best_error = [0.0] * matrix.shape[1], error
                for k, value in zip(chosen, (x / scale).tolist()):
                    best[k] = value
    return best


def read_measurements(path):
    """Rows of a ``scaling.csv``, numbers as numbers; without the oversubscribed ones if others remain.

    Raises:
        UserError: If the file cannot be read, or is not one that jobs/scaling.py writes.
    """
    try:
        with open(path, newline='') as file:
            rows = [{'workers': int(row['workers']), 'wire_bytes': int(row['wire_bytes']),
                     'batch': int(row['batch']), 'oversubscribed': row['oversubscribed'] == 'yes',
                     'iteration_time': float(row['iteration_time']),
                     'allreduce_time': float(row['allreduce_time'])} for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); jobs/scaling.py writes one') from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: not a table of jobs/scaling.py ({error!r}); measure again') from None
    own_core = [row for row in rows if not row['oversubscribed']]
    return own_core if any(row['workers'] > 1 for row in own_core) else rows


def predictions(workers, machine, training, algorithm):
    """Table of predictions, as text."""
    rows = [('workers', 'iteration', 'all-reduce', 'vs 1', 'vs node', 'images/s', 'epoch',
             f'{training.epochs:g} epochs')]
    node = iteration_seconds(machine.node_size, machine, training, algorithm)
    for n in workers:
        t = iteration_seconds(n, machine, training, algorithm)
        total = training_seconds(n, machine, training, algorithm)
        rows.append((f'{n}', f'{1e3 * t:.1f} ms', f'{1e3 * (t - machine.compute):.1f} ms',
                     f'{machine.compute / t:.0%}', f'{node / t:.0%}' if n >= machine.node_size else '',
                     f'{n * training.batch / t:,.0f}', duration(training.n_train / (n * training.batch) * t),
                     duration(total)))
    return table(rows)


def describe(machine):
    """A machine in one line."""
    def level(level):
        bandwidth = 'unlimited' if math.isinf(level.beta) else f'{level.beta / 1e9:.3g} GB/s'
        return f'{1e6 * level.alpha:.3g} us, {bandwidth}'
    return (f'{machine.node_size} workers per node; {1e3 * machine.compute:.1f} ms computation; '
            f'within a node {level(machine.intra)}; between nodes {level(machine.inter)}')


def paper_report(workers, algorithm):
    """The model held against what the paper says, as text."""
    training = Training()
    published = published_iteration_seconds(training)
    one, node, n = sorted(published)
    nominal, effective = nominal_machine(published[one]), effective_machine(published, training)
    t = {k: iteration_seconds(k, nominal, training, algorithm) for k in published}
    seconds = training_seconds(n, nominal, training, algorithm)
    held = [('training', 's', constants.PAPER_SECONDS, seconds),
            ('efficiency vs one GPU', '%', 100 * constants.PAPER_EFFICIENCY_GPU, 100 * t[one] / t[n]),
            ('efficiency vs one node', '%', 100 * constants.PAPER_EFFICIENCY_NODE, 100 * t[node] / t[n])]
    held += [(f'{k} GPUs beyond one GPU', 'ms', 1e3 * (published[k] - published[one]), 1e3 * (t[k] - t[one]))
             for k in (node, n)]
    return '\n'.join([
        f'What {constants.PAPER_SECONDS} s for {training.iterations(n):,} iterations and {training.epochs} '
        f'validations on {n} GPUs say of one iteration,',
        f'with efficiencies of {constants.PAPER_EFFICIENCY_GPU:.0%} against one GPU and '
        f'{constants.PAPER_EFFICIENCY_NODE:.0%} against one node:', '',
        table([('GPUs', 'iteration', 'beyond one GPU', 'images/s per GPU')] + [
            (f'{k}', f'{1e3 * seconds:.1f} ms', f'{1e3 * (seconds - published[one]):.1f} ms',
             f'{training.batch / seconds:.1f}') for k, seconds in published.items()]), '',
        f'Model with nominal figures: {describe(nominal)}; {algorithm}', '',
        predictions(workers, nominal, training, algorithm), '',
        'Held against the paper:', '',
        table([('', 'paper', 'nominal', 'miss')] + [
            (name, f'{said:.1f} {unit}', f'{found:.1f} {unit}', f'{found - said:+.1f} {unit}')
            for name, unit, said, found in held]), '',
        f'Ring that meets the published figures: {describe(effective)}', '',
        predictions(workers, effective, training, 'ring'), '',
        overlap_report(n, published, nominal, effective, training), '',
        LIMITS.format(images=math.ceil(training.n_val / n))])


def overlap_report(n, published, nominal, effective, training):
    """What the exchange during backward makes of the paper's training on ``n`` GPUs, by model: text."""
    missed = published[n] - iteration_seconds(n, nominal, training)
    rows = [('', 'at the end', 'during backward', 'of the exchange hidden')]
    for name, machine, algorithm, not_hidden in [
            ('nominal, ring', nominal, 'ring', 0.0),
            ('nominal, tree (NCCL from 2.4 on)', nominal, 'tree', 0.0),
            (f'nominal, ring, {1e3 * missed:.1f} ms not hidden', nominal, 'ring', missed),
            ('ring that meets the published figures', effective, 'ring', 0.0)]:
        ways = iteration_seconds, overlapped_iteration_seconds
        totals = [training_seconds(n, machine, training, algorithm, way, not_hidden) for way in ways]
        end, during = (way(n, machine, training, algorithm) for way in ways)
        rows.append((name, *(f'{total:.0f} s' for total in totals),
                     f'{(end - during) / (end - machine.compute + not_hidden):.0%}'))
    sizes = ', '.join(f'{sum(STAGE_PARAMETERS[stage] for stage in part):,}'
                      for part in stages.parts(STAGE_PARAMETERS, n))
    return '\n'.join([f'Prediction for an exchange during backward, in parts of {sizes} gradients:', '',
                      table(rows)])


def _workers(text):
    try:
        values = [int(word) for word in text.split(',')]
    except ValueError:
        values = [0]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of positive numbers such as 1,8,1024')
    return values


def parse(argv=None):
    parser = OneLineParser(prog='cost_model.py', allow_abbrev=False,
                     description='Model times on any number of workers. Without --fit or --compute: the '
                                 'paper\'s cluster, held against what the paper says.')
    add = parser.add_argument
    add('--workers', type=_workers, default=[2 ** k for k in range(11)], help='such as 1,8,1024')
    add('--fit', metavar='CSV', help='fit the model to what jobs/scaling.py measured')
    add('--compute', type=positive_number, metavar='S',
        help='seconds of one worker\'s iteration, without exchange')
    add('--node-size', type=int, metavar='G', help='workers per node (8; with --fit: all that were measured)')
    add('--intra', nargs=2, type=positive_number, metavar=('US', 'GBS'),
        help='latency in microseconds and bandwidth in GB/s within a node (the paper\'s cluster)')
    add('--inter', nargs=2, type=positive_number, metavar=('US', 'GBS'), help='likewise between nodes')
    add('--algorithm', choices=('ring', 'tree'), default='ring', help='all-reduce (ring)')
    add('--batchsize', type=int, metavar='B', help='images per worker (32)')
    add('--wire-bytes', type=int, metavar='S', help='bytes per all-reduce (ResNet-50 in float16)')
    add('--epoch', type=positive_number, default=constants.EPOCHS, metavar='E', help='training length (90)')
    add('--n-train', type=int, default=constants.IMAGENET_TRAIN, metavar='N', help='images (ImageNet)')
    add('--n-val', type=int, default=constants.IMAGENET_VAL, metavar='N', help='validation images')
    args = parser.parse_args(argv)
    for name in ('node_size', 'batchsize', 'wire_bytes', 'n_train', 'n_val'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} is {getattr(args, name)}: expected a positive number')
    if args.fit and args.compute:
        parser.error('--fit finds what --compute says: leave out one')
    if not (args.fit or args.compute):
        given = [f'--{name}' for name in ('intra', 'inter', 'node-size', 'batchsize', 'wire-bytes')
                 if getattr(args, name.replace('-', '_')) is not None]
        if given:
            parser.error(f'{given[0]} describes another machine than the paper\'s: give its --compute too')
    return args


def main(argv=None):
    args = parse(argv)
    try:
        if not (args.fit or args.compute):
            print(paper_report(args.workers, args.algorithm))
            return errors.EXIT_FINISHED
        measured = read_measurements(args.fit) if args.fit else []
        first = measured[0] if measured else {'batch': constants.BATCH, 'wire_bytes': Training.wire_bytes}
        training = Training(args.batchsize or first['batch'], args.epoch, args.n_train, args.n_val,
                            args.wire_bytes or first['wire_bytes'])
        if args.fit:
            machine = fit(measured, args.node_size or max(row['workers'] for row in measured))
        else:
            machine = dataclasses.replace(nominal_machine(args.compute),
                                          node_size=args.node_size or constants.PAPER_NODE_GPUS)
        for name in ('intra', 'inter'):
            if getattr(args, name):
                alpha, beta = getattr(args, name)
                machine = dataclasses.replace(machine, **{name: Level(1e-6 * alpha, 1e9 * beta)})
        print(f'{describe(machine)}; {args.algorithm} of {training.wire_bytes:,} bytes\n')
        print(predictions(args.workers, machine, training, args.algorithm))
        if args.fit:
            print('\nFitted:\n')
            rows = [('workers', 'measured', 'model', 'of it all-reduce', 'model')]
            for row in measured:
                exchange = allreduce_seconds(row['workers'], row['wire_bytes'], machine)
                rows.append((str(row['workers']), f'{1e3 * row["iteration_time"]:.1f} ms',
                             f'{1e3 * (machine.compute + exchange):.1f} ms',
                             f'{1e3 * row["allreduce_time"]:.1f} ms', f'{1e3 * exchange:.1f} ms'))
            print(table(rows))
            if max(args.workers) > machine.node_size and machine.inter == machine.intra:
                print(f'\nNothing was measured between nodes: beyond {machine.node_size} workers this takes '
                      'them to be connected as within.')
        return errors.EXIT_FINISHED
    except UserError as error:
        print(f'cost_model.py: {error}', file=sys.stderr)
        return errors.EXIT_USER_ERROR


if __name__ == '__main__':
    sys.exit(main())
