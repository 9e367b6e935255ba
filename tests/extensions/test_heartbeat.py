import types

from extensions import Heartbeat


class Watchdog:
    def __init__(self):
        self.told = []

    def beat(self, iteration):
        self.told.append(iteration)

    def stop(self):
        self.told.append('stop')


def test_watchdog_hears_of_every_iteration_and_of_the_end():
    watchdog = Watchdog()
    heartbeat = Heartbeat(watchdog)
    for iteration in (1, 2):
        heartbeat(types.SimpleNamespace(updater=types.SimpleNamespace(iteration=iteration)))
    heartbeat.finalize()
    assert watchdog.told == [1, 2, 'stop']
