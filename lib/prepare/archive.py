"""What is in a tar archive, and where: read from its headers alone, and none of them believed."""

import os
import tarfile
import zlib

_BLOCK = 512
_HEADER_BYTES = 1 << 20      # of one header with its long names; TarFile would read a terabyte if one says so
_UNPACKED_BYTES = 1 << 28    # of a compressed archive; the development kit has 7 MB
_GZIP = 31                   # zlib's name for gzip with the largest window


class DamagedArchive(Exception):
    """Not a whole, uncompressed tar archive of plain files; the message says why."""


def members(file, start, end):
    """Find the files in a tar archive.

    Args:
        file: Open binary file.
        start (int): First byte of the archive in it.
        end (int): The byte behind its last; another archive may go on there.

    Yields:
        tuple: ``(base name, offset in file, size)`` of each regular file.

    Raises:
        DamagedArchive: If it is damaged, breaks off, or holds a sparse file.
        OSError: If it cannot be read.
    """
    headers = _Headers(file, end)
    headers.seek(start)
    position = start
    try:
        archive = tarfile.TarFile(fileobj=headers)
        while True:
            member = archive.next()
            if member is None:
                break
            archive.members.clear()  # else TarFile keeps 1.28 million of them
            if member.issparse() or member.size < 0:
                raise DamagedArchive('sparse file' if member.issparse() else 'size below 0')
            # Links and folders have no data, whatever size they state.
            size = member.size if member.isreg() else 0
            position = member.offset_data + -(-size // _BLOCK) * _BLOCK
            if position > end:
                break
            if member.isreg():
                yield os.path.basename(member.name), member.offset_data, size
    except (OSError, DamagedArchive):
        raise
    except Exception as error:  # on damaged headers TarFile raises almost anything, RecursionError too
        raise DamagedArchive(str(error) or type(error).__name__) from None
    # TarFile takes the end of the file for the end of the archive: a download that broke off would pass.
    if position + _BLOCK > end:
        raise DamagedArchive('it breaks off')
    file.seek(position)
    if any(file.read(_BLOCK)):
        raise DamagedArchive('it breaks off')


class _Headers:
    """A file of which TarFile reads headers only, and none behind ``end``."""

    def __init__(self, file, end):
        self._file = file
        self._end = end
        self.seek, self.tell = file.seek, file.tell

    def read(self, size):
        if size > _HEADER_BYTES:
            raise DamagedArchive('a name of more than a megabyte')
        return self._file.read(min(size, max(self._end - self._file.tell(), 0)))


def unpacked(data):
    """Unpack ``data`` if gzip compressed it; raises DamagedArchive if it cannot be, or grows too far."""
    if not data.startswith(b'\x1f\x8b'):
        return data
    unpacking = zlib.decompressobj(_GZIP)
    try:
        data = unpacking.decompress(data, _UNPACKED_BYTES)
    except zlib.error:
        raise DamagedArchive('it cannot be unpacked') from None
    if not unpacking.eof:
        raise DamagedArchive(f'it breaks off, or unpacks to more than {_UNPACKED_BYTES >> 20} MiB')
    return data
