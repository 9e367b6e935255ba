import io

from lib.run.terminal import printable, say

import pytest


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
