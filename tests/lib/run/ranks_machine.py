"""Run by test_machine on several ranks: each case asserts on every rank, and rank 0 prints its name."""

import re

from lib.communication.collectives import host
from lib.errors import UserError
from lib.run import machine

from mpi4py import MPI

from tests import ranks_cases

world = MPI.COMM_WORLD


def told(facts):
    try:
        return machine.check_job(world, facts)
    except UserError as error:
        return str(error)


@ranks_cases.case
def ranks_with_the_same_facts_are_one_job():
    assert told({'version': 1, 'sizes': [1, 2]}) is None


@ranks_cases.case
def a_fact_that_differs_is_named_with_its_ranks():
    assert told({'version': 1 + world.rank, 'sizes': [1, 2]}).startswith(
        f'version differs between ranks: 1 on rank 0 (host {host()}); 2 on rank 1 (host {host()})')


@ranks_cases.case
def a_fact_that_some_ranks_lack_is_named():
    assert told({'version': 1, **({'n_train': 5} if world.rank else {})}).startswith(
        f'n_train differs between ranks: None on rank 0 (host {host()}); 5 on rank 1 (host {host()})')


@ranks_cases.case
def the_mpi_library_is_among_the_versions():
    assert re.match(r'\S+', machine.versions()['mpi'])


if __name__ == '__main__':
    ranks_cases.run()
