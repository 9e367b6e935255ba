"""How a set is run: what is missing, some at a time, at low priority, resumable, with the time left."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

from lib import errors
from lib.data import input
from lib.errors import UserError
from lib.run import arguments

from jobs.ablation.claims import Choice
from jobs.ablation.results import ROOT, commit, differences, read_run
from jobs.ablation.sets import SETS
from jobs.ablation.verdicts import value
from jobs.tables import duration

PROGRESS_SECONDS = 300  # between progress lines while no run ends


@dataclasses.dataclass(frozen=True)
class Training:
    """A run to be made: of a set, under a name, by a command, which is None until a rate is chosen."""

    set: str
    name: str
    seed: int
    command: str

    def __str__(self):
        return f'{self.set} {self.name}, seed {self.seed}'

    def out(self, runs_dir):
        return runs_dir / self.set / f'{self.name}-{self.seed}'


def trainings(declared, arms, seeds, results):
    """All runs that a request means, in order; runs that choose a rate come before those that need it.

    Args:
        declared (Set): The set.
        arms (collection of str): Names of its arms.
        seeds (tuple or None): Seeds; by default those of the set, or of an arm.
        results (Results): Runs there are, which decide rates.

    Returns:
        list of Training: Each once.
    """
    found = []
    for stage in declared.stages:
        stage = [arm for arm in stage if arm.name in arms]
        for seed in seeds or declared.seeds:
            for arm in stage:
                if seed not in (seeds or arm.seeds or declared.seeds):
                    continue
                if isinstance(arm.eta_scale, Choice):
                    found += _choosing(declared, arm)
                eta_scale = results.eta_scale(declared, arm)
                command = None if eta_scale is None else declared.command(arm, eta_scale, seed)
                found.append(Training(declared.name, arm.name, seed, command))
    return list(dict.fromkeys(found))


def _choosing(declared, arm):
    """The runs that choose the rate of an arm."""
    choice = arm.eta_scale
    declared = SETS[choice.of or declared.name]
    return [Training(declared.name, f'{arm.name}-eta{eta_scale:g}', choice.seed,
                     declared.command(arm, eta_scale, choice.seed)) for eta_scale in choice.eta_scales]


def check_images(requested, train, val, results):
    """Whether runs can be made of these images, before any is.

    Raises:
        UserError: If they cannot be read, are too few for a minibatch, or others than those of the results.
    """
    train_set, val_set = input.open_sets(train, val)
    data = f'{train_set.fingerprint()} {val_set.fingerprint()}'
    for name in dict.fromkeys(training.set for training in requested):
        declared = SETS[name]
        commands = [declared.command(arm, 1, 0) for arm in declared.arms.values()]
        options = [arguments.parse(shlex.split(command)) for command in commands]
        minibatch = max(each.batchsize * each.virtual_workers for each in options)
        if len(train_set) < minibatch:
            raise UserError(f'{train}: {len(train_set)} images are too few for the set {name}, in which '
                            f'{minibatch:,} make one minibatch; give more, or choose another --set')
        if results.data(name) not in (None, data):
            raise UserError(f'{results.directory} holds runs of {name} on other images than these; choose '
                            'another --results')


class Fleet:
    """Trainings under way, each a process of one thread at low priority; a signal or a fault stops them all.

    Asked to stop, each writes a checkpoint, and continues from it when it is started again.
    """

    def __init__(self, train, val):
        self._data = [os.path.abspath(train), os.path.abspath(val)]
        self._processes = set()
        self._commit = commit()
        self.stopping = False

    @contextlib.contextmanager
    def stopped_by_signals(self):
        """Passes SIGTERM and SIGINT on, as long as the block lasts."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        except BaseException:
            self._stop()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, *_):
        self.stopping = True
        for process in list(self._processes):
            process.terminate()

    def run(self, training, out):
        """Train, or continue to; return the run as the results hold it, or None if it was stopped.

        Raises:
            UserError: If the training could not be run.
        """
        if self.stopping:
            return None
        out.parent.mkdir(parents=True, exist_ok=True)
        commits, output = pathlib.Path(f'{out}.commits'), pathlib.Path(f'{out}.txt')
        with open(commits, 'a') as file:
            file.write(f'{self._commit}\n')
        words = ['nice', '-n', '19', sys.executable, str(ROOT / 'train_imagenet.py'), *self._data,
                 *shlex.split(training.command), '--out', str(out), '--resume', 'auto']
        with open(output, 'w') as file:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                       start_new_session=True,
                                       env={**os.environ, 'OPENBLAS_NUM_THREADS': '1'})
        self._processes.add(process)
        if self.stopping:  # the signal came meanwhile
            process.terminate()
        status = process.wait()
        self._processes.discard(process)
        text = output.read_text()
        diverged = re.search(r'^train_imagenet\.py: iteration (\d+): ', text, re.MULTILINE)
        finished = status == errors.EXIT_FINISHED and (out / errors.FINISHED_MARK).exists()
        if finished or (status == errors.EXIT_FAULT and diverged):
            return read_run(training.name, training.seed, training.command, out,
                            int(diverged.group(1)) if status else None, commits.read_text().splitlines())
        if self.stopping:
            return None
        last = (text.strip().splitlines() or ['no output'])[-1]
        raise UserError(f'{training}: status {status}, {last} (all of it in {output})')


def run_missing(declared, arms, seeds, results, train, val, runs_dir, at_a_time):
    """Run what the results lack, some at a time, and keep each as it ends.

    Returns:
        tuple: list of str, what could not be run; bool, whether a signal ended it.
    """
    def requested():
        return trainings(declared, arms, seeds, results)

    def missing():
        return [training for training in requested()
                if training.command is None or results.find(training.set, training.command) is None]

    check_images(requested(), train, val, results)
    fleet = Fleet(train, val)
    progress = Progress(lambda: (len(requested()), len(missing())), runs_dir)
    running, tried, failures = {}, set(), []
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool, fleet.stopped_by_signals():
        while not fleet.stopping:
            for training in missing():
                if len(running) < at_a_time and training.command not in {None, *tried}:
                    tried.add(training.command)
                    running[pool.submit(fleet.run, training, training.out(runs_dir))] = training
            progress.show(running.values())
            if not running:
                break
            done, _ = concurrent.futures.wait(running, PROGRESS_SECONDS, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                training = running.pop(future)
                try:
                    run = future.result()
                except UserError as error:
                    failures.append(str(error))
                    print(error, file=sys.stderr, flush=True)
                    continue
                if run is not None:
                    results.add(training.set, run)
                    print(f'{training}: {describe_end(run)}', flush=True)
    return failures, fleet.stopping and bool(missing())


class Progress:
    """Runs done, how far those under way are, and the time left at the rate so far.

    Args:
        count (callable): Gives the runs requested and those missing.
        runs_dir (pathlib.Path): Where runs leave their logs.
    """

    def __init__(self, count, runs_dir):
        self._count = count
        self._runs_dir = runs_dir
        self._began = time.monotonic()
        self._missing = count()[1]
        self._shares = {}  # of the runs under way, when they were first seen: a resumed one is not at 0

    def show(self, running):
        total, missing = self._count()
        shares = {training: self._share(training) for training in running}
        for training, share in shares.items():
            self._shares.setdefault(training, share)
        done = self._missing - missing + sum(shares.values()) - sum(self._shares.values())
        left = missing - sum(shares.values())
        seconds = (time.monotonic() - self._began) / done * left if done > 0 else None
        under_way = ', '.join(f'{training.name}-{training.seed} {share:.0%}'
                              for training, share in shares.items())
        print(f'{total - missing} of {total} runs done' + f', under way: {under_way}' * bool(under_way)
              + (f', {duration(seconds)} left' if seconds else ''), flush=True)

    def _share(self, training):
        out = training.out(self._runs_dir)
        try:
            return json.loads((out / 'log').read_text())[-1]['iteration'] \
                / json.loads((out / 'plan.json').read_text())['iterations']
        except (OSError, ValueError, IndexError):  # nothing written yet
            return 0.0


def verify(declared, arms, seeds, results, train, val, runs_dir, at_a_time):
    """Run again into a fresh directory what the results hold, and compare digit by digit.

    Returns:
        tuple: list of str, what differed, or could not be run; bool, whether a signal ended it.
    """
    requested = trainings(declared, arms, seeds, results)
    check_images(requested, train, val, results)
    fleet, failures = Fleet(train, val), []
    recorded = {training: results.find(training.set, training.command) for training in requested}
    outs = {training: training.out(runs_dir / 'again') for training, run in recorded.items() if run}
    failures += [f'{training}: not in the results' for training, run in recorded.items() if run is None]
    for out in outs.values():
        if out.exists():
            raise UserError(f'{out} exists: remove it, so that the run is made again')
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool, fleet.stopped_by_signals():
        futures = {pool.submit(fleet.run, training, out): training for training, out in outs.items()}
        for future in concurrent.futures.as_completed(futures):
            training = futures[future]
            try:
                again = future.result()
            except UserError as error:
                failures.append(str(error))
                continue
            if again is None:
                continue
            different = differences(again, recorded[training])
            answer = f'differs in {", ".join(different)}' if different else 'the same to the last digit'
            print(f'{training}: {answer}', flush=True)
            failures += [f'{training}: not reproduced'] * bool(different)
            results.add(training.set, {**recorded[training], 'again': {
                'different': different, 'hardware': again['hardware'], 'commit': again['commit']}})
    return failures, fleet.stopping


def describe_end(run):
    if run['diverged'] is not None:
        return f'diverged at iteration {run["diverged"]}'
    return f'accuracy {value(run, "final"):.3f} at the end, {duration(run["seconds"])}'
