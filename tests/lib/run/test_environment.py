"""Threads and memory of a process, settled before it imports NumPy, however it was started."""

import os
import pathlib
import platform
import subprocess
import sys

from lib.run import environment

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
LAUNCHERS = ('OMPI_', 'PMIX_', 'PMI_', 'MPI_', 'SLURM_')
USERS = ('OPENBLAS_', 'OMP_', 'MKL_', 'MALLOC_', 'GLIBC_TUNABLES')

# Prints what C libraries are told when NumPy is first asked for.
WATCH = '''
import ctypes, sys
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
class Watch:
    def find_spec(self, name, *others):
        if name == 'numpy':
            print(*(getenv(library + b'_NUM_THREADS') for library in (b'OPENBLAS', b'OMP', b'MKL')))
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Watch())
sys.path[:0] = [{root!r}, {root!r} + '/tests']
import {module}
'''

# Prints the pages that a large array, the second of its size, had faulted in.
FAULTS = '''
import lib, resource
import numpy as np
np.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')


@pytest.fixture(autouse=True)
def nobody_said_anything(monkeypatch):
    for name in os.environ:
        if name.startswith((*LAUNCHERS, *USERS)):
            monkeypatch.delenv(name)


@pytest.fixture
def cores(monkeypatch):
    """``cores(own, launcher)``: the cores that this process and its launcher may use."""
    def set_up(own, launcher):
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(launcher if pid else own), raising=False)
    return set_up


@pytest.fixture
def told(monkeypatch):
    """What is put into the environment for C libraries alone, by name."""
    values = {}
    monkeypatch.setattr(environment.os, 'putenv', values.__setitem__)
    return values


def python(program):
    return subprocess.run([sys.executable, '-c', program], cwd=ROOT, env=dict(os.environ), text=True,
                          check=True, stdout=subprocess.PIPE).stdout


@on_glibc
@pytest.mark.parametrize('module', ['train_imagenet', 'lib', 'models', 'extensions',
                                    'lib.data.decoder_process', 'lib.prepare', 'conftest',
                                    'jobs.bench.exchange'])
def test_threads_are_set_when_numpy_is_imported(module, monkeypatch):
    monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_SIZE', '1000')
    said = python(WATCH.format(root=str(ROOT), module=module))
    assert said.splitlines()[0] == "b'1' b'1' b'1'"


@pytest.mark.parametrize('said, ranks', [
    ({}, 1), ({'OMPI_COMM_WORLD_LOCAL_SIZE': '4', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)'}, 4),
    ({'MPI_LOCALNRANKS': '3'}, 3), ({'SLURM_STEP_TASKS_PER_NODE': '8(x128)'}, 8),
    ({'SLURM_STEP_TASKS_PER_NODE': '3,8(x2)'}, 8), ({'SLURM_STEP_TASKS_PER_NODE': '2'}, 2)])
def test_every_launcher_says_how_many_ranks_are_on_this_host(said, ranks, monkeypatch):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert environment.ranks_on_this_host() == ranks


@pytest.mark.parametrize('own, launcher, ranks, threads', [
    (16, 16, 1, 16), (16, 16, 4, 4), (16, 16, 5, 3), (2, 2, 4, 1),
    (1, 16, 2, 1), (4, 16, 4, 4),  # bound to a core, to a share
    (8, 16, 4, 4),                 # bound to a socket, together with another
    (4, 16, 1, 4)])
def test_ranks_share_the_cores_unless_each_is_bound_to_its_own(own, launcher, ranks, threads, cores,
                                                                monkeypatch):
    cores(range(own), range(launcher))
    monkeypatch.setenv('MPI_LOCALNRANKS', str(ranks))
    assert environment.cores_of_this_rank() == threads


def test_without_affinities_all_cores_are_shared(monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 12)
    monkeypatch.setenv('MPI_LOCALNRANKS', '5')
    assert environment.cores_of_this_rank() == 2


@pytest.mark.parametrize('name', ['OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'])
def test_the_users_number_of_threads_counts_for_all(name, told, cores, monkeypatch):
    cores(range(4), range(4))
    monkeypatch.setenv(name, '7')
    environment.set_threads()
    assert [told.get(other) for other in environment._THREADS] == [
        None if other == name else '7' for other in environment._THREADS]


def test_ranks_started_by_this_process_do_not_take_its_choice_for_the_users(cores, told):
    cores(range(3), range(3))
    environment.set_threads()
    assert not [name for name in os.environ if name in environment._THREADS]


@on_glibc
def test_memory_of_large_arrays_is_used_again(monkeypatch):
    assert int(python(FAULTS)) < 16  # huge pages would be 32
    monkeypatch.setenv('MALLOC_MMAP_THRESHOLD_', '100000')
    assert int(python(FAULTS)) >= 16  # the user's word


@pytest.mark.parametrize('name, value', [('MALLOC_TOP_PAD_', '1'),
                                         ('GLIBC_TUNABLES', 'glibc.malloc.trim_threshold=1')])
def test_malloc_is_left_to_a_user_who_has_set_it(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment.ctypes, 'CDLL', lambda name: pytest.fail('malloc was set'))
    environment.keep_memory()


def test_elsewhere_than_on_glibc_malloc_is_left_alone(monkeypatch):
    class Musl:
        def __getattr__(self, name):
            raise AttributeError(name)
    monkeypatch.setattr(environment.ctypes, 'CDLL', lambda name: Musl())
    environment.keep_memory()


@pytest.mark.parametrize('said, expected', [
    ({}, None), ({'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_SIZE': '4'}, '^ofi'),
    ({'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_SIZE': '2'}, None),
    ({'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_SIZE': '4', 'OMPI_MCA_btl': 'self,tcp'}, None)],
    ids=['alone', 'one host', 'two hosts', "user's choice"])
def test_libfabric_is_left_out_among_ranks_of_one_host(said, expected, told, monkeypatch):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    environment.leave_out_networks()
    assert told.get('OMPI_MCA_btl') == expected
