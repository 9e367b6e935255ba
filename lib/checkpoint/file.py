"""A checkpoint: one file that describes the job.

A checkpoint is an uncompressed ``.npz`` that anybody opens with ``numpy.load``, without unpickling code:

* ``model/...`` and ``optimizer/...``: parameters, persistent values and the optimizer's state, by the paths
  Chainer gives them, and whatever other arrays the caller adds; ``model/format`` is that of
  :mod:`models.file_format`;
* ``description``: a JSON text (0-d array of bytes; of characters, four bytes each, in older files) about the
  job and where it stands;
* ``sha256``: the digest of the name, dtype, shape and bytes of every other entry.

It is written under a temporary name, flushed to the disk and renamed, so that a name of the form
``checkpoint/iteration-00000123.npz`` never belongs to half a file.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import zipfile

from lib import files
from lib.errors import UserError

import numpy as np

from models import file_format

_DESCRIPTION = 'description'
_DIGEST = 'sha256'
_CHUNK = 1 << 20
# What the system says of a path, or of a place in a file, that is wrong: no time will mend it.
_WRONG_FILE = {None, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL}


class DamagedCheckpoint(UserError):
    """A file that is not a whole, unchanged checkpoint; ``path`` and ``reason`` say which and why."""

    def __init__(self, path, reason):
        super().__init__(f'{path}: not a valid checkpoint ({reason}); resume from another one, '
                         'or from the newest valid one with --resume auto')
        self.path = str(path)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


class UnreadableCheckpoint(UserError):
    """A file that cannot be read now and may be whole: no permission, an I/O error, no memory."""


def unreadable(path, error):
    return UnreadableCheckpoint(f'{path}: cannot be read now ({reason_of(error)}) and is left as it is; see '
                                'that it can be, or resume from another checkpoint with --resume PATH')


def reason_of(error):
    reason = (getattr(error, 'strerror', None) or str(error) or type(error).__name__).splitlines()[0]
    # NumPy takes what is no archive for a pickle, and advises to load it unsafely.
    return 'no archive of arrays' if 'pickle' in reason else reason


def _digest_entry(digest, name, array):
    digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
    digest.update(array.reshape(-1).view(np.uint8).data)


def write(path, arrays, description):
    """Write a checkpoint atomically and durably.

    The same arguments give the same bytes. SHA-256 took 0.19 s for the 300 MB of ResNet-50 (zip's own
    CRC-32, 0.11 s, comes on top; BLAKE2b 0.43 s, MD5 0.46 s) on a CPU with SHA instructions; like the writing
    itself it leaves the interpreter lock to other threads.

    Args:
        path: File to create or replace; its directory is made if need be.
        arrays (dict of str to numpy.ndarray): Numbers, booleans or strings.
        description (dict): The job's identity ``job`` (dict), iterations done ``iteration``, the rows of the
            ``log`` (dicts of numbers), seconds trained ``elapsed_time``, what wrote it ``versions`` (dict),
            and whatever else JSON can hold. Tuples come back as lists.

    Raises:
        OSError: The file cannot be written; an older file of that name is untouched.
        TypeError: An object or structured array, or a description that JSON cannot hold.
        ValueError: An array with a reserved name (``description``, ``sha256``).
    """
    reserved = {_DESCRIPTION, _DIGEST} & set(arrays)
    if reserved:
        raise ValueError(f'arrays named {sorted(reserved)}: these names are reserved')
    # order='C' (unlike ascontiguousarray) leaves 0-d arrays 0-d.
    entries = {name: np.asarray(array, order='C') for name, array in arrays.items()}
    for name, array in entries.items():
        if array.dtype.kind in 'OV':
            raise TypeError(f'{name}: arrays of {array.dtype} would need pickle or are structured')
    entries[_DESCRIPTION] = np.asarray(json.dumps(description, separators=(',', ':')).encode())
    digest = hashlib.sha256()
    with archive_at(path) as archive:
        for name in sorted(entries):
            _digest_entry(digest, name, entries[name])
            write_array(archive, name, entries[name])
        write_array(archive, _DIGEST, np.asarray(digest.hexdigest()))


@contextlib.contextmanager
def archive_at(path):
    """Open an uncompressed archive for :func:`write_array`, which takes its place whole and durably."""
    with files.replacing(path, durable=True) as file:
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
            yield archive


def write_array(archive, name, array):
    """Add an array to an archive, as ``numpy.load`` reads it."""
    with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def read(path):
    """Read a checkpoint and verifies all of it.

    Returns:
        tuple: ``(arrays, description)``, as given to :func:`write`; arrays that an earlier version wrote have
        today's names.

    Raises:
        UserError: A newer version wrote it.
        DamagedCheckpoint: Whatever is wrong with the file: missing, cut short, changed, or not a checkpoint.
        UnreadableCheckpoint: The system does not let it be read now.
    """
    arrays = {}
    description = scan(path, arrays.__setitem__)
    return file_format.to_current(path, arrays, prefix='model/'), description


def is_checkpoint(path):
    """Whether a file has a checkpoint's digest, which weights have not; it may be damaged all the same."""
    try:
        with files.open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            return f'{_DIGEST}.npy' in archive.namelist()
    except Exception:  # a damaged file may raise anything
        return False


def scan(path, keep):
    """Verify a checkpoint, hand each array to ``keep(name, array)`` and return the description."""
    try:
        return _scan_unguarded(path, keep)
    except FileNotFoundError:
        raise DamagedCheckpoint(path, 'no such file') from None
    except Exception as error:  # a damaged file may raise anything
        # zipfile takes an I/O error in the search for its directory for a file that has none.
        cause = error.__context__ if isinstance(error, zipfile.BadZipFile) else error
        if isinstance(cause, MemoryError) or isinstance(cause, OSError) and cause.errno not in _WRONG_FILE:
            raise unreadable(path, cause) from error
        raise DamagedCheckpoint(path, reason_of(error)) from error


def _scan_unguarded(path, keep):
    digest = hashlib.sha256()
    texts = {}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(files.open_regular(path))
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ValueError('empty file')
        archive = stack.enter_context(zipfile.ZipFile(file))
        names = archive.namelist()
        if len(set(names)) != len(names) or not {f'{_DESCRIPTION}.npy', f'{_DIGEST}.npy'} <= set(names):
            raise ValueError('not written by this program')
        for info in sorted(archive.infolist(), key=lambda info: info.filename[:-len('.npy')]):
            name, array = _read_member(archive, info, size)
            if name != _DIGEST:
                _digest_entry(digest, name, array)
            if name in (_DESCRIPTION, _DIGEST):
                texts[name] = array.item()
            else:
                keep(name, array)
    if texts[_DIGEST] != digest.hexdigest():
        raise ValueError('the content does not match its checksum')
    description = json.loads(texts[_DESCRIPTION])
    _check_description(description)
    return description


def _check_description(description):
    """Raise ValueError unless a run could continue from it: a checksum is right in a forged file too."""
    if not isinstance(description, dict):
        raise ValueError('its description is none')
    job, log, iteration = (description.get(name) for name in ('job', 'log', 'iteration'))
    if not isinstance(job, dict):
        raise ValueError('its description names no job')
    # bool is an int, and no number here.
    if type(iteration) is not int or not 0 <= iteration <= job.get('iterations', iteration):
        raise ValueError(f'iteration {iteration} of {job.get("iterations", "unknown")}')
    if not (_is_number(description.get('elapsed_time')) and 0 <= description['elapsed_time'] < math.inf):
        raise ValueError('its description holds no time')
    if not isinstance(description.get('versions'), dict):
        raise ValueError('its description names no versions')
    if not (isinstance(log, list) and all(map(_is_row, log))):
        raise ValueError('its description holds no log')


def _is_row(row):
    return (isinstance(row, dict) and {'epoch', 'iteration'} <= row.keys()
            and all(map(_is_number, row.values())))


def _is_number(value):
    # A loss may be NaN. An int may have more digits than anything computes with.
    return type(value) is float or type(value) is int and abs(value) < 1 << 63


def _read_member(archive, info, size):
    """Read name and array of one entry; allocate no more than the archive, of ``size`` bytes, can hold."""
    name, extension = os.path.splitext(info.filename)
    if extension != '.npy' or info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f'{info.filename}: not an uncompressed array')
    if info.file_size > size:
        raise ValueError(f'{info.filename}: larger than the file')
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                       (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read_header(member)
        if fortran_order or dtype.kind in 'OV':
            raise ValueError(f'{info.filename}: not a plain array')
        # math.prod of Python integers: no product overflows.
        left = info.file_size - member.tell()
        if math.prod(shape) * dtype.itemsize != left:
            raise ValueError(f'{info.filename}: {left} bytes for shape {shape} of {dtype}')
        array = np.empty(shape, dtype)
        content = memoryview(array.reshape(-1).view(np.uint8))
        for start in range(0, left, _CHUNK):
            chunk = content[start:start + _CHUNK]
            if member.readinto(chunk) != len(chunk):
                raise ValueError(f'{info.filename}: ends too early')
        if member.read(1):  # the end, where zipfile compares its own checksum
            raise ValueError(f'{info.filename}: ends too late')
    return name, array
