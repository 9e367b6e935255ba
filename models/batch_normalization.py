"""Batch normalization with the residual and the ReLU that follow it, in one pass over memory on a CPU.

Chainer makes of ``relu(bn(x) + residual)`` some ten passes forward and as many backward, and keeps the sum.
Compiled (``lib/compiled/batch_normalization.c``) each channel is read from memory once forward and once
backward, and what is kept is x and y. On a GPU :mod:`lib.gpu.cudnn` normalizes, where Chainer has no cuDNN.
Everything else (float16 on a CPU, no compiler, no cuDNN) is done by Chainer's own functions.
"""

from lib.compiled import layers
from lib.gpu import cudnn

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np


def as_operand(array):
    """The array as compiled layers take it: contiguous and aligned."""
    return np.require(array, requirements=('C', 'A'))


def are_float32(*variables):
    """Whether all are float32 in NumPy's memory, as compiled layers compute."""
    arrays = map(chainer.as_array, variables)
    return all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in arrays)


class _BatchNormalization(chainer.FunctionNode):
    """Inputs x, gamma, beta and perhaps residual. ``mean`` and ``var`` are of the batch, once it has run."""

    def __init__(self, layers, eps, relu):
        self.layers, self.eps, self.relu = layers, eps, relu

    def forward_cpu(self, inputs):
        x, gamma, beta, *residual = map(as_operand, inputs)
        y = np.empty_like(x)
        self.mean, self.var = np.empty_like(gamma), np.empty_like(gamma)
        self.layers.normalize(x, *residual or (None,), y, gamma, beta, self.mean, self.var, self.eps,
                              self.relu, True)
        self.retain_inputs((0, 1))
        if self.relu:
            self.retain_outputs((0,))
        return y,

    def backward(self, indexes, grad_outputs):
        x, gamma = (as_operand(variable.array) for variable in self.get_retained_inputs())
        y = self.get_retained_outputs()[0].array if self.relu else None
        gx, ggamma, gbeta = np.empty_like(x), np.empty_like(gamma), np.empty_like(gamma)
        gresidual = np.empty_like(x) if len(self.inputs) == 4 else None
        gy = as_operand(grad_outputs[0].array)
        self.layers.normalize_backward(x, y, gy, gx, gresidual, gamma, self.mean, self.var, ggamma, gbeta,
                                       self.eps)
        gradients = gx, ggamma, gbeta, gresidual
        return tuple(chainer.as_variable(gradients[i]) for i in indexes)


class _CudnnBatchNormalization(chainer.FunctionNode):
    """Inputs x, gamma and beta. Running statistics are updated, if given."""

    def __init__(self, running_mean, running_var, decay, eps):
        self.running, self.decay, self.eps = (running_mean, running_var), decay, eps

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        y, self.mean, self.inverse = cudnn.normalize(*inputs, *self.running, self.decay, self.eps)
        return y,

    def backward(self, indexes, grad_outputs):
        x, gamma = (variable.array for variable in self.get_retained_inputs())
        gy = grad_outputs[0].array
        gradients = cudnn.normalize_backward(x, gy, gamma, self.mean, self.inverse, self.eps)
        return tuple(chainer.as_variable(gradients[i]) for i in indexes)


class BatchNormalization(L.BatchNormalization):
    """``chainer.links.BatchNormalization`` of images, with what follows it."""

    def forward(self, x, residual=None, relu=False):
        """Return ``bn(x)``, plus ``residual``, its negative values replaced by 0 if ``relu``.

        Args:
            x, residual: Variables or arrays (batch, channels, height, width).

        Returns:
            chainer.Variable: Of the shape of ``x``. In training the running statistics were updated.
        """
        inputs = [x, self.gamma, self.beta] + ([] if residual is None else [residual])
        compiled = layers() if _is_covered(inputs) else None
        if compiled and chainer.config.train:
            node = _BatchNormalization(compiled, self.eps, relu)
            y, = node.apply(inputs)
            if not chainer.config.in_recomputing:
                self._update_statistics(node.mean, node.var, y.size // y.shape[1])
            return y
        if compiled and not chainer.config.enable_backprop:
            return chainer.as_variable(self._with_running_statistics(compiled, inputs, relu))
        y = self._by_cudnn(x) if self._is_covered_by_cudnn(x) else super().forward(x)
        if residual is not None:
            y = y + residual
        return F.relu(y) if relu else y

    def _is_covered_by_cudnn(self, x):
        """Whether these are images of more than one value per channel, without gradient when testing."""
        arrays = [chainer.as_array(each) for each in (x, self.gamma, self.beta)]
        return (cudnn.covers(*arrays) and x.ndim == 4 and x.size > x.shape[1]
                and self.gamma.dtype == self.avg_mean.dtype == np.float32
                and (chainer.config.train or not chainer.config.enable_backprop))

    def _by_cudnn(self, x):
        running = self.avg_mean, self.avg_var
        if not chainer.config.train:
            arrays = map(chainer.as_array, (x, self.gamma, self.beta))
            return chainer.as_variable(cudnn.normalize_by(*arrays, *running, self.eps))
        if chainer.config.in_recomputing:
            running = None, None
        node = _CudnnBatchNormalization(*running, self.decay, self.eps)
        return node.apply((x, self.gamma, self.beta))[0]

    def _update_statistics(self, mean, var, m):
        """As Chainer's function does: of m values per channel the unbiased variance."""
        self.avg_mean *= self.decay
        self.avg_mean += (1 - self.decay) * mean
        self.avg_var *= self.decay
        self.avg_var += (1 - self.decay) * (m / (m - 1)) * var

    def _with_running_statistics(self, compiled, inputs, relu):
        x, gamma, beta, *residual = (as_operand(chainer.as_array(each)) for each in inputs)
        y = np.empty_like(x)
        mean, var = np.array(self.avg_mean), np.array(self.avg_var)
        compiled.normalize(x, *residual or (None,), y, gamma, beta, mean, var, self.eps, relu, False)
        return y


def _is_covered(inputs):
    """Whether these are float32 in NumPy's memory, of more than one value per channel."""
    x = inputs[0]
    return are_float32(*inputs) and x.ndim == 4 and x.size > x.shape[1]
