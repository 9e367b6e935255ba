"""Fixtures of the tests on several hosts."""

import pytest

from tests.hosts import namespaces


@pytest.fixture(scope='session')
def make_hosts(tmp_path_factory):
    """``make_hosts(*names)``: new hosts, removed in the end."""
    missing = namespaces.why_not()
    if missing:
        pytest.skip(missing)
    made = []

    def make(*names):
        made.append(namespaces.Hosts(names, tmp_path_factory.mktemp('hosts')))
        return made[-1]

    yield make
    for hosts in made:
        hosts.remove()


@pytest.fixture(scope='session')
def three(make_hosts):
    return make_hosts('a', 'b', 'c')
