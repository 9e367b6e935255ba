import io

from lib.errors import UserError, printable, say, shortage

import pytest


def chained(first, then):
    try:
        try:
            raise first
        except type(first):
            raise then  # noqa: B904  (as cleaning up does)
    except type(then) as error:
        return error


@pytest.mark.parametrize('error, words', [
    (MemoryError('for 98 MiB'), ['out of memory (for 98 MiB)', 'smaller -B', '--virtual-workers']),
    (MemoryError(), ['MemoryError']),
    (chained(MemoryError('first'), ImportError('failed to map segment')), ['first']),
    (RuntimeError("can't start new thread"), ['ulimit -u', 'fewer -j']),
])
def test_a_shortage_is_told_with_its_remedy(error, words):
    assert all(word in shortage(error) for word in words)


@pytest.mark.parametrize('error', [RuntimeError('another'), chained(KeyError('a'), ValueError('b'))])
def test_other_errors_are_none(error):
    assert shortage(error) is None


def test_what_a_user_can_mend_is_told_in_one_printable_line():
    assert str(UserError('a\n\x1b[2Jb')) == r'a\n\x1b[2Jb'


@pytest.mark.parametrize('text, expected', [
    ('n01440764/plain name.JPEG', 'n01440764/plain name.JPEG'),
    ('größer 画像 🐟', 'größer 画像 🐟'),
    ('\x1b[2J\x9b1m\x7f', r'\x1b[2J\x9b1m\x7f'),
    ('two\nlines\r\t\u2028', r'two\nlines\r\t\u2028'),
    ('\u202egnp.exe', r'\u202egnp.exe'),
    (b'\xff\xfebad.JPEG'.decode('utf-8', 'surrogateescape'), r'\xff\xfebad.JPEG'),
    ('\ud800', r'\ud800'),
])
def test_every_character_shows_on_one_line(text, expected):
    assert printable(text) == expected


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii', 'latin-1'])
def test_what_the_encoding_lacks_is_escaped_and_lines_stay_lines(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding, errors='strict')
    say('first \udcff 画\x1b\nsecond', file)
    picture = '画' if encoding == 'utf-8' else r'\u753b'
    assert file.buffer.getvalue().decode(encoding) == f'first \\xff {picture}\\x1b\nsecond\n'


def test_text_goes_to_standard_error_by_default(capsys):
    say('line')
    assert capsys.readouterr() == ('', 'line\n')
