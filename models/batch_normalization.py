"""Batch normalization with the residual and the ReLU that follow it, in one pass over memory on a CPU.

Chainer makes of ``relu(bn(x) + residual)`` some ten passes forward and as many backward, and keeps the sum.
Compiled (``lib/compiled/batch_normalization.c``) each channel is read from memory once forward and once
backward, and what is kept is x and y. On a GPU cuDNN normalizes, Chainer's or :mod:`lib.gpu.cudnn`, and a
kernel does the rest in place: one function there too, since each takes the host's time. Everything else
(float16 on a CPU, no compiler) is done by Chainer's own functions.
"""

from lib.compiled import layers
from lib.gpu import cudnn

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer.backends import cuda
from chainer.functions.normalization.batch_normalization import _impl_selector


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


class _BatchNormalizationOnGpu(chainer.FunctionNode):
    """The same on a GPU. Running statistics are updated, if given.

    :mod:`lib.gpu.cudnn` normalizes if ``own``, otherwise the implementation that Chainer's function takes.
    """

    axis, key_axis, expander = (0, 2, 3), (1,), (None, slice(None), None, None)  # Chainer's names

    def __init__(self, own, running, decay, eps, relu):
        self.own, self.running, self.decay, self.eps, self.relu = own, running, decay, eps, relu

    def forward_gpu(self, inputs):
        x, gamma, beta, *residual = inputs
        self.retain_inputs((0, 1))
        if self.own:
            y, self.mean, self.inverse = cudnn.normalize(x, gamma, beta, *self.running, self.decay, self.eps)
        else:
            self.chainers = _impl_selector(self, inputs[:3])
            y, _, _, _, self.mean, _, self.inverse, self.reserve = self.chainers.forward(
                self.axis, gamma, x, None, cuda.cupy, self.expander, beta, self.eps, self.decay,
                *self.running)
        if self.relu:  # NaN stays, for the check of the gradients to see
            cuda.elementwise('T residual', 'T y', 'const T sum = y + residual; y = sum <= 0 ? (T)0 : sum',
                             'add_relu')(*residual or (0,), y)
            self.retain_outputs((0,))
        elif residual:
            y += residual[0]
        return y,

    def backward(self, indexes, grad_outputs):
        x, gamma = (variable.array for variable in self.get_retained_inputs())
        g = grad_outputs[0].array
        if self.relu:
            g = cuda.elementwise('T y, T gy', 'T g', 'g = y > 0 ? gy : (T)0', 'relu_backward')(
                self.get_retained_outputs()[0].array, g)
        if self.own:
            gx, ggamma, gbeta = cudnn.normalize_backward(x, g, gamma, self.mean, self.inverse, self.eps)
        else:
            gx, _, ggamma, gbeta = self.chainers.backward(
                self.axis, gamma, g, x, None, cuda.cupy, self.expander, self.mean, self.inverse, self.eps,
                None, self.reserve)
        gradients = gx, ggamma, gbeta, g
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
        if chainer.config.train and _is_covered_on_gpu(inputs):
            running = (None, None) if chainer.config.in_recomputing else (self.avg_mean, self.avg_var)
            own = self._is_covered_by_cudnn(x)
            return _BatchNormalizationOnGpu(own, running, self.decay, self.eps, relu).apply(inputs)[0]
        needs_node = chainer.config.train or chainer.config.enable_backprop
        if not needs_node and x.ndim == 4 and self._is_covered_by_cudnn(x):
            arrays = map(chainer.as_array, inputs[:3])
            y = chainer.as_variable(cudnn.normalize_by(*arrays, self.avg_mean, self.avg_var, self.eps))
        else:
            y = super().forward(x)
        if residual is not None:
            y = y + residual
        return F.relu(y) if relu else y

    def _is_covered_by_cudnn(self, x):
        return (cudnn.covers(*map(chainer.as_array, (x, self.gamma, self.beta)))
                and self.gamma.dtype == self.avg_mean.dtype == np.float32)

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


def _is_covered_on_gpu(inputs):
    """Whether these are images on a GPU, of more than one value per channel, and the residual is alike."""
    x, _, _, *residual = map(chainer.as_array, inputs)
    return (isinstance(x, cuda.ndarray) and x.ndim == 4 and x.size > x.shape[1]
            and all((each.dtype, each.shape) == (x.dtype, x.shape) for each in residual))
