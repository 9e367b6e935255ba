"""Run by test_allreduce on several ranks: each case asserts on every rank, and rank 0 prints its name."""

import os

from lib.communication import allreduce, wire

import numpy as np
from mpi4py import MPI

from tests import ranks_cases

world = MPI.COMM_WORLD
P = world.size


def payload_of(rank, size, dtype):
    return np.random.default_rng([rank, size]).standard_normal(size).astype(dtype)


def without_shared_memory(size, dtype):
    share, allreduce._share_memory = allreduce._share_memory, lambda *_: None
    try:
        return allreduce.join(world, size, dtype)
    finally:
        allreduce._share_memory = share


def assert_adds_up(sums, sizes, dtype):
    for size in sizes:
        sums.payload(size)[...] = payload_of(world.rank, size, dtype)
        expected = np.empty(size, dtype)
        wire.sum_payloads(np.stack([payload_of(rank, size, dtype) for rank in range(P)]), expected)
        assert sums.sum(size).tobytes() == expected.tobytes(), (type(sums), size)


@ranks_cases.case
def processes_of_one_host_share_memory():
    for dtype in ('float16', 'float32'):
        sums = allreduce.join(world, 70001, dtype)
        assert isinstance(sums, allreduce.SharedMemorySum)
        # Turns of all lengths, shorter than the number of processes included, one after the other.
        assert_adds_up(sums, [70001, 1, 2, P, P + 1, 1000, 70000, 0, 70001], dtype)


@ranks_cases.case
def others_send_the_same_bits():
    for dtype in ('float16', 'float32'):
        sums = without_shared_memory(70001, dtype)
        assert isinstance(sums, allreduce.AllToAllSum)
        assert_adds_up(sums, [70001, 1, 2, P, P + 1, 1000, 70000, 0, 70001], dtype)


@ranks_cases.case
def a_turn_is_no_longer_than_what_is_sent():
    assert allreduce.join(world, 3, 'float16').capacity == without_shared_memory(3, 'float16').capacity == 3
    assert allreduce.join(world, 0, 'float16').capacity == 1
    assert allreduce.join(world, 1 << 30, 'float16').capacity == 1 << 19


@ranks_cases.case
def different_sizes_are_refused_everywhere():
    try:
        allreduce.join(world, 100 + world.rank, 'float32')
    except ValueError as error:
        assert f'processes send 100 to {99 + P} elements' in str(error)
    else:
        raise AssertionError('not refused')


@ranks_cases.case
def one_process_that_can_not_map_the_memory_sends_all_to_mpi():
    map_, allreduce._map = allreduce._map, lambda *_: None
    try:
        if world.rank != P - 1:
            allreduce._map = map_
        sums = allreduce.join(world, 100, 'float32')
    finally:
        allreduce._map = map_
    assert isinstance(sums, allreduce.AllToAllSum)
    assert_adds_up(sums, [100], 'float32')


@ranks_cases.case
def no_room_on_the_first_process_sends_all_to_mpi():
    def refuse(*_):
        raise OSError(28, 'No space left on device')

    allocate, os.posix_fallocate = os.posix_fallocate, refuse
    try:
        assert isinstance(allreduce.join(world, 100, 'float32'), allreduce.AllToAllSum)
    finally:
        os.posix_fallocate = allocate


@ranks_cases.case
def memory_of_another_is_not_taken_for_the_first_process_s():
    path = f'/proc/{os.getpid()}/fd/'
    descriptor = os.memfd_create('other')
    os.ftruncate(descriptor, 4096)
    assert allreduce._map(f'{path}{descriptor}', 4096, b'x' * 16) is None
    assert allreduce._map(f'{path}{descriptor}', 4096, bytes(16)) is not None
    assert allreduce._map(f'{path}{descriptor}', 8192, bytes(16)) is None
    os.close(descriptor)
    assert allreduce._map(f'{path}{descriptor}', 4096, bytes(16)) is None


@ranks_cases.case
def no_file_stays_open():
    before = os.listdir('/proc/self/fd')
    sums = [allreduce.join(world, 1000, 'float16') for _ in range(20)]
    opened = len(os.listdir('/proc/self/fd')) - len(before)
    assert opened <= len(sums), opened  # the mapping's own copy at most
    del sums
    assert len(os.listdir('/proc/self/fd')) <= len(before)


if __name__ == '__main__':
    ranks_cases.run()
