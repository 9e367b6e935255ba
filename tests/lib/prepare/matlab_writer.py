"""Writes MATLAB's level 5 MAT-files as its format document lays them out, for tests of what reads them."""

import struct
import zlib

INT8, INT32, UINT32, UINT16, DOUBLE, MATRIX, COMPRESSED = 1, 5, 6, 4, 9, 14, 15
STRUCTURE, CHARACTERS, DOUBLES = 2, 4, 6


def element(kind, data, order='<', small=False):
    if small and len(data) <= 4:
        return struct.pack(order + 'I', len(data) << 16 | kind) + data.ljust(4, b'\0')
    return struct.pack(order + 'II', kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(matlab_class, dimensions, parts, name='', order='<'):
    content = element(UINT32, struct.pack(order + 'II', matlab_class, 0), order)
    content += element(INT32, struct.pack(f'{order}{len(dimensions)}i', *dimensions), order)
    content += element(INT8, name.encode(), order, small=True) + b''.join(parts)
    return element(MATRIX, content, order)


def number(value, order='<'):
    # MATLAB stores a double that is a small integer in fewer bytes.
    kind, data = (UINT16, struct.pack(order + 'H', value)) if value % 2 else (
        DOUBLE, struct.pack(order + 'd', value))
    return matrix(DOUBLES, [1, 1], [element(kind, data, order, small=True)], order=order)


def text(value, order='<'):
    data = struct.pack(f'{order}{len(value)}H', *map(ord, value))
    return matrix(CHARACTERS, [1, len(value)], [element(UINT16, data, order, small=True)], order=order)


def meta_mat(class_of, order='<', compressed=True, fields=('ILSVRC2012_ID', 'WNID', 'words', 'num_children')):
    """The kit's ``meta.mat`` with this class name by id."""
    names = b''.join(field.encode().ljust(19, b'\0') for field in fields)
    parts = [element(INT32, struct.pack(order + 'i', 19), order, small=True), element(INT8, names, order)]
    for ilsvrc_id, class_name in class_of.items():
        row = {'ILSVRC2012_ID': number(ilsvrc_id, order), 'WNID': text(class_name, order),
               'words': text('kit fox, Vulpes macrotis', order), 'num_children': number(0, order)}
        parts += [row[field] for field in fields]
    other = matrix(DOUBLES, [1, 1], [element(DOUBLE, struct.pack(order + 'd', 1.0), order)], 'version', order)
    variables = [other, matrix(STRUCTURE, [len(class_of), 1], parts, 'synsets', order)]
    if compressed:
        packed = [zlib.compress(variable) for variable in variables]
        variables = [struct.pack(order + 'II', COMPRESSED, len(data)) + data for data in packed]
    header = b'MATLAB 5.0 MAT-file, written by a test'.ljust(124) + struct.pack(order + 'HH', 0x0100, 0x4d49)
    return header + b''.join(variables)
