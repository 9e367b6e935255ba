from lib.errors import UserError, shortage

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
