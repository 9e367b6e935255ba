import contextlib
import os
import signal
import subprocess
import sys
import time
import types

from lib.run import signals
from lib.run.signals import Stopped, StopRequest

import pytest

NAMES = ['SIGTERM', 'SIGUSR1', 'SIGINT']
STOP_SIGNALS = [getattr(signal, name) for name in NAMES]


@pytest.fixture
def stop():
    """A request whose training is under way, installed until the test's end."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    request = StopRequest(STOP_SIGNALS).install()
    request._end = lambda status: None
    request.begin()
    request.iteration_done()
    yield request
    request.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(name):
    signal.raise_signal(getattr(signal, name))


@pytest.mark.parametrize('name', NAMES)
def test_a_signal_is_noted_by_name_and_does_not_kill(stop, name):
    assert stop.received is None
    send(name)
    assert stop.received == name


def test_the_first_signal_is_the_one_reported(stop):
    send('SIGUSR1')
    send('SIGTERM')
    send('SIGINT')
    assert stop.received == 'SIGUSR1'


def test_a_signal_that_the_main_thread_has_blocked_comes_with_the_handlers(stop):
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    send('SIGUSR1')
    assert stop.received is None
    assert stop.install().received == 'SIGUSR1'


def test_installing_again_wins_over_a_library_and_forgets_nothing(stop):
    send('SIGUSR1')
    for name in NAMES:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    assert stop.install().received == 'SIGUSR1'
    send('SIGTERM')
    assert stop.received == 'SIGUSR1'


def test_a_signal_that_comes_as_the_watch_ends_is_noted_and_does_nothing_more(monkeypatch):
    before, close = signal.getsignal(signal.SIGUSR1), os.close
    request = StopRequest([signal.SIGUSR1]).install()  # the set-up is not over

    def close_late(descriptor):
        if descriptor == request._bell:  # the watching thread closes too
            send('SIGUSR1')
        close(descriptor)

    monkeypatch.setattr(os, 'close', close_late)
    try:
        request.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert request.received == 'SIGUSR1'


# In a process of its own, whose main thread may be deep in C, where Python runs no handler.

PROGRAM = '''
import signal, sys
from lib.run.signals import Stopped, StopRequest
stop = StopRequest([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]).install()
def compute():
    import hashlib
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2 ** 31 - 1)
def wait():
    print('ready', flush=True)
    input()
def train(where):
    stop.begin()
    stop.iteration_done()
    where()
'''


def run(code):
    process = subprocess.Popen([sys.executable, '-c', PROGRAM + code], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert process.stdout.readline() == 'ready\n'
    return process


def end_of(process):
    try:
        process.wait(timeout=30)
    finally:
        process.kill()
    return process.communicate()


def test_signals_from_outside_do_not_interrupt_reads_or_end_the_process():
    process = run('train(wait)\nprint(stop.received)')
    process.send_signal(signal.SIGTERM)
    assert process.communicate('go on\n')[0] == 'SIGTERM\n'
    assert process.returncode == 0


@pytest.mark.parametrize('where', ['wait', 'compute'])
@pytest.mark.parametrize('name, status', [('SIGTERM', 143), ('SIGINT', 130)])
def test_a_second_signal_ends_the_process_wherever_it_is(where, name, status):
    process = run(f'train({where})')
    process.send_signal(getattr(signal, name))
    time.sleep(0.3)
    assert process.poll() is None
    for _ in range(100):  # the first may not have been looked at yet, and two at once are one
        process.send_signal(getattr(signal, name))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
            break
    assert end_of(process)[1] == f'rank 0: second {name}: ending at once, without a checkpoint\n'
    assert process.returncode == status


def test_the_launchers_reminder_does_not_end_the_process():
    process = run('train(wait)')
    for _ in range(3):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
    assert process.communicate('go on\n')[1] == '' and process.returncode == 0


@pytest.mark.parametrize('seconds, statuses', [(0.05, []), (0.2, [143])])
def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch, seconds, statuses):
    clock = types.SimpleNamespace(monotonic=iter([7.0, 7.0 + seconds]).__next__)
    monkeypatch.setattr(signals, 'time', clock)
    ended, stop = [], StopRequest([])
    stop._end = ended.append
    stop.iteration_done()
    listener, bell = os.pipe()
    os.write(bell, bytes([signal.SIGTERM, signal.SIGTERM]))
    os.close(bell)
    stop._watch(listener)
    assert ended == statuses


@pytest.mark.parametrize('code', ['stop.begin()\ncompute()', 'stop.begin()\nwait()'])
def test_a_signal_before_the_first_iteration_is_done_ends_the_process_with_75(code):
    process = run(code)
    process.send_signal(signal.SIGTERM)
    assert 'SIGTERM before an iteration was done: nothing to save' in end_of(process)[1]
    assert process.returncode == 75


def test_a_signal_during_the_set_up_unwinds_it():
    process = run("""
from lib.run import signals
signals._PATIENCE = 60  # however loaded the machine is
try:
    wait()
except Stopped as stopped:
    print(stopped)
    stop.close()""")
    process.send_signal(signal.SIGTERM)
    out, err = end_of(process)
    assert out.startswith('SIGTERM before an iteration was done') and not err
    assert process.returncode == 0


def test_a_signal_waits_for_mpi_where_there_are_several_ranks(monkeypatch):
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
    process = run("""
try:
    while stop.received is None:
        wait()
    print('noted', flush=True)
    stop.joined(None)
except Stopped as stopped:
    print(stopped)
    stop.close()""")
    process.send_signal(signal.SIGTERM)
    time.sleep(2 * signals._PATIENCE)
    assert process.poll() is None
    assert process.communicate('go on\n')[0].startswith('noted\nSIGTERM before an iteration was done')
    assert process.returncode == 0


def test_no_process_waits_for_mpi_for_ever(monkeypatch):
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
    process = run('from lib.run import signals\nsignals._UNTIL_MPI = 1\nwait()')
    process.send_signal(signal.SIGTERM)
    assert 'SIGTERM before an iteration was done: nothing to save' in end_of(process)[1]
    assert process.returncode == 75


def test_no_handler_of_an_error_takes_a_stop_for_one():
    assert not issubclass(Stopped, Exception)
