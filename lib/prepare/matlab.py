"""``meta.mat`` of the development kit of ILSVRC 2012, in which MATLAB alone says which class each id is.

Reads as much of MATLAB's level 5 MAT-file format (MathWorks, "MAT-File Format") as that table needs: a
structure array ``synsets`` with the fields ``ILSVRC2012_ID``, a number, and ``WNID``, a text; whatever else
is in the file is stepped over. A file may be damaged, or made to harm: no step leaves the bytes there are,
and a compressed part is unpacked up to a limit.
"""

import math
import struct
import zlib

FILE_BYTES = 1 << 24      # the kit's is 0.3 MB
UNPACKED_BYTES = 1 << 26

_HEADER_BYTES = 128
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_NUMBERS = {1: 'b', 2: 'B', 3: 'h', 4: 'H', 5: 'i', 6: 'I', 7: 'f', 9: 'd', 12: 'q', 13: 'Q'}
_STRUCTURE = 2
_TABLE, _ID, _CLASS = 'synsets', 'ILSVRC2012_ID', 'WNID'


class UnreadableTable(Exception):
    """The bytes hold no such table; the message says why."""


def read_class_of_id(data):
    """Read which class each ILSVRC id is.

    Args:
        data (bytes): A ``meta.mat``.

    Returns:
        dict: Class name (``n02119789``) by id (int). The first 1000 ids are the classes of the challenge.

    Raises:
        UnreadableTable: If it is no file of this format, or damaged, or without the table.
    """
    orders = {b'IM': '<', b'MI': '>'}
    order = orders.get(data[126:_HEADER_BYTES])
    if order is None or len(data) > FILE_BYTES:
        raise UnreadableTable('not a MATLAB 5 file of less than 16 MiB')
    try:
        elements = _Elements(data[_HEADER_BYTES:], order)
        while elements.left():
            kind, content = elements.next()
            if kind == _COMPRESSED:
                kind, content = _Elements(_unpacked(content), order).next()
            found = _table(content, order) if kind == _MATRIX else None
            if found:
                return found
    except (struct.error, zlib.error, UnicodeDecodeError, ValueError, OverflowError):
        raise UnreadableTable('damaged') from None
    raise UnreadableTable(f'holds no {_TABLE} with {_ID} and {_CLASS}')


class _Elements:
    """The data elements that lie one behind the other in ``data``: each a type, a length and its bytes."""

    def __init__(self, data, order):
        self._data = memoryview(data)
        self._order = order
        self._position = 0

    def left(self):
        return self._position < len(self._data)

    def next(self):
        """``(type, bytes)`` of the next one."""
        kind, size = struct.unpack_from(self._order + 'II', self._data, self._position)
        start = self._position + 8
        in_tag = kind >> 16  # up to four bytes stand in the tag itself
        if in_tag:
            kind, size, start = kind & 0xffff, in_tag, start - 4
        end = start + size
        if end > len(self._data) or in_tag > 4:
            raise UnreadableTable('it breaks off')
        # Compressed ones alone are not filled up to a multiple of eight.
        self._position = start + 4 if in_tag else end if kind == _COMPRESSED else end + -size % 8
        return kind, self._data[start:end]

    def numbers(self, expected=None):
        kind, content = self.next()
        if kind not in _NUMBERS or expected not in (None, kind):
            raise UnreadableTable('damaged')
        count = len(content) // struct.calcsize(_NUMBERS[kind])
        return struct.unpack(f'{self._order}{count}{_NUMBERS[kind]}', content)


def _unpacked(content):
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(content, UNPACKED_BYTES)
    if not unpacking.eof:
        raise UnreadableTable('a part of it breaks off, or unpacks to more than 64 MiB')
    return data


def _table(content, order):
    """Class by id, if the matrix ``content`` is the table; else None."""
    elements = _Elements(content, order)
    flags = elements.numbers(_UINT32)
    dimensions = elements.numbers(_INT32)
    name = bytes(elements.next()[1]).decode('ascii', 'replace')
    if flags[0] & 0xff != _STRUCTURE or name != _TABLE:
        return None
    length, = elements.numbers(_INT32)
    names = bytes(elements.next()[1])
    fields = [names[i:i + length].split(b'\0')[0].decode() for i in range(0, len(names), length)]
    if not {_ID, _CLASS} <= set(fields):
        return None
    class_of = {}
    for _ in range(math.prod(dimensions)):
        row = {field: elements.next() for field in fields}
        number, = _value(row[_ID], order).numbers()
        class_of[int(number)] = _text(_value(row[_CLASS], order))
    return class_of


def _value(element, order):
    """The elements of a field's matrix from its content on."""
    kind, content = element
    if kind != _MATRIX:
        raise UnreadableTable('damaged')
    elements = _Elements(content, order)
    for _ in ('flags', 'dimensions', 'name'):
        elements.next()
    return elements


def _text(elements):
    # 8 or 16 bits a character, by whatever type; a class name is ASCII.
    return bytes(elements.next()[1]).replace(b'\0', b'').decode('ascii')
