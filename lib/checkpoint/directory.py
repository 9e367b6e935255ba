"""The directory of a run's checkpoints: their names, the newest valid one, how many stay."""

import contextlib
import os
import pathlib
import re

from lib import errors, files
from lib.checkpoint import file
from lib.errors import UserError

_DIRECTORY = 'checkpoint'
_NAME = re.compile(r'iteration-(\d{8,})\.npz')


def path_of(out, iteration):
    """Name the file ``OUT/checkpoint/iteration-00000123.npz``."""
    return pathlib.Path(out) / _DIRECTORY / f'iteration-{iteration:08d}.npz'


def list_checkpoints(out):
    """List the paths of the checkpoints in ``out``, newest first, valid or not; directories are none."""
    directory = pathlib.Path(out) / _DIRECTORY
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = filter(None, map(_NAME.fullmatch, names))
    return [directory / match[0] for match in sorted(matches, key=lambda match: int(match[1]), reverse=True)]


def newest_valid(out, report):
    """Read the newest checkpoint in ``out`` that is whole.

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
        raise file.unreadable(pathlib.Path(out) / _DIRECTORY, error) from error
    for path in paths:
        try:
            return (path, *file.read(path))
        except file.DamagedCheckpoint as error:
            report(f'passing over {path}: {error.reason}')
    if paths:
        raise UserError(f'{paths[0].parent}: none of its checkpoints ({len(paths)}) is valid; start over '
                        'with --force, which removes them, or choose another --out')
    return None


def prune(out, keep):
    """Remove all but the newest ``keep`` checkpoints, and temporary files whose writer is dead.

    If all of those are damaged, the newest valid one stays as well, and all that are newer than that one and
    cannot be read now: what may be the only valid checkpoint is never removed. That means reading one file,
    normally the one written last. What cannot be removed stays, and is named on standard error.
    """
    if keep < 1:
        raise ValueError(f'keep={keep}: at least 1')
    paths = list_checkpoints(out)
    if len(paths) > keep:
        spared = set()
        for path in paths:
            try:
                file.scan(path, lambda name, array: None)
                spared.add(path)
                break
            except file.UnreadableCheckpoint:
                spared.add(path)
            except file.DamagedCheckpoint:
                pass
        for path in paths[keep:]:
            if path not in spared:
                try:
                    _remove(path)
                except OSError as error:
                    errors.say_line(f'{path} was not removed ({error.strerror}); training goes on')
    _remove_temporaries(out)


def remove_all(out):
    """Remove the checkpoints of an earlier run, and temporary files whose writer is dead."""
    for path in list_checkpoints(out):
        _remove(path)
    _remove_temporaries(out)


def _remove_temporaries(out):
    out = pathlib.Path(out)
    for directory in (out, out / _DIRECTORY):
        files.remove_leftovers(directory)


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
