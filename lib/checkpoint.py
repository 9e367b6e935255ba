"""Checkpoints: one file that describes the job.

A checkpoint is an uncompressed ``.npz`` that anybody opens with ``numpy.load``, without unpickling code:

* ``model/...`` and ``optimizer/...``: parameters, persistent values and the optimizer's state, by the paths
  Chainer gives them, and whatever other arrays the caller adds; ``model/format`` is :mod:`lib.file_format`'s;
* ``description``: a JSON text (0-d Unicode array) about the job and where it stands;
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
import pathlib
import platform
import re
import stat
import threading
import zipfile

import chainer
import numpy as np
from chainer.backends import cuda

from lib import file_format
from lib.errors import UserError

_DIRECTORY = 'checkpoint'
_NAME = re.compile(r'iteration-(\d{8,})\.npz')
_TEMPORARY = re.compile(r'.+\.partial-(?P<host>.+)-(?P<pid>\d+)')
_DESCRIPTION = 'description'
_DIGEST = 'sha256'
DIGEST_MEMBER = f'{_DIGEST}.npy'  # what a checkpoint has and weights have not
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


def _unreadable(path, error):
    return UnreadableCheckpoint(f'{path}: cannot be read now ({reason(error)}) and is left as it is; see '
                                'that it can be, or resume from another checkpoint with --resume PATH')


def reason(error):
    return (getattr(error, 'strerror', None) or str(error) or type(error).__name__).splitlines()[0]


# Files

def _host():
    return platform.node() or 'host'


@contextlib.contextmanager
def replacing(path):
    """Opens a binary file that takes the name ``path``, whole and on the disk, or not at all.

    Raises:
        OSError: The file cannot be written (disk full, read-only, quota); the temporary file is removed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Host and process in the name tell a dead writer's leavings from a file being written (see prune).
    temporary = path.with_name(f'{path.name}.partial-{_host()}-{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The file has its name already, and not every file system can synchronise a directory.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _digest_entry(digest, name, array):
    digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
    digest.update(array.reshape(-1).view(np.uint8).data)


def write(path, arrays, description):
    """Writes a checkpoint atomically and durably.

    The same arguments give the same bytes. SHA-256 took 0.19 s for the 300 MB of ResNet-50 (zip's own
    CRC-32, 0.11 s, comes on top; BLAKE2b 0.43 s, MD5 0.46 s) on a CPU with SHA instructions; like the writing
    itself it leaves the interpreter lock to other threads.

    Args:
        path: File to create or replace; its directory is made if need be.
        arrays (dict of str to numpy.ndarray): Numbers, booleans or strings.
        description (dict): Anything JSON can hold. Tuples come back as lists.

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
    entries[_DESCRIPTION] = np.asarray(json.dumps(description))
    digest = hashlib.sha256()
    with replacing(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            _digest_entry(digest, name, entries[name])
            _write_member(archive, name, entries[name])
        _write_member(archive, _DIGEST, np.asarray(digest.hexdigest()))


def write_arrays(path, arrays):
    """Writes an uncompressed ``.npz`` of ``arrays``, atomically and durably."""
    with replacing(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            _write_member(archive, name, arrays[name])


def _write_member(archive, name, array):
    with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def read(path):
    """Reads a checkpoint and verifies all of it.

    Returns:
        tuple: ``(arrays, description)``, as given to :func:`write`; arrays that an earlier version wrote have
        today's names.

    Raises:
        UserError: A newer version wrote it.
        DamagedCheckpoint: Whatever is wrong with the file: missing, cut short, changed, or not a checkpoint.
        UnreadableCheckpoint: The system does not let it be read now.
    """
    arrays = {}
    description = _scan(path, arrays.__setitem__)
    return file_format.to_current(path, arrays, prefix='model/'), description


def _scan(path, keep):
    """Verifies a checkpoint, hands each array to ``keep(name, array)`` and returns the description."""
    try:
        return _scan_unguarded(path, keep)
    except FileNotFoundError:
        raise DamagedCheckpoint(path, 'no such file') from None
    except Exception as error:  # a damaged file may raise anything
        # zipfile takes an I/O error in the search for its directory for a file that has none.
        cause = error.__context__ if isinstance(error, zipfile.BadZipFile) else error
        if isinstance(cause, MemoryError) or isinstance(cause, OSError) and cause.errno not in _WRONG_FILE:
            raise _unreadable(path, cause) from error
        raise DamagedCheckpoint(path, reason(error)) from error


def _scan_unguarded(path, keep):
    digest = hashlib.sha256()
    texts = {}
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for its writer
        raise ValueError('not a file')
    if status.st_size == 0:
        raise ValueError('empty file')
    with open(path, 'rb') as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names) or not {f'{_DESCRIPTION}.npy', DIGEST_MEMBER} <= set(names):
            raise ValueError('not written by this program')
        for info in sorted(archive.infolist(), key=lambda info: info.filename[:-len('.npy')]):
            name, array = _read_member(archive, info, status.st_size)
            if name != _DIGEST:
                _digest_entry(digest, name, array)
            if name in (_DESCRIPTION, _DIGEST):
                texts[name] = array.item()
            else:
                keep(name, array)
    if texts[_DIGEST] != digest.hexdigest():
        raise ValueError('the content does not match its checksum')
    return json.loads(texts[_DESCRIPTION])


def _read_member(archive, info, size):
    """Name and array of one entry; allocates no more than the archive, of ``size`` bytes, can hold."""
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


# The directory of checkpoints

def path_of(out, iteration):
    """``OUT/checkpoint/iteration-00000123.npz``."""
    return pathlib.Path(out) / _DIRECTORY / f'iteration-{iteration:08d}.npz'


def _matching(directory, pattern):
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = ((pattern.fullmatch(name), directory / name) for name in names)
    return [(match, path) for match, path in matches if match]


def list_checkpoints(out):
    """Paths of the checkpoints in ``out``, newest first, valid or not."""
    found = _matching(pathlib.Path(out) / _DIRECTORY, _NAME)
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]), reverse=True)]


def newest_valid(out, report):
    """The newest checkpoint in ``out`` that is whole.

    Args:
        report (callable): Called with one line for each damaged checkpoint passed over.

    Returns:
        tuple: ``(path, arrays, description)``; ``None`` if there is no checkpoint.

    Raises:
        UserError: There are checkpoints, and all are damaged, or the newest that is not damaged cannot be
            read now.
    """
    try:
        paths = list_checkpoints(out)
    except OSError as error:
        raise _unreadable(pathlib.Path(out) / _DIRECTORY, error) from error
    for path in paths:
        try:
            return (path, *read(path))
        except DamagedCheckpoint as error:
            report(f'passing over {path}: {error.reason}')
    if paths:
        raise UserError(f'{paths[0].parent}: none of its checkpoints ({len(paths)}) is valid; start over '
                        'with --force, which removes them, or choose another --out')
    return None


def prune(out, keep):
    """Removes all but the newest ``keep`` checkpoints, and temporary files whose writer is dead.

    If all of those are damaged, the newest valid one stays as well, and all that are newer than that one and
    cannot be read now: what may be the only valid checkpoint is never removed. That means reading one file,
    normally the one written last.
    """
    if keep < 1:
        raise ValueError(f'keep={keep}: at least 1')
    paths = list_checkpoints(out)
    if len(paths) > keep:
        spared = set()
        for path in paths:
            try:
                _scan(path, lambda name, array: None)
                spared.add(path)
                break
            except UnreadableCheckpoint:
                spared.add(path)
            except DamagedCheckpoint:
                pass
        for path in paths[keep:]:
            if path not in spared:
                _remove(path)
    _remove_temporaries(out)


def remove_all(out):
    """Removes the checkpoints of an earlier run, and temporary files whose writer is dead."""
    for path in list_checkpoints(out):
        _remove(path)
    _remove_temporaries(out)


def _remove_temporaries(out):
    out = pathlib.Path(out)
    for directory in (out, out / _DIRECTORY):
        for match, path in _matching(directory, _TEMPORARY):
            if not _is_alive(match['host'], int(match['pid'])):
                _remove(path)


def _is_alive(host, pid):
    # A job that moved to another host has left its writer behind there.
    if host != _host():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


# Does the checkpoint belong to this job?

def compare_jobs(saved, current):
    """What must agree between a checkpoint's job and this one, and does not.

    Args:
        saved (dict): What the checkpoint's description says of its job.
        current (dict): The same of this job; dictionaries may be nested. Lists and tuples are alike, as JSON
            has it.

    Returns:
        list of str: A phrase for each difference, such as ``seed: 0 in the checkpoint, 1 now``.
    """
    saved, current = (dict(_leaves(json.loads(json.dumps(job)))) for job in (saved, current))
    return [f'{name}: {_phrase(saved, name)} in the checkpoint, {_phrase(current, name)} now'
            for name in dict.fromkeys([*current, *saved])
            if name not in saved or name not in current or saved[name] != current[name]]


def _leaves(job, prefix=''):
    for name, value in job.items():
        if isinstance(value, dict):
            yield from _leaves(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _phrase(job, name):
    if name not in job:
        return 'not given'
    value = job[name]
    return value if isinstance(value, str) else json.dumps(value)


# Writing while training goes on

class BackgroundWriter:
    """Writes one checkpoint at a time in a thread of its own.

    The thread is not a daemon: a program that ends without :meth:`close` still finishes its last file.
    A checkpoint that cannot be written (disk full, read-only, quota) is not the end of the training: the
    next call of any method returns one line about it, once. Any other exception is a fault and raised there.
    """

    def __init__(self):
        self._thread = None
        self._path = None
        self._error = None

    def submit(self, path, arrays, description, on_done=None):
        """Starts to write a checkpoint, after waiting for the previous one.

        Args:
            path, arrays, description: As for :func:`write`; the caller leaves the arrays alone from now on.
            on_done (callable): Called with ``path``, in the writing thread, once the file is in its place.

        Returns:
            str or None: What went wrong with the previous one.
        """
        failure = self.close()
        self._path = path
        self._thread = threading.Thread(target=self._write, args=(path, arrays, description, on_done),
                                        name='checkpoint writer')
        self._thread.start()
        return failure

    def _write(self, path, arrays, description, on_done):
        try:
            write(path, arrays, description)
            if on_done is not None:
                on_done(path)
        except Exception as error:
            self._error = error

    def failure(self):
        """What went wrong with the last checkpoint, or ``None``; does not wait for it."""
        if self._thread is not None and self._thread.is_alive():
            return None
        return self.close()

    def close(self):
        """Waits for the last checkpoint and returns what went wrong with it, or ``None``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return None
        if isinstance(error, (OSError, MemoryError)):
            return f'checkpoint {self._path} failed: {error or type(error).__name__}'
        raise error


# From and to Chainer

class _Collector(chainer.Serializer):
    """Collects the live values of a link by path, copying none."""

    def __init__(self, target, path):
        self._target = target
        self._path = path

    def __getitem__(self, key):
        return _Collector(self._target, f'{self._path}{key.strip("/")}/')

    def __call__(self, key, value):
        if value is None:
            raise ValueError(f'{self._path}{key} has no value yet: give the network its input sizes')
        self._target[f'{self._path}{key}'] = value
        return value


def model_values(model, path=''):
    """Collects the live values of a network by path, copying none."""
    values = {}
    _Collector(values, path).save(model)
    return values


def _update_rules(optimizer):
    for name, param in optimizer.target.namedparams():
        if param.update_rule is not None:
            yield f'optimizer{name}/', param, param.update_rule


def _optimizer_values(optimizer):
    values = {'optimizer/t': optimizer.t, 'optimizer/epoch': optimizer.epoch}
    for path, _, rule in _update_rules(optimizer):
        values[f'{path}t'] = rule.t
        for name, value in (rule.state or {}).items():
            values[f'{path}{name}'] = value
        # Chainer itself saves no float32 master parameters: a resumed run would start from rounded ones.
        if rule._fp32_param is not None:
            values[f'{path}fp32_param'] = rule._fp32_param.array
    return values


def to_host(value):
    """A copy in host memory, which training does not change any more."""
    return cuda.to_cpu(value) if isinstance(value, cuda.ndarray) else np.array(value)


def flatten(model, optimizer):
    """Copies model and optimizer into host arrays.

    Args:
        model (chainer.Link): Parameters and persistent values go under ``model/``.
        optimizer (chainer.GradientMethod): Goes under ``optimizer/``: ``t`` and ``epoch``, and of each
            parameter its update rule's ``t``, its state (none before the first update) and, under
            ``fp32_param``, the float32 master copy of a float16 parameter.

    Returns:
        dict of str to numpy.ndarray: Scalars as 0-d arrays.
    """
    values = {**model_values(model, 'model/'), **_optimizer_values(optimizer)}
    return {name: to_host(value) for name, value in values.items()}


def restore(arrays, model, optimizer):
    """Puts what :func:`flatten` gave back into model and optimizer, in place.

    Entries outside ``model/`` and ``optimizer/`` are the caller's and left alone.

    Raises:
        UserError: An entry is missing, left over, or of another shape or dtype; the model is unchanged.
    """
    arrays = {name: array for name, array in arrays.items() if name.startswith(('model/', 'optimizer/'))}
    for path, param, rule in _update_rules(optimizer):
        _prepare_state(arrays, path, param, rule)
    found = differences(arrays, {**model_values(model, 'model/'), **_optimizer_values(optimizer)},
                        same_dtype=True)
    if found:
        raise UserError(f'the checkpoint does not fit this model: {found}; '
                        'resume with the options of the run that wrote it')
    source = chainer.serializers.NpzDeserializer(arrays)
    source['model'].load(model)
    optimizer.t = source('optimizer/t', optimizer.t)
    optimizer.epoch = source('optimizer/epoch', optimizer.epoch)
    for path, _, rule in _update_rules(optimizer):
        rule.t = source(f'{path}t', rule.t)
        for name, value in (rule.state or {}).items():
            rule.state[name] = source(f'{path}{name}', value)
        if rule._fp32_param is not None:
            source(f'{path}fp32_param', rule._fp32_param.array)


def _prepare_state(arrays, path, param, rule):
    """Gives an update rule the state that ``arrays`` holds for it, by name and shape."""
    saved = {name[len(path):] for name in arrays if name.startswith(path)}
    if saved == {'t'} and arrays[f'{path}t'] == 0:
        rule._state = rule._fp32_param = None  # as before the first update
        return
    if 'fp32_param' in saved and rule._fp32_param is None and rule._use_fp32_update:
        rule._fp32_param = chainer.Parameter(param.array.astype(np.float32), name=param.name)
    if rule.state is None:
        rule._init_states(param if rule._fp32_param is None else rule._fp32_param)


def differences(arrays, values, same_dtype):
    """One line on how a file's arrays differ from a program's values; empty when they fit."""
    phrases = []
    for name, value in sorted(values.items()):  # Chainer keeps names in sets, whose order changes
        shape, dtype = np.shape(value), getattr(value, 'dtype', np.dtype(type(value)))
        if name not in arrays:
            phrases.append(f'{name} is not in the file')
        elif arrays[name].shape != shape:
            phrases.append(f"{name} has shape {shape}, the file's is {arrays[name].shape}")
        elif arrays[name].dtype != dtype if same_dtype else not np.can_cast(arrays[name].dtype, dtype,
                                                                            'same_kind'):
            phrases.append(f"{name} has dtype {dtype}, the file's is {arrays[name].dtype}")
    phrases += [f'the file also has {name}' for name in sorted(arrays) if name not in values]
    shown = 3
    more = f' and {len(phrases) - shown} more' if len(phrases) > shown else ''
    return '; '.join(phrases[:shown]) + more
