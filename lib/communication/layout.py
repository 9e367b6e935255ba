"""Arrays laid end to end, and the whole cut into turns."""

import functools
import itertools


def spans(sizes):
    """Return the slices that arrays of ``sizes`` take when they are laid end to end."""
    return [slice(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes))]


@functools.lru_cache(maxsize=4)
def turns(sizes, capacity):
    """Cut arrays of ``sizes``, laid end to end, into turns of ``capacity`` elements.

    Returns:
        list: Per turn its slice of the whole, and its pieces: the array's index, the slice of the array, and
        that slice's place in the turn.
    """
    found = []
    for start in range(0, sum(sizes), capacity):
        stop = min(start + capacity, sum(sizes))
        pieces = []
        for index, span in enumerate(spans(sizes)):
            first, end = max(span.start, start), min(span.stop, stop)
            if first < end:
                pieces.append((index, slice(first - span.start, end - span.start),
                               slice(first - start, end - start)))
        found.append((slice(start, stop), pieces))
    return found


def locate(element, sizes):
    """Find the array, and the element in it, of an element of arrays of ``sizes`` laid end to end."""
    return next((index, element - span.start) for index, span in enumerate(spans(sizes))
                if element < span.stop)
