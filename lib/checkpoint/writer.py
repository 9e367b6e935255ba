"""Checkpoints written in the background."""

import threading

from lib.checkpoint import file


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
        """Start to write a checkpoint, after waiting for the previous one.

        Args:
            path, arrays, description: As for :func:`lib.checkpoint.file.write`; the caller leaves the
                arrays alone from now on.
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
            file.write(path, arrays, description)
            if on_done is not None:
                on_done(path)
        except Exception as error:
            self._error = error

    def failure(self):
        """Return what went wrong with the last checkpoint, or ``None``; do not wait for it."""
        if self._thread is not None and self._thread.is_alive():
            return None
        return self.close()

    def close(self):
        """Wait for the last checkpoint and return what went wrong with it, or ``None``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return None
        if isinstance(error, (OSError, MemoryError)):
            return f'checkpoint {self._path} failed: {str(error) or type(error).__name__}'
        raise error
