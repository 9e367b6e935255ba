"""Pools of processes use it in test_batches.py; here, where batches lie."""

import io
import mmap

from lib.data import shared_memory
from lib.data.shared_memory import SharedMemory

import pytest

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def memory():
    memory = SharedMemory()
    yield memory
    memory.close()


def test_rings_lie_in_whole_pages_behind_each_other(memory):
    rings = [memory.allocate((n_bytes,)) for n_bytes in (PAGE + 1, 3, PAGE)]
    for value, ring in enumerate(rings):
        ring.pixels[...] = value
    assert [ring.offset for ring in rings] == [0, 2 * PAGE, 3 * PAGE]
    assert all((ring.pixels == value).all() for value, ring in enumerate(rings))


def test_released_memory_is_used_by_the_next_ring_of_its_size(memory):
    first, second = (memory.allocate((PAGE,)) for _ in range(2))
    memory.release(second)
    assert memory.allocate((2 * PAGE,)).offset == 2 * PAGE
    assert [memory.allocate((PAGE,)).offset for _ in range(2)] == [second.offset, 4 * PAGE]


@pytest.mark.parametrize('text, n_bytes', [
    ('MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:  2000 kB\n', 2000 * 1024),
    ('MemTotal: 9000 kB\n', float('inf')), ('', float('inf'))])
def test_available_memory_is_what_the_system_says_in_kib(monkeypatch, text, n_bytes):
    monkeypatch.setattr('builtins.open', lambda path: io.StringIO(text))
    assert shared_memory._available_memory() == n_bytes
