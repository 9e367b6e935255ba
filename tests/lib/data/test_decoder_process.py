"""What pools of processes, in test_batches.py, do not show of their program."""

import os
import pathlib
import pickle
import runpy
import socket
import subprocess
import sys

from lib.data import decoder_process
from lib.data.shared_memory import SharedMemory

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


def packets():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_shortage_of_memory_is_reported_as_such_and_the_end_of_tasks_is_the_end(monkeypatch):
    def refuse(pixels, augmentation, entries):
        raise MemoryError

    monkeypatch.setattr(decoder_process, 'decode_images', refuse)
    memory = SharedMemory()
    ring = memory.allocate((1, 1, 8, 8, 3))
    (tasks, their_tasks), (results, their_results) = packets(), packets()
    with results:
        with tasks:
            tasks.send(pickle.dumps((7, ring.offset, ring.pixels.shape, 0, None, [])))
        decoder_process.main(their_tasks.detach(), their_results.detach(), memory.descriptor)
        assert pickle.loads(results.recv(1000)) == (7, None)
    memory.close()


@pytest.mark.skipif(sys.platform != 'linux', reason='others do not tell a process that its parent is gone')
def test_process_whose_parent_was_gone_before_it_asked_ends():
    tasks, their_tasks = packets()
    with tasks, their_tasks:
        arguments = map(str, (os.getpid() + 1, their_tasks.fileno(), their_tasks.fileno(), 0))
        process = subprocess.Popen([sys.executable, decoder_process.__file__, *arguments],
                                   pass_fds=[their_tasks.fileno()])
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_modules_are_taken_from_beside_the_program_first(monkeypatch):
    folder = os.path.dirname(decoder_process.__file__)
    monkeypatch.setattr(sys, 'path', [folder, '/elsewhere', *sys.path])
    monkeypatch.setattr(sys, 'argv', [decoder_process.__file__, 'no number'])
    with pytest.raises(ValueError, match='no number'):
        runpy.run_path(decoder_process.__file__, run_name='__main__')
    assert sys.path[:2] == [str(ROOT), '/elsewhere']
