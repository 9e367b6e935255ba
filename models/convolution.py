"""2-D convolution without bias that is quick on a CPU.

Chainer's CPU path gathers the columns of the whole batch at once, image axis first, and has ``tensordot``
transpose them in memory before the product; its outputs come out channels-last in memory, which slows every
function that follows. Here ``lib/compiled/convolution.c`` gathers nothing. Where it was not compiled, and
for other dtypes, a few images at a time are gathered into a buffer that stays in the cache and multiplied
where they lie, and outputs are contiguous.

On a GPU it is cuDNN's, by Chainer or by :mod:`lib.gpu.cudnn`; without cuDNN Chainer's im2col.
Its columns of 32 images of ResNet-50 take 236 MB at most (conv1, in float32), and their transpose as much
again, so that this needs no parts.
"""

from lib.compiled import layers
from lib.gpu import cudnn

import chainer
import chainer.links as L
import numpy as np
from chainer import backend
from chainer.utils.conv import get_conv_outsize

from models.batch_normalization import are_float32, as_operand

BUFFER = 1 << 20  # bytes of columns at a time: about half a level-2 cache
PIXELS = 32  # of an image's output; with fewer, one product over the whole batch is quicker


class _Geometry:
    """Columns of a few images at a time: the windows of the padded images, (images, c * k * k, oh * ow)."""

    def __init__(self, shape, dtype, ksize, stride, pad):
        n, c, h, w = shape
        self.shape, self.ksize, self.stride, self.pad = shape, ksize, stride, pad
        self.side = tuple(get_conv_outsize(size, ksize, stride, pad) for size in (h, w))
        size = c * ksize * ksize * self.side[0] * self.side[1]
        self.images = min(n, max(1, BUFFER // (size * dtype.itemsize)))
        self.padded = np.zeros((self.images, c, h + 2 * pad, w + 2 * pad), dtype)
        self.columns = np.empty((self.images, c, ksize, ksize, *self.side), dtype)

    def parts(self):
        for start in range(0, self.shape[0], self.images):
            yield slice(start, min(start + self.images, self.shape[0]))

    def inside(self, count):
        _, _, h, w = self.shape
        return self.padded[:count, :, self.pad:self.pad + h, self.pad:self.pad + w]

    def windows(self, row, column):
        """The pixels that every window has at (row, column)."""
        (height, width), s = self.side, self.stride
        return self.padded[:, :, row:row + s * height:s, column:column + s * width:s]

    def flat(self, count):
        return self.columns[:count].reshape(count, -1, self.side[0] * self.side[1])

    def gather(self, x):
        if self.ksize == self.stride == 1 and self.pad == 0 and x.flags.c_contiguous:
            return x.reshape(len(x), x.shape[1], -1)
        self.inside(len(x))[...] = x
        for row in range(self.ksize):
            for column in range(self.ksize):
                self.columns[:len(x), :, row, column] = self.windows(row, column)[:len(x)]
        return self.flat(len(x))

    def scatter(self, count):
        """Add the columns up where they came from: the transpose of gather."""
        self.padded[:count] = 0
        for row in range(self.ksize):
            for column in range(self.ksize):
                self.windows(row, column)[:count] += self.columns[:count, :, row, column]
        return self.inside(count)


class _CompiledConvolution(chainer.FunctionNode):

    def __init__(self, layers, stride, pad):
        self.layers, self.stride, self.pad = layers, stride, pad

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        x, w = map(as_operand, inputs)
        side = (get_conv_outsize(size, w.shape[2], self.stride, self.pad) for size in x.shape[2:])
        y = np.empty((len(x), len(w), *side), x.dtype)
        self.layers.convolve(x, w, self.stride, self.pad, y)
        return y,

    def backward(self, indexes, grad_outputs):
        x, w = (as_operand(variable.array) for variable in self.get_retained_inputs())
        gx, gw = np.empty_like(x) if 0 in indexes else None, np.empty_like(w)
        self.layers.convolve_backward(x, w, as_operand(grad_outputs[0].array), self.stride, self.pad, gx, gw)
        return tuple(chainer.as_variable((gx, gw)[i]) for i in indexes)


class _Convolution(chainer.FunctionNode):

    def __init__(self, stride, pad):
        self.stride = stride
        self.pad = pad

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        x, w = inputs
        geometry = _Geometry(x.shape, x.dtype, w.shape[2], self.stride, self.pad)
        y = np.empty((len(x), len(w), *geometry.side), x.dtype)
        flat = y.reshape(len(x), len(w), -1)
        for part in geometry.parts():
            np.matmul(w.reshape(len(w), -1), geometry.gather(x[part]), out=flat[part])
        return y,

    def backward(self, indexes, grad_outputs):
        x, w = (variable.array for variable in self.get_retained_inputs())
        gy = np.ascontiguousarray(grad_outputs[0].array).reshape(len(x), len(w), -1)
        geometry = _Geometry(x.shape, x.dtype, w.shape[2], self.stride, self.pad)
        gradients = {1: self._weight_gradient(x, w, gy, geometry)}
        if 0 in indexes:
            # Afterwards: it leaves sums in the padding, which gathering expects to be 0.
            gradients[0] = self._input_gradient(x, w, gy, geometry)
        return tuple(chainer.as_variable(gradients[i]) for i in indexes)

    @staticmethod
    def _weight_gradient(x, w, gy, geometry):
        gw = np.zeros((len(w), w.size // len(w)), w.dtype)
        product = np.empty_like(gw)
        for part in geometry.parts():
            for g, columns in zip(gy[part], geometry.gather(x[part])):
                gw += np.matmul(g, columns.T, out=product)
        return gw.reshape(w.shape)

    @staticmethod
    def _input_gradient(x, w, gy, geometry):
        gx = np.empty(x.shape, x.dtype)
        transposed = np.ascontiguousarray(w.reshape(len(w), -1).T)
        for part in geometry.parts():
            count = part.stop - part.start
            np.matmul(transposed, gy[part], out=geometry.flat(count))
            gx[part] = geometry.scatter(count)
        return gx


class _CudnnConvolution(chainer.FunctionNode):

    def __init__(self, stride, pad):
        self.stride, self.pad = stride, pad

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        x, w = inputs
        side = (get_conv_outsize(size, w.shape[2], self.stride, self.pad) for size in x.shape[2:])
        return cudnn.convolve('Forward', x, w, (len(x), len(w), *side), self.stride, self.pad),

    def backward(self, indexes, grad_outputs):
        x, w = (variable.array for variable in self.get_retained_inputs())
        gy = grad_outputs[0].array
        operands = ('BackwardData', w, gy, x.shape), ('BackwardFilter', x, gy, w.shape)
        return tuple(chainer.as_variable(cudnn.convolve(*operands[i], self.stride, self.pad))
                     for i in indexes)


class Convolution2D(L.Convolution2D):
    """``chainer.links.Convolution2D`` without bias, with square kernel, stride and padding."""

    def __init__(self, in_channels, out_channels, ksize, stride, pad, initialW):
        super().__init__(in_channels, out_channels, ksize, stride, pad, nobias=True, initialW=initialW)

    def forward(self, x):
        if not x.size:
            return super().forward(x)
        stride, pad = self.stride[0], self.pad[0]
        height, width = (get_conv_outsize(size, self.ksize, stride, pad) for size in x.shape[2:])
        compiled = layers() if are_float32(x, self.W) else None
        if compiled:
            return _CompiledConvolution(compiled, stride, pad).apply((x, self.W))[0]
        if cudnn.covers(chainer.as_array(x), self.W.array) and x.dtype == self.W.dtype:
            return _CudnnConvolution(stride, pad).apply((x, self.W))[0]
        if backend.get_array_module(x) is not np or height * width < PIXELS:
            return super().forward(x)
        return _Convolution(stride, pad).apply((x, self.W))[0]
