"""Arithmetic of the gradients' exchange: half-precision on the wire, single precision for sum and mean.

::

    p_r = wire(G_r / K)                G_r: sum over the workers of process r, scaled by S
    w   = wire(p_0 + ... + p_{P-1})    on the CPU: in float32, in the order of the ranks
    g   = float32(w) / (P S)           cast first, then divide: the mean over all n = P K workers

``wire`` rounds once to the nearest float16 or float32 (ties to even), S is the loss scale, P the number of
processes. Each plays K = n / P workers; where P does not divide n, some play one more than others, and K is
still n / P for all: p_r is the mean over the workers of r, weighted by their number.

Error. With M the exact mean, A the mean of |G_r| / (K S) over the processes, u = 2^-11 and
tiny = 2^-25 for a float16 wire (unit roundoff, and half the spacing of subnormals), u = 2^-24 and tiny = 0
for a float32 one, away from float32's own limits and without overflow (below), on the CPU, for P < 2^13,

    |g - M| <= (1 + 4u) (u (|M| + A) + (1 + 1/P) tiny / S + (P + 3) 2^-24 A).

The first term is each payload's and the sum's rounding; the second is the floor below which a float16 wire
sees nothing, and the loss scale lowers it; the third is float32's own: the sum of P terms, the divisions by
K and P S, and K itself. NCCL adds in the wire's dtype, at every hop of its ring: up to P - 1 roundings of
partial sums instead of one. An element overflows when |G_r| / K or the sum of the payloads reaches 65520.
"""

from lib.compiled import loops

import numpy as np

# On GPUs the same arithmetic (lib/gpu/flat.py packs); ChainerMN's own kernels do not compile with CuPy 14.
# ``failed_at``: number of the first exchange whose mean was not finite.
MEAN_KERNEL = ('W total, float32 divisor, int32 exchange', 'float32 mean, raw int32 failed_at',
               '''mean = (float)total / divisor;
                  if (!isfinite(mean) && exchange < failed_at[0]) failed_at[0] = exchange;''',
               'mean_from_wire')

# Elements that NumPy adds and rounds at a time, so that temporaries stay in the cache.
_BLOCK = 1 << 15

# By the bits of the float16. The signalling among the NaN would warn.
with np.errstate(invalid='ignore'):
    _FLOAT32_OF_FLOAT16 = np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32)

# One in the biased exponent of a float32's bits.
_ONE = np.uint32(1 << 23)


def _round_to_wire(values, out):
    """``out[...] = values``, float32 to the wire's dtype. Several times as quick as NumPy does it.

    For |x| = 1.f × 2^e, adding 2^(e+13) leaves a unit in the last place of 2^(e-10), which is float16's:
    float32's own addition rounds, ties to even. Below float16's normal range the addend stays that of
    e = -14, which rounds to subnormals.
    """
    if out.dtype == np.float32:
        out[...] = values
        return
    for start in range(0, out.size, _BLOCK):
        bits = values[start:start + _BLOCK].view(np.uint32)
        magnitude = bits & np.uint32(0x7fffffff)
        exponent = np.clip(magnitude & 255 * _ONE, 113 * _ONE, 142 * _ONE)
        addend = exponent + 13 * _ONE
        half = (magnitude.view(np.float32) + addend.view(np.float32)).view(np.uint32) - addend
        half += (exponent - 113 * _ONE) >> np.uint32(13)
        if magnitude.max() >= 143 * _ONE:
            half[magnitude >= 143 * _ONE] = 0x7c00
            half[magnitude > 255 * _ONE] = 0x7e00  # NaN
        half |= bits >> np.uint32(16) & np.uint32(0x8000)
        np.copyto(out[start:start + _BLOCK].view(np.uint16), half, casting='unsafe')


def _to_float32(values):
    if values.dtype == np.float32:
        return values
    return np.take(_FLOAT32_OF_FLOAT16, values.view(np.uint16), mode='clip')  # not `raise`, which is slower


@np.errstate(over='ignore', invalid='ignore')
def to_wire(gradient, out, virtual_workers=1):
    """``out[...] = wire(gradient / virtual_workers)``, divided in float32 and rounded once.

    Args:
        gradient (numpy.ndarray): Sum over the process's workers, any shape, floating point.
        out (numpy.ndarray): Flat and contiguous, float16 or float32, as many elements.
        virtual_workers (float): K.
    """
    gradient = np.require(gradient, np.float32, 'CA')
    if loops:
        loops.to_wire(gradient, out, virtual_workers)
    else:
        _round_to_wire(gradient.reshape(-1) / np.float32(virtual_workers), out)


@np.errstate(over='ignore', invalid='ignore')
def sum_payloads(payloads, out):
    """``out[...] = wire(payloads[0] + payloads[1] + ...)``, added in float32 in this order, rounded once.

    Args:
        payloads (numpy.ndarray): Shape (P, m), float16 or float32, rows contiguous: what P processes sent, by
            rank.
        out (numpy.ndarray): Shape (m,), same dtype.
    """
    if loops:
        loops.sum_payloads(payloads, out)
        return
    for start in range(0, out.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        total = _to_float32(payloads[0, block])
        for payload in payloads[1:, block]:
            total = total + _to_float32(payload)
        _round_to_wire(total, out[block])


@np.errstate(over='ignore', invalid='ignore')
def from_wire(total, divisor, out):
    """``out[...] = float32(total) / divisor``: cast first, then divide in float32.

    Args:
        total (numpy.ndarray): Shape (m,), contiguous, float16 or float32.
        divisor (float): P S, processes times loss scale.
        out (numpy.ndarray): Shape (m,), contiguous, float32.

    Returns:
        bool: Whether ``out`` holds neither NaN nor infinity.
    """
    if loops:
        return loops.from_wire(total, divisor, out)
    np.divide(_to_float32(total), np.float32(divisor), out=out)
    return bool(np.isfinite(out).all())
