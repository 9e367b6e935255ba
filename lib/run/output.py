"""The output directory: which run it belongs to, and what a run leaves in it."""

import contextlib
import os

from lib import files
from lib.checkpoint import directory, weights
from lib.errors import FINISHED_MARK, UserError
from lib.run import lock

# What a run leaves, besides its checkpoints.
FILES = ('log', 'plan.json', 'timing.csv', weights.NAME, 'loss.png', 'accuracy.png', 'schedule.png',
         FINISHED_MARK)
EVENTS = 'events.out.tfevents.'  # TensorBoard's, one per start


def prepare(out, resume, force):
    """Make the output directory ready before any work is done; for rank 0.

    Args:
        out (str): Directory; created if missing.
        resume (str or None): ``auto`` or the path of a checkpoint, if a run is continued.
        force (bool): Whether a run in it is given up: its checkpoints are removed.

    Raises:
        UserError: If it holds something that is neither continued nor given up, or cannot be written.
    """
    entries = [entry for entry in check_writable('--out', out) if entry != lock.NAME]
    for name in FILES:
        path = os.path.join(out, name)
        if os.path.isdir(path) and not os.path.islink(path):
            raise UserError(f'{path}: a directory, where a run writes a file; move it away or choose another '
                            '--out')
    path = directory.path_of(out, 0).parent
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f'{path}: not a directory, where a run keeps its checkpoints; move it away or choose '
                        'another --out')
    if entries and not force and not (resume and _continues(resume, out)):
        raise UserError(f'--out {out}: not empty ({", ".join(sorted(entries)[:4])}); continue the run in it '
                        'with --resume auto, give it up with --force, or choose another directory')
    if force:
        try:
            # Event files join into one curve, whose steps would go back.
            events = [name for name in entries if name.startswith(EVENTS)]
            clear(out, [FINISHED_MARK, *events])
            directory.remove_all(out)
        except OSError as error:
            raise UserError(f'--out {out}: an earlier run cannot be removed ({error.strerror}); see to its '
                            'permissions or choose another directory') from None


def check_writable(option, path):
    """Make a directory that an option names, and see that it takes files before any work is done for it.

    Returns:
        list of str: Names of what lies in it.

    Raises:
        UserError: If it does not.
    """
    probe = os.path.join(path, '.writable')
    try:
        os.makedirs(path, exist_ok=True)
        entries = os.listdir(path)
        files.write(probe, lambda file: file.write(b'\0' * 4096), 'wb')
        os.remove(probe)
        return entries
    except OSError as error:
        raise UserError(f'{option} {path}: cannot be written ({error.strerror}); choose another directory '
                        'or make room') from None


def _continues(resume, out):
    """Whether the checkpoint is the directory's own: those of another run must not mix with it."""
    return resume == 'auto' or os.path.realpath(resume).startswith(os.path.realpath(out) + os.sep)


def clear(out, names=FILES):
    """Remove what an earlier run has left, when another starts afresh in its place."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(out, name))
