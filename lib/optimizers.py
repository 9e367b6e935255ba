"""RMSprop warm-up, the paper's update rule (section A.1).

One momentum buffer holds both terms, and the learning rate stays outside of it, which is the momentum
correction of Goyal et al. (section 3): a new learning rate does not rescale the steps gathered so far.
"""

import functools

from lib import constants
from lib.compiled import loops
from lib.gpu import flat

import chainer.links as L
import numpy as np
from chainer import optimizer, serializer, variable
from chainer.backends import cuda

# Elements that NumPy's update takes at a time: its passes over a block find it in the cache, and NumPy's cost
# per call is spread over enough of them.
BLOCK = 1 << 16

# The GPU update: one pass over gradient, parameter and state.
UPDATE_KERNEL = (
    'T grad, T eta, T alpha_sgd, T alpha_rmsprop, T mu1, T mu2, T one_minus_mu2, T eps, T weight_decay',
    'T theta, T m, T delta',
    '''T g = grad + weight_decay * theta;
       m = mu2 * m + one_minus_mu2 * g * g;
       delta = mu1 * delta - (alpha_sgd + alpha_rmsprop / (sqrt(m) + eps)) * g;
       theta += eta * delta;''',
    'rmsprop_warmup')

_default_hyperparam = optimizer.Hyperparameter()
_default_hyperparam.lr = constants.BASE_RATE
_default_hyperparam.alpha_sgd = 1.0
_default_hyperparam.alpha_rmsprop = 0.0
_default_hyperparam.mu1 = constants.MU1
_default_hyperparam.mu2 = constants.MU2
_default_hyperparam.eps = constants.EPS
_default_hyperparam.weight_decay = 0.0


@functools.lru_cache(maxsize=16)  # for the 161 parameters of an iteration
def _scalars(dtype, lr, alpha_sgd, alpha_rmsprop, mu1, mu2, eps, weight_decay):
    """Hyperparameters in the parameter's dtype, in the order of ``_update``."""
    if eps != 0 and dtype.type(eps) == 0:
        raise ValueError(f'eps {eps} is 0 in {dtype.name}, in which RMSprop warm-up cannot update a '
                         'parameter: call use_fp32_update() of the optimizer')
    return tuple(dtype.type(value) for value in (
        lr, alpha_sgd, alpha_rmsprop, mu1, mu2, 1 - mu2, eps, weight_decay))


def _update(theta, grad, m, delta, eta, alpha_sgd, alpha_rmsprop, mu1, mu2, one_minus_mu2, eps, weight_decay):
    """The update with NumPy, in place: any layout, any floating-point dtype, the bits of ``loops.update``."""
    # Blocks of contiguous arrays are views, of others buffers, which the iterator writes back.
    blocks = np.nditer([theta, grad, m, delta], flags=['external_loop', 'buffered', 'zerosize_ok'],
                       op_flags=[['readwrite'], ['readonly'], ['readwrite'], ['readwrite']], buffersize=BLOCK)
    scratch, decayed = np.empty((2, min(theta.size, BLOCK)), theta.dtype)
    # A gradient that is not finite is to show in the parameters, not on the terminal for every block.
    with blocks, np.errstate(all='ignore'):
        for theta, g, m, delta in blocks:
            t = scratch[:theta.size]
            if weight_decay != 0:
                decayed_g = decayed[:theta.size]
                np.multiply(theta, weight_decay, decayed_g)
                g = np.add(decayed_g, g, decayed_g)

            # m = mu2 m + (1 - mu2) g^2, also while nothing reads it: alpha_rmsprop may come back
            np.square(g, t)
            np.multiply(t, one_minus_mu2, t)
            np.multiply(m, mu2, m)
            np.add(m, t, m)

            # t = (alpha_sgd + alpha_rmsprop / (sqrt(m) + eps)) g
            if alpha_rmsprop != 0:
                np.sqrt(m, t)
                np.add(t, eps, t)
                np.divide(alpha_rmsprop, t, t)
                np.add(t, alpha_sgd, t)
                np.multiply(t, g, t)
            else:
                np.multiply(g, alpha_sgd, t)

            # delta = mu1 delta - t; theta += eta delta
            np.multiply(delta, mu1, delta)
            np.subtract(delta, t, delta)
            np.multiply(delta, eta, t)
            np.add(theta, t, theta)


class RMSpropWarmupRule(optimizer.UpdateRule):
    """Update rule of RMSprop warm-up; :class:`RMSpropWarmup` has the formula and the hyperparameters.

    The state holds ``m`` and ``delta``, arrays of the parameter's shape and dtype. With ``use_fp32_update``
    a float16 parameter has both, and a copy of itself, in float32; the copy is serialized as ``fp32_param``.

    Args:
        parent_hyperparam (~chainer.optimizer.Hyperparameter): Default values of the hyperparameters. What is
            set on this rule's ``hyperparam`` comes before them, for its parameter alone.
    """

    is_elementwise = True

    def __init__(self, parent_hyperparam=None):
        super().__init__(parent_hyperparam or _default_hyperparam)

    def init_state(self, param):
        xp = param.device.xp
        self.state['m'] = xp.zeros_like(param.array)
        self.state['delta'] = xp.zeros_like(param.array)

    def update(self, param):
        copy = self._fp32_param
        if copy is not None and copy.device != param.device:
            copy.to_device(param.device)  # fresh from a checkpoint
        super().update(param)

    def serialize(self, serializer_):
        super().serialize(serializer_)
        if not self._use_fp32_update:
            return
        # Chainer leaves the float32 copy out, and would resume from the rounded parameter.
        if isinstance(serializer_, serializer.Deserializer):
            try:
                copy = serializer_('fp32_param', None)
            except KeyError:  # the parameter is not float16
                copy = None
            self._fp32_param = None if copy is None else variable.Parameter(copy)
        elif self._fp32_param is not None:
            serializer_('fp32_param', self._fp32_param.array)

    def update_core_cpu(self, param):
        grad = param.grad
        if grad is None:
            return
        arrays = param.array, grad, self.state['m'], self.state['delta']
        fit_loops = all(array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned
                        for array in arrays)
        update = loops.update if loops and fit_loops else _update
        update(*arrays, *_scalars(param.dtype, **self.hyperparam.get_dict()))

    def update_core_gpu(self, param):
        grad = param.grad
        if grad is None:
            return
        scalars = [scalar.item() for scalar in _scalars(param.dtype, **self.hyperparam.get_dict())]
        cuda.elementwise(*UPDATE_KERNEL)(
            grad, *scalars, param.array, self.state['m'], self.state['delta'])


class RMSpropWarmup(optimizer.GradientMethod):
    r"""RMSprop warm-up: momentum SGD and RMSprop with momentum in one rule (section A.1).

    .. math::

        m_t &= \mu_2 m_{t-1} + (1 - \mu_2) g_t^2, \\
        \Delta_t &= \mu_1 \Delta_{t-1}
            - \left(\alpha_{\rm SGD} + \frac{\alpha_{\rm RMSprop}}{\sqrt{m_t} + \varepsilon}\right) g_t, \\
        \theta_t &= \theta_{t-1} + \eta \Delta_t,

    where :math:`m_0 = \Delta_0 = 0` (no bias correction) and :math:`g_t` is the gradient plus
    :math:`\lambda\theta_{t-1}` (Goyal et al., section 5.1): weight decay enters :math:`m` too.

    :math:`\alpha_{\rm RMSprop} = 0` is momentum SGD with momentum correction,
    :math:`\alpha_{\rm SGD} = 0` RMSprop with momentum. :mod:`lib.schedules` gives both, and
    :math:`\eta = \eta_{\rm SGD}`, for every iteration.

    Args:
        lr (float): Learning rate :math:`\eta`.
        alpha_sgd (float): Share of momentum SGD, :math:`\alpha_{\rm SGD}`.
        alpha_rmsprop (float): Coefficient of RMSprop, :math:`\alpha_{\rm RMSprop}`.
        mu1 (float): Momentum :math:`\mu_1`.
        mu2 (float): Decay :math:`\mu_2` of the gradient's second moment.
        eps (float): :math:`\varepsilon`. An update raises :class:`ValueError` if it is 0 in the parameter's
            dtype (float16 without ``use_fp32_update``).
        weight_decay (float): :math:`\lambda`; see :func:`exempt_from_weight_decay`.
    """

    def __init__(self, lr, alpha_sgd=1.0, alpha_rmsprop=0.0, mu1=constants.MU1, mu2=constants.MU2,
                 eps=constants.EPS, weight_decay=0.0):
        super().__init__()
        self.hyperparam.lr = lr
        self.hyperparam.alpha_sgd = alpha_sgd
        self.hyperparam.alpha_rmsprop = alpha_rmsprop
        self.hyperparam.mu1 = mu1
        self.hyperparam.mu2 = mu2
        self.hyperparam.eps = eps
        self.hyperparam.weight_decay = weight_decay

    lr = optimizer.HyperparameterProxy('lr')
    alpha_sgd = optimizer.HyperparameterProxy('alpha_sgd')
    alpha_rmsprop = optimizer.HyperparameterProxy('alpha_rmsprop')
    mu1 = optimizer.HyperparameterProxy('mu1')
    mu2 = optimizer.HyperparameterProxy('mu2')
    eps = optimizer.HyperparameterProxy('eps')
    weight_decay = optimizer.HyperparameterProxy('weight_decay')

    def create_update_rule(self):
        return RMSpropWarmupRule(self.hyperparam)

    def setup(self, link):
        self._flat = None
        return super().setup(link)

    def lay_flat(self, guard):
        """Lay parameters and state end to end on their GPU, to be updated in one launch.

        To be called after ``setup`` and all that gives parameters a dtype, or a weight decay, of their own.
        :meth:`update` is the same then, but for the hooks of update rules, which are not called.

        Args:
            guard (lib.gpu.flat.Guard): Once it has seen a fault, nothing is changed any more.

        Raises:
            ValueError: If one parameter cannot be updated like the others.
        """
        named = [(name, param) for name, param in sorted(self.target.namedparams())
                 if param.update_rule is not None]
        self._flat = flat.State(named, UPDATE_KERNEL[2], guard.failed_at)

    def update(self, lossfun=None, *args, **kwds):
        if self._flat is None or lossfun is not None:
            super().update(lossfun, *args, **kwds)
            return
        self.call_hooks('pre')
        self.t += 1
        self._flat.update(_scalars(np.dtype(np.float32), **self.hyperparam.get_dict()))
        self.call_hooks('post')


def exempt_from_weight_decay(model):
    r"""Set weight decay to 0 for batch normalization's :math:`\gamma` and :math:`\beta`.

    Goyal et al., section 5.1. The exemption is kept by the parameters' update rules, which every
    ``optimizer.setup(model)`` replaces: call this after the last one.

    Args:
        model (~chainer.Link): Model that an :class:`RMSpropWarmup` is set up with.

    Raises:
        ValueError: If the parameters have no update rule yet.
    """
    for link in model.links():
        if not isinstance(link, L.BatchNormalization):
            continue
        for param in (link.gamma, link.beta):
            if param is None:
                continue
            if param.update_rule is None:
                raise ValueError(f'{param.name} of {link.name} has no update rule: call '
                                 'optimizer.setup(model) before exempt_from_weight_decay(model)')
            param.update_rule.hyperparam.weight_decay = 0.0
