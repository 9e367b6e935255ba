"""The list of mutations, which runs apart from the tests (``make mutants``)."""

from tests.mutants.__main__ import misfits


def test_what_is_to_be_changed_stands_once_in_the_code():
    assert misfits() == []
