"""A job survives what happens to it: faults injected into real ranks, by jobs/faults/injection.py."""

import collections
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from lib.checkpoint import directory

import numpy as np
import pytest

from jobs.faults import injection, observation, soak

HOST = re.escape(os.uname().nodename)
SECONDS = 30  # within which one rank's fault ends the job

# An epoch is 4.7 iterations of 2 x 8 images; alpha_SGD passes 1/2 in the second iteration.
SMALL = ['--arch', 'resnet8', '--insize', '16', '-j', '0', '-B', '8', '-E', '3']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('resilience')


@pytest.fixture(scope='module')
def described(folder, small_data):
    """``described(name, *options, faults=[...])``: a run into ``folder / name``."""
    def describe(name, *options, faults=(), **more):
        return dict(options=[*map(str, small_data), *SMALL, '--out', str(folder / name), *options],
                    faults=list(faults), **more)
    return describe


Ended = collections.namedtuple('Ended', 'status out err seconds nothing_left')


def end_of(job, after=None):
    """What a job printed; its ``seconds`` count from the moment when the condition ``after`` holds."""
    if after is not None:
        assert observation.wait_for(after, 120, job), job.communicate()
    start = time.monotonic()
    try:
        out, err = job.communicate(timeout=300)
        seconds = time.monotonic() - start
        nothing_left = observation.wait_for(lambda: not observation.processes_of(job), SECONDS)
    finally:
        observation.kill(job, 'all', None)
    return Ended(job.returncode, out, err, seconds, nothing_left)


# Many runs, one after the other in the same two processes

OVERLAPPED = {
    'two workers each': ['--virtual-workers', '2'],
    'two and three workers': ['--workers', '5', '--allreduce-grad-dtype', 'float32'],
    'half precision': ['--dtype', 'mixed16', '--loss-scale', '128', '--workers', '3'],
}


@pytest.fixture(scope='module')
def runs(described, folder):
    """Status and iteration of every run on each rank, by name; what all of them printed."""
    def stops(name, *faults_and_options, options=()):
        return [(f'{name} {i}', described(name, *options, '--resume', 'auto', faults=faults))
                for i, faults in enumerate(faults_and_options)]

    many = ['--recipe', 'goyal', '--virtual-workers', '2']
    wide = ['--allreduce-grad-dtype', 'float32']
    often = ['--checkpoint-interval', '1']
    named = [
        ('paper', described('paper')),
        *stops('stopped', [['SIGTERM', 1, 2]], [['SIGUSR1', 0, 4]], [['SIGINT', 1, 6]],
               [['SIGTERM', 0, 8], ['SIGUSR1', 1, 8]], []),
        *((f'{kind} {when}', described(f'{kind} {when}', '-E', '1', *options, *more, between_hosts=apart))
          for kind, options in OVERLAPPED.items()
          for when, more, apart in [('during', [], True), ('after', ['--no-overlap'], True),
                                    ('on one host', [], False)]),
        *((f'overlap stopped {i}', described('overlap stopped', '--resume', 'auto', faults=faults,
                                             between_hosts=True))
          for i, faults in enumerate([[['SIGTERM', 1, 3]], [['SIGUSR1', 0, 7], ['SIGTERM', 1, 7]], []])),
        ('overlap nan', described('overlap nan', between_hosts=True, faults=[['nan_gradient', 1, 3]])),
        ('last', described('last', faults=[['SIGTERM', 1, 15]])),
        ('goyal', described('goyal', *many)),
        *stops('goyal stopped', [['SIGUSR1', 1, 2]], [['SIGTERM', 0, 4]], [['SIGTERM', 1, 6]], [],
               options=many),
        ('wide', described('wide', *wide)),
        ('wide stopped', described('wide stopped', *wide, *often, faults=[['SIGTERM', 1, 8]])),
        ('nan loss', described('nan loss', *often, faults=[['nan_loss', 1, 3]])),
        ('nan gradient', described('nan gradient', *often, faults=[['nan_gradient', 0, 3]])),
        ('overflow', described('overflow', *often, '--loss-scale', '1e9')),
        ('disk full', described('disk full', *often, pictures=True,
                                faults=[['full_disk', 0, 4], ['free_disk', 0, 9]])),
        ('full at the stop', described('full at the stop', *often, faults=[
            ['full_disk', 0, 3], ['SIGTERM', 1, 6], ['free_disk', 0, 7]])),
        ('on from before', described('full at the stop', '--resume', 'auto', faults=[
            ['free_disk', 0, 0], ['SIGTERM', 1, 4]])),
        ('forced', described('full at the stop', '--force', '--test')),
    ]
    done = end_of(injection.start(2, *(run for _, run in named)))
    assert 'Traceback' not in done.err, done.err
    found = re.findall(r'run (\d+) on rank (\d): exit (\d+), iteration (\d+)', done.out)
    results = collections.defaultdict(dict)
    for number, rank, status, iteration in found:
        results[named[int(number)][0]][int(rank)] = int(status), int(iteration)
    return results, done


def both(status, iteration):
    return {rank: (status, iteration) for rank in (0, 1)}


@pytest.mark.parametrize('kind', OVERLAPPED)
def test_gradients_that_leave_during_backward_train_the_same_network_bit_by_bit(runs, folder, kind):
    results, _ = runs
    during, after, on_one_host = (f'{kind} {when}' for when in ('during', 'after', 'on one host'))
    assert {status for status, _ in results[during].values()} == {0}
    assert 'parts of' in json.loads((folder / during / 'plan.json').read_text())['exchange']
    assert observation.differences(folder / during, folder / after) == []
    assert observation.differences(folder / during, folder / on_one_host) == []


def test_ranks_asked_to_stop_do_so_together_though_gradients_leave_during_backward(runs, folder):
    results, _ = runs
    assert [results[f'overlap stopped {i}'] for i in range(2)] == [both(75, 3), both(75, 7)]
    assert observation.differences(folder / 'overlap stopped', folder / 'paper') == []


def test_what_is_not_finite_is_found_before_the_update_though_gradients_leave_during_backward(runs):
    results, done = runs
    assert results['overlap nan'] == both(1, 2)
    assert re.search(r'iteration 3 .*gradient of /\S+ holds NaN before the exchange, on rank 1', done.err)


def test_ranks_asked_to_stop_do_so_at_the_same_iteration_with_status_75(runs):
    results, done = runs
    for i, iteration in enumerate([2, 4, 6, 8]):
        assert results[f'stopped {i}'] == both(75, iteration)
        assert f'stopped at iteration {iteration}; continue' in done.out
    assert results['stopped 4'] == both(0, 15)


def test_a_run_stopped_four_times_is_the_uninterrupted_one_byte_for_byte(runs, folder):
    assert observation.differences(folder / 'stopped', folder / 'paper') == []
    assert (folder / 'stopped' / 'model.npz').read_bytes() == (folder / 'paper' / 'model.npz').read_bytes()


def test_a_stop_asked_for_in_the_last_iteration_comes_too_late(runs, folder):
    assert runs[0]['last'] == both(0, 15)
    assert (folder / 'last' / 'model.npz').read_bytes() == (folder / 'paper' / 'model.npz').read_bytes()


def test_the_log_file_too_but_for_what_clocks_measure(runs, folder):
    logs = []
    for name in ('stopped', 'paper'):
        logs.append(observation.without_times(json.loads((folder / name / 'log').read_text())))
    assert logs[0] == logs[1] and len(logs[0]) == 3


def test_every_iteration_of_a_stopped_run_is_timed_once_and_has_its_loss(runs, folder):
    rows, uninterrupted = (np.loadtxt(folder / name / 'timing.csv', delimiter=',', skiprows=1)
                           for name in ('stopped', 'paper'))
    assert rows[:, 0].tolist() == list(range(1, 16))
    assert rows[:, 5].tolist() == uninterrupted[:, 5].tolist()


def test_moving_averages_of_every_virtual_worker_come_back(runs, folder):
    results, _ = runs
    assert [results[f'goyal stopped {i}'] for i in range(4)] == [both(75, 2), both(75, 4), both(75, 6),
                                                                  both(0, 8)]
    assert observation.differences(folder / 'goyal stopped', folder / 'goyal') == []
    rows = observation.state(folder / 'goyal')[0]['workers/statistics']
    assert len(rows) == 4 and len({row.tobytes() for row in rows}) == 4


@pytest.mark.parametrize('name, rank', [('nan loss', 1), ('nan gradient', 0)])
def test_nan_ends_every_rank_before_the_update_and_names_parameter_and_rank(runs, folder, name, rank):
    results, done = runs
    assert results[name] == both(1, 2)
    (arrays, iteration, _) = observation.state(folder / name)
    assert iteration == 2
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_the_first_parameter_that_is_not_finite_is_named(runs):
    _, done = runs
    for name, rank in (('/bn1/beta', 1), ('/res4/0/shortcut/bn/gamma', 0)):
        assert ('train_imagenet.py: iteration 3 (epoch 0.4267, phase 0 to 1.33333, eta 0.003125): the '
                f'learning rate may be too high (--eta-scale); gradient of {name} holds NaN before the '
                f'exchange, on rank {rank}\n') in done.err


def test_overflow_of_float16_is_told_apart_from_nan(runs):
    results, done = runs
    assert results['overflow'] == both(1, 0)
    assert re.search(r'^train_imagenet.py: iteration 1 .*: gradient of \S+ overflows float16 on the wire, on '
                     r'rank .*use a --loss-scale smaller than 1e\+09', done.err, re.MULTILINE), done.err


def test_training_outlives_a_disk_that_is_full_for_a_while(runs, folder):
    results, done = runs
    assert results['disk full'] == both(0, 15)
    for iteration in range(4, 8):
        path = re.escape(str(directory.path_of(folder / 'disk full', iteration)))
        assert re.search(rf'^checkpoint {path} failed: .*; training goes on$', done.err, re.MULTILINE)
    assert observation.differences(folder / 'disk full', folder / 'paper') == []
    assert not list((folder / 'disk full').rglob('*partial*'))


def test_a_stop_without_a_checkpoint_is_a_fault_on_every_rank(runs):
    results, done = runs
    assert results['full at the stop'] == both(1, 6)
    assert 'train_imagenet.py: stopped at iteration 6, but without a checkpoint' in done.err
    assert re.search(r'full at the stop/checkpoint/iteration-00000006.npz failed: .*File too large$',
                     done.err, re.MULTILINE)


def test_the_run_then_continues_from_the_last_good_checkpoint(runs, folder):
    results, done = runs
    # The second may have been under way when the disk got full.
    assert re.search(rf'resumed from {folder}/full at the stop/checkpoint/iteration-0000000[12].npz',
                     done.out)
    assert results['on from before'] == both(75, 4)


def test_force_removes_the_old_runs_checkpoints(runs, folder):
    results, _ = runs
    assert results['forced'] == both(0, 4)
    assert directory.list_checkpoints(folder / 'full at the stop') == [
        directory.path_of(folder / 'full at the stop', 4)]


# Other processes, and damaged files

@pytest.fixture(scope='module')
def on_one_process(runs, described, folder):
    """The run of two processes continued on one that plays both workers, past four damaged checkpoints."""
    good = directory.path_of(folder / 'wide stopped', 8).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for iteration, content in zip(range(9, 13), (good[:-1000], flipped, b'', b'no checkpoint\n' * 1000)):
        directory.path_of(folder / 'wide stopped', iteration).write_bytes(content)
    run = described('wide stopped', '--allreduce-grad-dtype', 'float32', '--virtual-workers', '2', '--resume',
                    'auto')
    done = subprocess.run([sys.executable, 'train_imagenet.py', *run['options']], cwd=injection.ROOT,
                          text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_damaged_checkpoints_are_named_and_passed_over(on_one_process, folder):
    named = re.findall(r'^passing over .*iteration-(\d+).npz: \S.*$', on_one_process.stderr, re.MULTILINE)
    assert list(map(int, named)) == [12, 11, 10, 9]
    assert 'iteration-00000008.npz at iteration 8' in on_one_process.stdout


def test_another_number_of_processes_continues_to_rounding(on_one_process, folder):
    (arrays, iteration, log), (others, _, other_log) = map(observation.state, (folder / 'wide stopped',
                                                                        folder / 'wide'))
    assert iteration == 15 and arrays.keys() == others.keys()
    for name in arrays:
        if name.startswith('model/') or name.endswith(('/m', '/delta')):
            largest = np.abs(others[name]).max()
            np.testing.assert_allclose(arrays[name], others[name], rtol=0, atol=1e-4 * largest, err_msg=name)
    for row, other in zip(log, other_log):
        assert row == pytest.approx(other, rel=1e-4)


# Ranks that die

@pytest.fixture(scope='module')
def killed(described, folder):
    """A run whose ranks are killed four times: what each start printed."""
    def start(number, last, *faults):
        notes = folder / f'killed {number}'
        job = injection.start(2, described('killed', '--checkpoint-interval', '1', '--resume', 'auto',
                                           faults=faults, notes=str(notes)))
        return end_of(job, lambda: observation.last_iteration(notes) == last)

    ends = [start(0, 1, ['SIGKILL', 1, 2]), start(1, 2, ['kill_before_rename', 0, 3])]
    assert list((folder / 'killed').glob('checkpoint/*.partial-*'))
    return [*ends, start(2, 5, ['SIGKILL', 0, 6]), start(3, 8, ['SIGKILL', 1, 9]), start(4, 15)]


def test_a_killed_rank_ends_the_others_and_is_named(killed):
    for end, rank in zip(killed[:4], (1, 0, 0, 1)):
        assert end.status != 0 and end.seconds < SECONDS and end.nothing_left
        assert re.search(rf'rank {rank}.* on node {HOST}.*signal 9', end.err, re.DOTALL), end.err


def test_a_rank_killed_while_gradients_are_under_way_ends_the_others_and_is_named(described, folder):
    notes = folder / 'notes kill_backward'
    job = injection.start(2, described('kill_backward', faults=[['kill_backward', 1, 3]], notes=str(notes),
                                       between_hosts=True))
    end = end_of(job, lambda: observation.last_iteration(notes) == 2)
    assert end.status != 0 and end.seconds < SECONDS and end.nothing_left
    assert re.search(rf'rank 1.* on node {HOST}.*signal 9', end.err, re.DOTALL), end.err


def test_a_run_killed_four_times_is_the_uninterrupted_one_byte_for_byte(runs, killed, folder):
    assert killed[4].status == 0
    assert observation.differences(folder / 'killed', folder / 'paper') == []
    assert not list((folder / 'killed').rglob('*partial*'))


def test_times_of_a_killed_run_hold_every_iteration_once(killed, folder):
    rows = np.loadtxt(folder / 'killed' / 'timing.csv', delimiter=',', skiprows=1)
    assert rows[:, 0].tolist() == list(range(1, 16))


def test_nothing_is_lost_beyond_the_interval_and_the_checkpoint_being_written(killed):
    resumed = [int(re.search(r'at iteration (\d+)\n', end.out)[1]) for end in killed[2:]]
    assert resumed[0] >= 1 and resumed[1] >= 3 and resumed[2] >= 6


def test_random_kills(small_data, tmp_path):
    soaked = soak.Soak(tmp_path, [*small_data, *SMALL[:-1], '12'], seed=1).run(5)
    assert soaked.problems == []
    assert len(soaked.rows) == 5


# Exceptions and standing still

@pytest.mark.parametrize('kind, rank, iteration, options, message', [
    ('build', 1, 0, [], rf'rank 1 of 2 on host {HOST}: ValueError: injected into build\nTraceback'),
    ('forward', 0, 3, [], rf'rank 0 of 2 on host {HOST}: ValueError: injected into forward\nTraceback'),
    ('backward', 1, 3, [], rf'rank 1 of 2 on host {HOST}: ValueError: injected into backward\nTraceback'),
    ('collective', 1, 3, [], rf'rank 1 of 2 on host {HOST}: Exception: MPI_ERR_ROOT'),
    ('decoder', 1, 3, ['-j', '1'], rf'rank 1 of 2 on host {HOST}: RuntimeError: decoder process 0 '
                                   r'\(pid \d+\) was killed by SIGKILL'),
    ('stall', 1, 3, ['--stall-timeout', '6'], rf'rank 1 of 2 on host {HOST}: no iteration for \d+ s, last '
                                              r'finished: 2; ending the job\n(?s:.*)in stall'),
    ('stall_build', 1, 0, ['--stall-timeout', '6'],
     rf'rank 0 of 2 on host {HOST}: no iteration for \d+ s, last finished: none; ending the job\n'
     r'no iteration yet: do all hosts reach each other\?'),
])
def test_one_ranks_fault_ends_the_job(described, folder, kind, rank, iteration, options, message):
    notes = folder / f'notes {kind}'
    job = injection.start(2, described(kind, *options, faults=[[kind, rank, iteration]],
                                             notes=str(notes), between_hosts=kind == 'backward'))
    end = end_of(job, lambda: not iteration or observation.last_iteration(notes) == iteration - 1)
    assert end.status == 1
    assert re.search(message, end.err), end.err
    assert end.seconds < SECONDS and end.nothing_left


# Signals from outside

def long(folder, small_data, name):
    return [*map(str, small_data), *SMALL, '-E', '300', '--checkpoint-interval', '1', '--out',
            str(folder / name)]


def stopped_well(end, out):
    """Status 75, and one newest checkpoint, whole, of the iteration where the job stopped."""
    assert end.status == 75, end
    iteration, = map(int, re.findall(r'stopped at iteration (\d+)', end.out))
    assert observation.state(out)[1] == iteration
    return iteration


def test_sigusr1_to_mpirun_stops_every_rank_at_the_same_iteration(folder, small_data):
    notes = folder / 'notes mpirun'
    job = injection.start(2, dict(options=long(folder, small_data, 'mpirun'), notes=str(notes)))
    assert observation.wait_for(lambda: observation.last_iteration(notes) > 1, 60, job)
    job.send_signal(signal.SIGUSR1)
    end = end_of(job)
    iteration = stopped_well(end, folder / 'mpirun')
    for rank in (0, 1):
        assert f'run 0 on rank {rank}: exit 75, iteration {iteration}\n' in end.out


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_a_signal_to_the_launch_script_stops_the_job_in_good_order(folder, small_data, name):
    out = folder / f'launched {name}'
    job = subprocess.Popen(
        ['bash', str(injection.ROOT / 'jobs' / 'launch.sh'), '2', '--',
         *long(folder, small_data, out.name)], text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env={
            **os.environ, 'PYTHON': sys.executable, 'OMPI_ALLOW_RUN_AS_ROOT': '1',
            'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'})
    try:
        assert observation.wait_for(lambda: directory.list_checkpoints(out), 60, job)
        if name == 'SIGINT':
            os.killpg(job.pid, signal.SIGINT)  # as Ctrl-C does
        else:
            job.send_signal(signal.SIGTERM)
        end = end_of(job)
    finally:
        job.kill()
    stopped_well(end, out)


# Two runs into one directory

@pytest.fixture(scope='module')
def beside_a_live_run(described, folder):
    """What a live run said of itself, the end of two starts of two ranks beside it, and its files before."""
    def files():
        return {path: path.read_bytes() for path in (folder / 'live').rglob('*') if path.is_file()}

    notes = folder / 'live notes'
    live = injection.start(1, described('live', '--checkpoint-interval', '1', faults=[['stall', 0, 4]],
                                        notes=str(notes)))
    try:
        assert observation.wait_for(lambda: observation.last_iteration(notes) == 3, 120, live)
        assert observation.wait_for(lambda: directory.path_of(folder / 'live', 3).exists(), 120, live)
        before = files()
        second = end_of(injection.start(2, described('live', '--force'),
                                        described('live', '--resume', 'auto')))
        return observation.processes_of(live), second, before, files()
    finally:
        observation.kill(live, 'all', None)
        live.communicate()


def test_second_start_ends_with_2_on_every_rank_and_names_the_holder(beside_a_live_run):
    processes, second, _, _ = beside_a_live_run
    ends = re.findall(r'run (\d) on rank (\d): exit (\d+)', second.out)
    assert sorted(ends) == [(run, rank, '2') for run in '01' for rank in '01']
    holders = re.findall(rf'^train_imagenet.py: .*--out .*/live: in use by process (\d+) on host {HOST};',
                         second.err, re.MULTILINE)
    assert len(holders) == 2 and set(map(int, holders)) <= set(processes)


def test_second_start_leaves_a_live_runs_files_alone_even_with_force(beside_a_live_run):
    _, _, before, after = beside_a_live_run
    assert after == before


# Before the start

def children(process):
    return pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()


def test_a_signal_while_decoders_are_being_started_ends_the_job_with_75_and_all_of_them(small_data, tmp_path):
    job = subprocess.Popen([sys.executable, 'train_imagenet.py', *map(str, small_data), *SMALL, '-j', '256',
                            '--out', str(tmp_path / 'out')], cwd=injection.ROOT, text=True,
                           stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert observation.wait_for(lambda: len(children(job)) > 3, 60, job)
        job.send_signal(signal.SIGTERM)
        most = 0
        while job.poll() is None:
            with contextlib.suppress(OSError):
                most = max(most, len(children(job)))
        end = end_of(job)
    finally:
        job.kill()
    assert end.status == 75 and end.nothing_left
    assert 'SIGTERM before an iteration was done' in end.err
    assert most < 200  # it did not wait for all


def test_a_directory_that_cannot_be_written_is_said_at_once(described, folder):
    (folder / 'a file').write_text('')
    end = end_of(injection.start(1, described('a file')))
    assert end.status == 2
    assert f'--out {folder / "a file"}: cannot be written' in end.err
    assert end.err.count('train_imagenet.py: ') == 1
