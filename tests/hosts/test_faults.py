"""What befalls a job on several hosts, and how it ends."""

import os
import re
import signal
import sys
import time

import numpy as np
import pytest

from tests.hosts.namespaces import TINY, until

LONG = [*TINY, '--epoch', '5000', '--checkpoint-interval', '5']


@pytest.fixture(autouse=True)
def nothing_stays_behind(three):
    yield
    until(lambda: not any(host.processes() for host in three), 60)
    for host in three:
        left = host.run('sh', '-c', 'ls -d /dev/shm/sm_segment* /tmp/prted*').stdout
        assert not left, f'{host.name}: {left}'


@pytest.fixture
def start(three, request):
    """``start(slots)``: a long training, past its first checkpoint."""
    def start(slots):
        out = three.shared / request.node.name
        job = three.launch(slots, *LONG, '--out', out)
        until(lambda: list(out.glob('checkpoint/*.npz')), 120, job)
        return job

    return start


def test_a_signal_stops_all_hosts_in_good_order(start):
    job = start((2, 1, 1))
    os.kill(job.inner, signal.SIGTERM)
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 75, told
    assert 'stopped at iteration' in told


@pytest.mark.parametrize('host, word', [(0, 'prterun --'), (1, 'prted'), (2, 'prted'), (0, 'train_image')])
def test_a_stop_is_one_also_while_the_daemons_start(three, host, word):
    job = three.launch((1, 1, 1), *LONG, '--out', three.shared / f'early-{host}-{word[:5]}')
    until(lambda: any(line.split()[0].startswith(sys.prefix) and word in line
                      for line in three[host].processes().values()), 20, job)
    os.kill(job.inner, signal.SIGTERM)
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 75, told


def test_a_killed_rank_of_another_host_is_named_with_its_host(three, start):
    job = start((1, 2, 1))
    os.kill(three[1].rank(2), signal.SIGKILL)
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 137, told
    assert re.search(r'rank 2 with PID \d+ on node b exited on\s+signal 9', told), told


def test_a_killed_daemon_ends_the_job_and_what_it_left_is_removed(three, start):
    job = start((1, 2, 0))
    three[1].kill('prted')
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 1, told
    assert re.search(r'Remote daemon: .* on node b', told), told


def test_the_directory_of_a_killed_daemon_goes_although_nobody_has_reaped_it(three):
    program = '''
import os, subprocess, sys
zombie, alive = (subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE)
                 for code in ('', 'input()'))
os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
for process in zombie, alive:
    os.mkdir(f'/tmp/prted.{process.pid}')
subprocess.run(['bash', '-c', 'source jobs/hosts.sh; HOSTS=(localhost); silent_hosts'], check=True)
assert os.listdir(f'/tmp/prted.{alive.pid}') == []
os.rmdir(f'/tmp/prted.{alive.pid}')
alive.communicate()'''
    done = three[0].run(sys.executable, '-c', program)
    assert done.returncode == 0, done.stderr


def test_a_killed_script_leaves_a_job_that_stops_with_a_checkpoint(start):
    job = start((1, 1, 0))
    os.kill(job.inner, signal.SIGKILL)
    assert 'stopped at iteration' in job.communicate(timeout=120)[0]


def test_a_firewall_between_hosts_ends_the_job_and_is_suspected_aloud(three):
    for host in three[:2]:
        host.drop_incoming(range(20000, 20100))
    try:
        job = three.launch(
            (1, 1, 0), *LONG, '--stall-timeout', '6', '--out', three.shared / 'firewall',
            mpirun=['--mca', 'btl_tcp_port_min_v4', '20000', '--mca', 'btl_tcp_port_range_v4', '100'])
        told = job.communicate(timeout=120)[0]
    finally:
        for host in three[:2]:
            host.drop_incoming(None)
    assert job.returncode == 1, told
    for rank, host in enumerate('ab'):
        assert re.search(rf'rank {rank} of 2 on host {host}: no iteration for \d+ s, last finished: none',
                         told)
    assert 'A firewall between them' in told and 'docker0' in told


def test_a_host_that_dies_costs_one_restart_on_the_others(three):
    options = [*TINY, '--batchsize', '8', '--n-train', '192', '--epoch', '8', '--checkpoint-interval', '4',
               '--allreduce-grad-dtype', 'float32']
    undisturbed = three.launch((2, 2, 2), *options, '--out', three.shared / 'undisturbed')
    told = undisturbed.communicate(timeout=150)[0]
    assert undisturbed.returncode == 0, told
    out = three.shared / 'disturbed'
    job = three.launch((2, 2, 2), *options, '--out', out)
    until(lambda: list(out.glob('checkpoint/*.npz')), 120, job)
    three[1].power_off()
    died = time.monotonic()
    told = []
    try:
        for line in job.stdout:
            told.append(line)
            if 'resumed from' in line:
                print(f'{time.monotonic() - died:.1f} s until the job goes on')
        job.wait(timeout=60)
    finally:
        three.power_on(three[1])
    told = ''.join(told)
    assert job.returncode == 0, told
    assert 'Remote daemon' in told and 'on node b' in told
    assert 'left out, for want of an answer: b; 6 workers on 4 ranks of 2 hosts' in told
    iteration = int(re.search(r'resumed from .* at iteration (\d+)', told)[1])
    assert iteration <= 24  # of 32
    with np.load(three.shared / 'undisturbed/model.npz') as expected, np.load(out / 'model.npz') as found:
        values = [name for name in expected if expected[name].dtype.kind == 'f']
        difference = max(abs(found[name] - expected[name]).max() for name in values)
        largest = max(abs(expected[name]).max() for name in values)
    print(f'weights differ by {difference / largest:.1e} of the largest, {32 - iteration} iterations later')
    assert difference < 1e-4 * largest
