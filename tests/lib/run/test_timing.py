"""Spans of an iteration, on a clock and on CUDA events that stand in for a GPU's."""

import types

from lib.run import timing

import pytest


@pytest.fixture
def clock(monkeypatch):
    """A clock that each test sets."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock.now)
    return clock


def test_spans_are_collected_by_name_in_order_and_once(clock):
    timer = timing.Timer(False)
    for seconds in (1, 2):
        with timer('iteration'):
            with timer('data'):
                clock.now += seconds
            clock.now += 10
    assert timer.collect() == {'data': [1, 2], 'iteration': [11, 12]}
    assert timer.collect() == {}


def test_span_that_ends_by_an_exception_does_not_count(clock):
    timer = timing.Timer(False)
    with pytest.raises(KeyError), timer('data'):
        raise KeyError
    assert timer.collect() == {}


def test_gpu_is_waited_for_only_when_times_are_collected(monkeypatch):
    log = []

    class Event:
        count = 0

        def record(self):
            Event.count += 1
            self.milliseconds = 250 * Event.count
            log.append('record')

        def synchronize(self):
            log.append('synchronize')

    elapsed = types.SimpleNamespace(
        get_elapsed_time=lambda start, stop: stop.milliseconds - start.milliseconds)
    monkeypatch.setattr(timing, 'cuda', types.SimpleNamespace(
        Event=Event, cupy=types.SimpleNamespace(cuda=elapsed)))
    timer = timing.Timer(True)
    with timer('allreduce'):
        pass
    assert log == ['record', 'record']
    assert timer.collect() == {'allreduce': [0.25]}
    assert log[2:] == ['synchronize']


def test_gpu_events_of_a_long_epoch_are_read_half_by_half_in_order(monkeypatch):
    class Event:
        count = alive = 0

        def __init__(self):
            Event.alive += 1

        def __del__(self):
            Event.alive -= 1

        def record(self):
            Event.count += 1
            self.milliseconds = 1000 * Event.count ** 2

        def synchronize(self):
            pass

    elapsed = types.SimpleNamespace(
        get_elapsed_time=lambda start, stop: stop.milliseconds - start.milliseconds)
    monkeypatch.setattr(timing, 'cuda', types.SimpleNamespace(
        Event=Event, cupy=types.SimpleNamespace(cuda=elapsed)))
    monkeypatch.setattr(timing, 'EVENTS', 8)
    timer = timing.Timer(True)
    for _ in range(100):
        with timer('iteration'):
            pass
    assert Event.alive <= 2 * 8
    # The k-th span is from event 2k + 1 to 2k + 2.
    assert timer.collect() == {'iteration': [(2 * k + 2) ** 2 - (2 * k + 1) ** 2 for k in range(100)]}
    assert timer.collect() == {}
