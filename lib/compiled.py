"""``loops``: compiled from ``_loops.c`` when the project was installed; None where that failed."""

try:
    from lib import _loops as loops
except ImportError:
    loops = None
