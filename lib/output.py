"""The output directory: whose it is, and whether it can be written."""

import json
import os

from lib import checkpoint
from lib.errors import UserError


def prepare(out, resume, force):
    """Make the output directory ready before any work is done; for rank 0.

    Args:
        out (str): Directory; created if missing.
        resume (bool): Whether a run in it is continued.
        force (bool): Whether a run in it is given up: its checkpoints are removed.

    Raises:
        UserError: If it holds something and neither was asked for, or cannot be written.
    """
    try:
        os.makedirs(out, exist_ok=True)
        entries = os.listdir(out)
        probe = os.path.join(out, f'.writable-{os.getpid()}')
        with open(probe, 'wb') as file:
            file.write(b'\0' * 4096)
        os.remove(probe)
    except OSError as error:
        raise UserError(f'--out {out}: cannot be written ({error.strerror}); choose another directory '
                        'or make room') from None
    if entries and not resume and not force:
        raise UserError(f'--out {out}: not empty ({", ".join(sorted(entries)[:4])}); continue the run in it '
                        'with --resume auto, give it up with --force, or choose another directory')
    if force:
        checkpoint.remove_all(out)


def write_json(path, value):
    """Write a file as a whole or not at all."""
    with open(f'{path}.tmp', 'w') as file:
        json.dump(value, file, indent=4)
    os.replace(f'{path}.tmp', path)
