"""Tar archives as distributed are read in test_source.py; here, those that lie."""

import gc
import gzip
import io
import tarfile

from lib.prepare import archive

import pytest

BLOCK = 512


def header(name='x.JPEG', size=0, kind=tarfile.REGTYPE):
    """A header block with a right checksum, whatever it says."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])
    block[124:136] = (0x80 << 88 | size).to_bytes(12, 'big') if size >= 0 else b'\xff' * 12  # base 256
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


def members(data, end=None):
    return list(archive.members(io.BytesIO(data), 0, len(data) if end is None else end))


def test_members_of_plain_headers_are_found():
    data = header('a.JPEG', 3) + b'abc'.ljust(BLOCK, b'\0') + header('b/c.JPEG') + bytes(BLOCK)
    assert members(data) == [('a.JPEG', BLOCK, 3), ('c.JPEG', 3 * BLOCK, 0)]


def test_links_and_folders_have_no_data_whatever_size_they_state():
    for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE):
        assert members(header(size=5000, kind=kind) + bytes(BLOCK)) == []


def test_members_that_were_found_are_not_kept():
    found = archive.members(io.BytesIO(100 * header() + bytes(BLOCK)), 0, 101 * BLOCK)
    for _ in range(100):
        next(found)
    gc.collect()
    assert sum(type(each) is tarfile.TarInfo for each in gc.get_objects()) < 10


def test_file_that_cannot_be_read_is_not_called_damaged():
    class Failing(io.BytesIO):
        def read(self, size):
            raise OSError(5, 'Input/output error')

    with pytest.raises(OSError, match='Input/output'):
        list(archive.members(Failing(), 0, BLOCK))


@pytest.mark.parametrize('data, words', [
    (header(size=1 << 40), 'breaks off'), (header(size=1 << 80), 'breaks off'),
    (header(size=-1), 'size below 0'),
    (header() + b'no header'.ljust(BLOCK), 'breaks off'),
    (header(size=1 << 40, kind=tarfile.GNUTYPE_LONGNAME), 'more than a megabyte'),
    (header(size=1 << 40, kind=tarfile.XHDTYPE), 'more than a megabyte'),
    (header(size=1, kind=tarfile.GNUTYPE_SPARSE), 'sparse'),
    (5000 * (header(size=1, kind=tarfile.GNUTYPE_LONGNAME) + b'a'.ljust(BLOCK, b'\0')), 'recursion'),
], ids=['a terabyte', 'beyond 64 bits', 'negative', 'garbage', 'long name', 'pax', 'sparse', 'nested names'])
def test_archive_that_lies_is_damaged(data, words):
    with pytest.raises(archive.DamagedArchive, match=words):
        members(data + bytes(2 * BLOCK))


def test_archive_inside_another_ends_where_it_is_said_to():
    data = header('a.JPEG', 3) + b'abc'.ljust(BLOCK, b'\0') + bytes(BLOCK)
    assert members(data + header('next.JPEG'), len(data)) == [('a.JPEG', BLOCK, 3)]
    with pytest.raises(archive.DamagedArchive, match='breaks off'):
        members(data + header('next.JPEG'), len(data) - BLOCK)


def test_gzip_is_unpacked_up_to_a_limit():
    assert archive.unpacked(gzip.compress(b'abc')) == b'abc'
    assert archive.unpacked(b'abc') == b'abc'
    with pytest.raises(archive.DamagedArchive, match='256 MiB'):
        archive.unpacked(gzip.compress(bytes((1 << 28) + 1), 1))
    with pytest.raises(archive.DamagedArchive, match='breaks off'):
        archive.unpacked(gzip.compress(b'abc')[:-4])
