import platform
import socket
import struct
import time
import types

from lib.run import output

import pytest
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from extensions import TensorBoard


def board_in(folder):
    return TensorBoard(str(folder / output.EVENTS))


def write(board, iteration, loss):
    log = [{'iteration': iteration, 'main/loss': loss, 'lr': 0.5}]
    board(types.SimpleNamespace(get_extension=lambda name: types.SimpleNamespace(log=log)))


def scalars(path):
    """Steps, keys and values of the events in a file: records of a length, its sum, bytes, their sum."""
    content, found = path.read_bytes(), []
    while content:
        size, = struct.unpack('<Q', content[:8])
        event = event_pb2.Event.FromString(content[12:12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[16 + size:]
    return found


def test_every_number_of_a_row_is_an_event(tmp_path):
    board = board_in(tmp_path)
    write(board, 39, 2.5)
    write(board, 78, 1.25)
    (path,) = tmp_path.glob('events.out.tfevents.*')
    assert scalars(path) == [(39, 'main/loss', 2.5), (39, 'lr', 0.5),
                             (78, 'main/loss', 1.25), (78, 'lr', 0.5)]


@pytest.mark.parametrize('room', [0, 10])
def test_a_full_disk_costs_its_rows_alone_and_is_said(tmp_path, capsys, full_disk, room):
    board = board_in(tmp_path)
    write(board, 39, 2.5)
    (path,) = tmp_path.iterdir()
    with full_disk(path.stat().st_size + room):
        write(board, 78, 1.25)
    assert 'training goes on' in capsys.readouterr().err
    write(board, 117, 1)
    assert scalars(path) == [(39, 'main/loss', 2.5), (39, 'lr', 0.5), (117, 'main/loss', 1), (117, 'lr', 0.5)]


def test_the_file_is_one_that_tensorboardx_would_have_written(tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'time', lambda: 1e9)
    board = board_in(tmp_path)
    write(board, 39, 2.5)
    write(board, 78, 1.25)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(socket, 'gethostname', platform.node)
    (tmp_path / 'theirs').mkdir()
    theirs = event_file_writer.EventsWriter(str(tmp_path / 'theirs' / 'events'))
    for step, loss in ((39, 2.5), (78, 1.25)):
        for key, value in (('main/loss', loss), ('lr', 0.5)):
            theirs.write_event(event_pb2.Event(wall_time=1e9, step=step, summary=summary.scalar(key, value)))
    theirs.close()
    (other,) = (tmp_path / 'theirs').iterdir()
    assert path.name == other.name and path.read_bytes() == other.read_bytes()
