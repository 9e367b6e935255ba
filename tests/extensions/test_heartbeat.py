import types

from extensions import Heartbeat


class Watchdog:
    def __init__(self):
        self.told = []

    def beat(self, iteration):
        self.told.append(iteration)


def test_watchdog_hears_of_every_iteration():
    watchdog = Watchdog()
    heartbeat = Heartbeat(watchdog)
    for iteration in (1, 2):
        heartbeat(types.SimpleNamespace(updater=types.SimpleNamespace(iteration=iteration)))
    assert watchdog.told == [1, 2]
