"""meta.mat is read; a damaged one, or one made to harm, is told."""

import random
import struct
import zlib

from lib.prepare.matlab import UnreadableTable, read_class_of_id

import pytest

from tests.lib.prepare.matlab_writer import COMPRESSED, INT8, meta_mat

CLASS_OF = {1: 'n02119789', 2: 'n02100735', 490: 'n01751748', 1001: 'n00002684'}


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('compressed', [True, False])
def test_class_of_every_id_is_read(order, compressed):
    assert read_class_of_id(meta_mat(CLASS_OF, order, compressed)) == CLASS_OF


def test_fields_may_stand_in_any_order():
    fields = ('words', 'WNID', 'ILSVRC2012_ID')
    assert read_class_of_id(meta_mat(CLASS_OF, fields=fields)) == CLASS_OF


def test_table_may_lie_in_a_row():
    column, row = struct.pack('<ii', len(CLASS_OF), 1), struct.pack('<ii', 1, len(CLASS_OF))
    data = meta_mat(CLASS_OF, compressed=False)
    assert data.count(column) == 1
    assert read_class_of_id(data.replace(column, row)) == CLASS_OF


@pytest.mark.parametrize('data, words', [
    (b'', 'not a MATLAB 5 file'), (b'\x89HDF\r\n' + bytes(200), 'not a MATLAB 5 file'),
    (meta_mat(CLASS_OF)[:128], 'holds no synsets'), (meta_mat(CLASS_OF)[:-9], 'breaks off'),
    (meta_mat(CLASS_OF, fields=('WNID', 'words')), 'holds no synsets'),
    (meta_mat(CLASS_OF)[:128] + struct.pack('<II', COMPRESSED, 3) + b'abc', 'damaged'),
    (meta_mat(CLASS_OF)[:128] + struct.pack('<II', 5 << 16 | INT8, 0) + bytes(8), 'breaks off')])
def test_what_is_no_such_table_is_told(data, words):
    with pytest.raises(UnreadableTable, match=words):
        read_class_of_id(data)


def test_file_of_more_than_16_mib_is_not_looked_at():
    with pytest.raises(UnreadableTable, match='less than 16 MiB'):
        read_class_of_id(meta_mat(CLASS_OF) + bytes(1 << 24))


def test_what_unpacks_without_end_is_not_unpacked():
    bomb = zlib.compress(bytes(1 << 27), 9)
    with pytest.raises(UnreadableTable, match='more than 64 MiB'):
        read_class_of_id(meta_mat(CLASS_OF)[:128] + struct.pack('<II', COMPRESSED, len(bomb)) + bomb)


def test_damaged_files_are_told_or_read_and_nothing_else():
    drawn = random.Random(0)
    whole = meta_mat(CLASS_OF, compressed=False)
    for _ in range(3000):
        data = bytearray(whole[:drawn.randrange(128, len(whole))] if drawn.random() < 0.3 else whole)
        for _ in range(3):
            data[drawn.randrange(124, len(data))] = drawn.choice([0, 1, 255, drawn.randrange(256)])
        try:
            read_class_of_id(bytes(data))
        except UnreadableTable:
            pass
