import os
import signal
import subprocess
import sys

from lib.run.signals import StopRequest

import pytest

NAMES = ['SIGTERM', 'SIGUSR1', 'SIGINT']
STOP_SIGNALS = [getattr(signal, name) for name in NAMES]


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = {name: signal.getsignal(getattr(signal, name)) for name in NAMES}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def send(name):
    signal.raise_signal(getattr(signal, name))


@pytest.mark.parametrize('name', NAMES)
def test_a_signal_is_noted_by_name_and_does_not_kill(name):
    stop = StopRequest(STOP_SIGNALS).install()
    assert stop.received is None
    send(name)
    assert stop.received == name


def test_the_first_signal_is_the_one_reported():
    stop = StopRequest(STOP_SIGNALS).install()
    send('SIGUSR1')
    send('SIGTERM')
    send('SIGINT')
    assert stop.received == 'SIGUSR1'


def test_a_second_interrupt_interrupts():
    stop = StopRequest(STOP_SIGNALS).install()
    send('SIGINT')
    with pytest.raises(KeyboardInterrupt):
        send('SIGINT')
    assert stop.received == 'SIGINT'


def test_installing_again_wins_over_a_library_and_forgets_nothing():
    stop = StopRequest(STOP_SIGNALS).install()
    send('SIGUSR1')
    for name in NAMES:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    assert stop.install().received == 'SIGUSR1'
    send('SIGTERM')
    assert stop.received == 'SIGUSR1'


def test_installing_again_leaves_the_second_interrupt_to_the_impatient():
    stop = StopRequest(STOP_SIGNALS).install()
    send('SIGINT')
    stop.install()
    with pytest.raises(KeyboardInterrupt):
        send('SIGINT')


def test_signals_from_outside_do_not_interrupt_reads_or_end_the_process():
    code = '''
import signal
from lib.run.signals import StopRequest
stop = StopRequest([signal.SIGTERM]).install()
print('ready', flush=True)
assert input() == 'go on'
print(stop.received)
'''
    process = subprocess.Popen([sys.executable, '-c', code], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    assert process.communicate('go on\n')[0] == 'SIGTERM\n'
    assert process.returncode == 0
