"""The log as a TensorBoard event file, through tensorboardX."""

import os
import platform
import struct
import time

from lib import files
from lib.errors import UserError

from chainer import training


class TensorBoard(training.Extension):
    """Writes every number of a new row of the log under its key. For rank 0.

    Not by tensorboardX's SummaryWriter, whose thread a full disk ends, and the job with it. Here the row is
    lost, and said.

    Args:
        prefix (str): What the file's path begins with; the time and the host follow.

    Raises:
        UserError: If tensorboardX is not installed.
    """

    default_name = 'TensorBoard'

    def __init__(self, prefix):
        try:
            import tensorboardX
        except ImportError:
            raise UserError('--tensorboard: tensorboardX is not installed; install the extra "tensorboard", '
                            'or leave the option out') from None
        self._library = tensorboardX
        self._path = f'{prefix}{time.time():.0f}.{platform.node()}'

    def __call__(self, trainer):
        row = trainer.get_extension('LogReport').log[-1]
        scalar = self._library.summary.scalar
        records = [self._record(step=row['iteration'], summary=scalar(key, value))
                   for key, value in row.items() if key != 'iteration']
        if not os.path.exists(self._path):
            records.insert(0, self._record(file_version='brain.Event:2'))
        files.try_to(files.append, self._path, b''.join(records))

    def _record(self, **fields):
        """An event as TensorFlow's files hold it: length, checksum, content, checksum."""
        content = self._library.proto.event_pb2.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack('<Q', len(content))
        return b''.join([length, self._checksum(length), content, self._checksum(content)])

    def _checksum(self, content):
        return struct.pack('<I', self._library.record_writer.masked_crc32c(content))
