"""The output directory: whose it is, and how files in it are written."""

import contextlib
import os

from lib.checkpoint import directory
from lib.errors import UserError

# What a run leaves, besides its checkpoints.
WEIGHTS = 'model.npz'
FILES = ('log', 'plan.json', 'timing.csv', WEIGHTS, 'loss.png', 'accuracy.png', 'schedule.png')


def prepare(out, resume, force):
    """Make the output directory ready before any work is done; for rank 0.

    Args:
        out (str): Directory; created if missing.
        resume (str or None): ``auto`` or the path of a checkpoint, if a run is continued.
        force (bool): Whether a run in it is given up: its checkpoints are removed.

    Raises:
        UserError: If it holds something that is neither continued nor given up, or cannot be written.
    """
    probe = os.path.join(out, f'.writable-{os.getpid()}')
    try:
        os.makedirs(out, exist_ok=True)
        entries = os.listdir(out)
        try:
            with open(probe, 'wb') as file:
                file.write(b'\0' * 4096)
        finally:
            with contextlib.suppress(OSError):
                os.remove(probe)
    except OSError as error:
        raise UserError(f'--out {out}: cannot be written ({error.strerror}); choose another directory '
                        'or make room') from None
    if entries and not force and not (resume and _continues(resume, out)):
        raise UserError(f'--out {out}: not empty ({", ".join(sorted(entries)[:4])}); continue the run in it '
                        'with --resume auto, give it up with --force, or choose another directory')
    if force:
        directory.remove_all(out)


def _continues(resume, out):
    """Whether the checkpoint is the directory's own: those of another run must not mix with it."""
    return resume == 'auto' or os.path.realpath(resume).startswith(os.path.realpath(out) + os.sep)


def clear(out):
    """Remove what an earlier run has left, when another starts afresh in its place."""
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(out, name))
