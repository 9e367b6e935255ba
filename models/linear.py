"""Fully connected layer: on a CPU a 1x1 convolution of one pixel, compiled.

Its bits are those of every machine with the same vectors. BLAS has a product for each model of a processor.
"""

from lib.compiled import layers

import chainer
import chainer.links as L
import numpy as np

from models.batch_normalization import are_float32, as_operand


def _as_pixel(array):
    return array[:, :, np.newaxis, np.newaxis]


class _CompiledLinear(chainer.FunctionNode):

    def __init__(self, layers):
        self.layers = layers

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        x, w, b = map(as_operand, inputs)
        y = np.empty((len(x), len(w)), x.dtype)
        self.layers.convolve(_as_pixel(x), _as_pixel(w), 1, 0, _as_pixel(y))
        y += b
        return y,

    def backward(self, indexes, grad_outputs):
        x, w = (as_operand(variable.array) for variable in self.get_retained_inputs())
        gy = as_operand(grad_outputs[0].array)
        gx, gw = np.empty_like(x), np.empty_like(w)
        self.layers.convolve_backward(*map(_as_pixel, (x, w, gy)), 1, 0, *map(_as_pixel, (gx, gw)))
        gradients = gx, gw, gy.sum(axis=0)
        return tuple(chainer.as_variable(gradients[i]) for i in indexes)


class Linear(L.Linear):
    """``chainer.links.Linear`` with bias."""

    def forward(self, x):
        operands = x, self.W, self.b
        compiled = layers() if are_float32(*operands) and x.ndim == 2 and x.size else None
        return _CompiledLinear(compiled).apply(operands)[0] if compiled else super().forward(x)
