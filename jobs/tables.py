"""Tables that the scripts of ``jobs/`` print, and the columns of a run's log that they read."""

import statistics

LOSS, ACCURACY = 'main/loss', 'main/accuracy'
VAL_LOSS, VAL_ACCURACY = 'validation/main/loss', 'validation/main/accuracy'


def spread(values):
    """Mean, and sample standard deviation or None where there is but one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def markdown(header, rows):
    """A table as Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def table(rows):
    """Rows of texts as lines of right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    padded = ([text.rjust(width) for text, width in zip(row, widths)] for row in rows)
    return '\n'.join('  '.join(row).rstrip() for row in padded)


def duration(seconds):
    """Seconds as a text in the unit that fits."""
    for unit, length in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * length:
            return f'{seconds / length:.1f} {unit}'
    return f'{seconds:.1f} s'
