"""``loops``: compiled from ``_loops.c`` when the project was installed; None if there was no C compiler."""

try:
    from lib import _loops as loops
except ImportError:
    loops = None
