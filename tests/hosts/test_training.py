"""A training on several hosts is that of one."""

import hashlib

import pytest

from tests.hosts.namespaces import TINY


def digest(hosts, out, slots, *options):
    """Of the weights that a job on these slots of the hosts leaves."""
    job = hosts.launch(slots, *TINY, '--epoch', '1', *options, '--out', hosts.shared / out)
    told = job.communicate(timeout=150)[0]
    assert job.returncode == 0, told
    assert f'4 processes on {f"{sum(map(bool, slots))} x " * (max(slots) < 4)}' in told
    return hashlib.sha256((hosts.shared / out / 'model.npz').read_bytes()).hexdigest()


@pytest.mark.parametrize('wire', ['float16', 'float32'])
def test_the_weights_are_the_same_on_one_host_and_on_three(three, wire):
    one = digest(three, f'one-{wire}', (4, 0, 0), '--allreduce-grad-dtype', wire)
    assert digest(three, f'three-{wire}', (2, 1, 1), '--allreduce-grad-dtype', wire) == one


def test_sample_set_is_each_hosts_own_and_results_are_the_first_ones_alone(three):
    job = three.launch((1, 1, 0), '--epoch', '0.1', '--out', '/tmp/sample')
    told = job.communicate(timeout=150)[0]
    assert job.returncode == 0, told
    for host in three[:2]:
        assert host.run('ls', f'/tmp/home-{host.name}/.cache').stdout
    assert three[0].run('ls', '/tmp/sample/model.npz').returncode == 0
    assert three[1].run('ls', '/tmp/sample').returncode != 0


def test_a_network_that_every_host_has_for_itself_is_not_used(three):
    for host in three[:2]:
        for words in ('add docker0 type bridge', 'add port0 type veth peer name port1',
                      'set port0 up master docker0', 'set port1 up', 'set docker0 up'):
            host.ip('link', *words.split())
        host.ip('address', 'add', '172.17.0.1/16', 'dev', 'docker0')
    try:
        digest(three, 'docker', (2, 2, 0))
    finally:
        for host in three[:2]:
            host.ip('link', 'delete', 'docker0')
            host.ip('link', 'delete', 'port0')
