"""Text on its way to a terminal, a log or a list: names come from file systems, archives and checkpoints.

Such a name may hold a line's end, a terminal's commands, or bytes that are no text at all.
"""

import sys


def printable(text):
    r"""Return ``text`` as one line on which every character shows: ``\n``, ``\x1b``, ``\u202e`` for others.

    A byte of a file name that is no text, for which Python has a surrogate, becomes ``\xff``.
    """
    return ''.join(character if character.isprintable() else _escaped(character) for character in str(text))


def _escaped(character):
    if '\udc80' <= character <= '\udcff':
        return f'\\x{ord(character) - 0xdc00:02x}'
    return character.encode('unicode_escape').decode()


def printable_lines(text):
    """Return ``text`` with every line made :func:`printable`."""
    return '\n'.join(map(printable, text.split('\n')))


def say(text, file=None):
    """Print :func:`printable_lines` of ``text`` at once, in whatever encoding ``file`` has.

    A name within ``text`` that may hold a line's end has to be printable before.

    Args:
        text (str): One line or more.
        file: Open text file; by default standard error.
    """
    file = sys.stderr if file is None else file
    encoding = getattr(file, 'encoding', None) or 'utf-8'
    print(printable_lines(text).encode(encoding, 'backslashreplace').decode(encoding), file=file, flush=True)
