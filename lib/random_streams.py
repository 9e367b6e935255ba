"""Counter-based random numbers (Philox): what is drawn depends on a key alone, not on what was drawn before.

Every use of the seed has a purpose of its own, so that no two draw the same numbers.
"""

import numpy as np

# Second half of the key.
ORDER = 1
CROP = 2
JITTER = 3
SYNTHETIC = 4


def stream(seed, purpose, *numbers):
    """Start the random numbers that belong to a seed, a purpose and up to four further ``numbers``.

    Args:
        seed, purpose, numbers (int): 0 to 2**64 - 1.

    Returns:
        numpy.random.Philox: Every NumPy version gives the same ``random_raw``.
    """
    counter = np.array([0] * (4 - len(numbers)) + list(numbers), np.uint64)
    return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter)


def uniforms(bits, count):
    """Draw ``count`` doubles in [0, 1)."""
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0 ** -53


def random_bytes(bits, count):
    """Draw ``count`` bytes, uint8."""
    return bits.random_raw(-(-count // 8)).astype('<u8').view(np.uint8)[:count]
