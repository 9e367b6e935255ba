"""RMSprop warm-up against float64 transcriptions of section A.1, and against Chainer's own optimizers."""

import warnings

from lib import optimizers
from lib.optimizers import RMSpropWarmup, RMSpropWarmupRule, exempt_from_weight_decay

import chainer
import chainer.links as L
import numpy as np
import pytest
from chainer.backends import cuda
from chainer.optimizer_hooks import WeightDecay
from chainer.testing import attr

HYPERPARAMETERS = dict(lr=0.1, alpha_sgd=0.3, alpha_rmsprop=0.002, mu1=0.9, mu2=0.99, eps=1e-8,
                       weight_decay=0.0)


@pytest.fixture(autouse=True)
def implementation(both_implementations):
    both_implementations(optimizers)


class Parameters(chainer.Link):
    """Bare parameters, named p0, p1, and so on."""

    def __init__(self, *arrays):
        super().__init__()
        with self.init_scope():
            for i, array in enumerate(arrays):
                setattr(self, f'p{i}', chainer.Parameter(array.copy(order='K')))


def set_up(*arrays, fp32=False, **hyperparameters):
    model = Parameters(*arrays)
    updater = RMSpropWarmup(**{**HYPERPARAMETERS, **hyperparameters})
    if fp32:
        updater.use_fp32_update()
    return model, updater.setup(model)


def step(model, updater, *grads):
    for i, grad in enumerate(grads):
        getattr(model, f'p{i}').grad = grad
    updater.update()


def normal(rng, shape, dtype=np.float32):
    return np.asarray(rng.standard_normal(shape), dtype)


def transcription(theta, m, delta, grad, lr, alpha_sgd, alpha_rmsprop, mu1, mu2, eps, weight_decay):
    """Section A.1, line by line, in float64."""
    g = grad.astype(np.float64) + weight_decay * theta
    m = mu2 * m + (1 - mu2) * g ** 2
    delta = mu1 * delta - (alpha_sgd + alpha_rmsprop / (np.sqrt(m) + eps)) * g
    return theta + lr * delta, m, delta


def assert_close_to_largest(actual, expected, what):
    scale = np.abs(expected).max()
    assert np.abs(actual - expected).max() <= 1e-5 * scale, what


def assert_follows(param, theta, m, delta):
    state = param.update_rule.state
    assert_close_to_largest(param.array, theta, 'theta')
    assert_close_to_largest(state['delta'], delta, 'delta')
    is_normal = m >= np.finfo(np.float32).tiny
    if is_normal.any():
        assert_close_to_largest(state['m'][is_normal], m[is_normal], 'm')
    assert param.dtype == state['delta'].dtype == state['m'].dtype == np.float32


def zeros(rng, shape):
    return np.zeros(shape, np.float32)


def tiny(rng, shape):
    return np.asarray(1e-20 * rng.standard_normal(shape), np.float32)


def huge(rng, shape):
    return np.asarray(1e15 * rng.standard_normal(shape), np.float32)


def sparse(rng, shape):
    return np.asarray(rng.standard_normal(shape) * (rng.random(shape) < 0.3), np.float32)


def spread(rng, shape):
    return np.asarray(rng.standard_normal(shape) * 10 ** rng.uniform(-20, 15, shape), np.float32)


@pytest.mark.parametrize('gradient, weight_decay', [
    (normal, 0.0), (zeros, 0.0), (tiny, 0.0), (huge, 0.0), (sparse, 0.0), (spread, 0.0),
    (normal, 1e-4), (huge, 1e-4), (sparse, 1e-4), (spread, 1e-4)])
def test_1000_steps_follow_the_paper_while_every_hyperparameter_changes(gradient, weight_decay):
    rng = np.random.default_rng([len(gradient.__name__), int(weight_decay > 0)])
    shapes = [(rng.integers(50, 200),), tuple(rng.integers(3, 7, rng.integers(3, 5)))]
    arrays = [normal(rng, shape) for shape in shapes]
    model, updater = set_up(*arrays, weight_decay=weight_decay)
    expected = [(array.astype(np.float64), np.zeros(array.shape), np.zeros(array.shape)) for array in arrays]

    for t in range(1000):
        # from RMSprop alone through both to SGD alone
        alpha_sgd = float(np.clip((t - 200) / 600, 0, 1))
        now = dict(lr=0.1 / (1 + t // 300), alpha_sgd=alpha_sgd, alpha_rmsprop=(1 - alpha_sgd) * 0.003,
                   mu1=rng.uniform(0.85, 0.95), mu2=rng.uniform(0.98, 0.995))
        for name, value in now.items():
            setattr(updater, name, value)
        grads = [gradient(rng, shape) for shape in shapes]
        step(model, updater, *grads)
        expected = [transcription(*state, grad, **now, eps=1e-8, weight_decay=weight_decay)
                    for state, grad in zip(expected, grads)]
        if t % 100 == 99:
            for i, state in enumerate(expected):
                assert_follows(getattr(model, f'p{i}'), *state)


def test_a_rule_of_its_own_is_plain_momentum_sgd_with_the_papers_constants():
    rule = RMSpropWarmupRule()
    assert rule.hyperparam.get_dict() == dict(
        lr=0.1, alpha_sgd=1.0, alpha_rmsprop=0.0, mu1=0.9, mu2=0.99, eps=1e-8, weight_decay=0.0)
    assert {**RMSpropWarmup(0.5).hyperparam.get_dict(), 'lr': 0.1} == rule.hyperparam.get_dict()


def test_first_update_makes_a_step():
    grad = np.array([2, -0.5], np.float32)
    model, updater = set_up(np.zeros(2, np.float32))
    step(model, updater, grad)
    expected = -0.1 * (0.3 + 0.002 / (np.sqrt(0.01) * np.abs(grad) + 1e-8)) * grad
    assert model.p0.array == pytest.approx(expected, rel=1e-5)
    assert updater.t == model.p0.update_rule.t == 1


@pytest.mark.parametrize('shape', [(), (1,), (1, 1, 1)])
def test_single_element_is_updated_like_one_of_many(shape):
    rng = np.random.default_rng(16)
    theta, grads = normal(rng, (100,)), [normal(rng, (100,)) for _ in range(20)]
    model, updater = set_up(theta)
    other, other_updater = set_up(theta[17:18].reshape(shape))
    for grad in grads:
        step(model, updater, grad)
        step(other, other_updater, grad[17:18].reshape(shape))
    assert other.p0.shape == shape
    assert other.p0.array.item() == model.p0.array[17]


def test_float64_parameters_are_updated_in_float64():
    rng = np.random.default_rng(2)
    theta, grads = normal(rng, (4, 5), np.float64), [normal(rng, (4, 5), np.float64) for _ in range(20)]
    model, updater = set_up(theta, weight_decay=0.01)
    expected = theta, 0, 0
    for grad in grads:
        step(model, updater, grad)
        expected = transcription(*expected, grad, **{**HYPERPARAMETERS, 'weight_decay': 0.01})
    assert model.p0.array == pytest.approx(expected[0], rel=1e-13)
    assert model.p0.update_rule.state['m'] == pytest.approx(expected[1], rel=1e-13)


def test_numpy_scalars_as_hyperparameters_change_nothing():
    rng = np.random.default_rng(3)
    theta, grads = normal(rng, (50,)), [normal(rng, (50,)) for _ in range(3)]
    model, updater = set_up(theta)
    scalars = {name: np.float64(value) for name, value in HYPERPARAMETERS.items()}
    other, numpy_updater = set_up(theta, **scalars)
    for grad in grads:
        step(model, updater, grad)
        step(other, numpy_updater, grad)
    assert other.p0.dtype == np.float32
    assert np.array_equal(model.p0.array, other.p0.array)


@pytest.mark.parametrize('weight_decay', [0.0, 1e-4])
def test_blocks_do_not_change_a_bit(monkeypatch, weight_decay):
    rng = np.random.default_rng(4)
    theta, grads = normal(rng, (13, 11)), [normal(rng, (13, 11)) for _ in range(3)]
    runs = []
    for block in (1 << 16, 143, 142, 16):
        monkeypatch.setattr(optimizers, 'BLOCK', block)
        model, updater = set_up(theta, weight_decay=weight_decay)
        for grad in grads:
            step(model, updater, grad)
        runs.append([model.p0.array.tobytes(), *(a.tobytes() for a in model.p0.update_rule.state.values())])
    assert all(run == runs[0] for run in runs)


@pytest.mark.parametrize('layout', ['transposed', 'strided', 'broadcast', 'unaligned', 'fortran parameter'])
def test_any_memory_layout_gives_the_same_bits(monkeypatch, layout):
    monkeypatch.setattr(optimizers, 'BLOCK', 16)
    rng = np.random.default_rng(5)
    theta, grad = normal(rng, (9, 6)), normal(rng, (9, 6))
    as_laid_out = theta
    if layout == 'transposed':
        laid_out = np.ascontiguousarray(grad.T).T
    elif layout == 'strided':
        laid_out = np.repeat(grad, 2, axis=1)[:, ::2]
    elif layout == 'unaligned':
        laid_out = np.frombuffer(b' ' + grad.tobytes(), np.float32, offset=1).reshape(grad.shape)
    elif layout == 'broadcast':
        laid_out = np.broadcast_to(grad[:1], grad.shape)
        grad = laid_out.copy()
    else:
        laid_out, as_laid_out = grad, np.asfortranarray(theta)

    model, updater = set_up(theta, weight_decay=0.1)
    other, other_updater = set_up(as_laid_out, weight_decay=0.1)
    for _ in range(3):
        step(model, updater, grad)
        step(other, other_updater, laid_out)
    assert np.array_equal(model.p0.array, other.p0.array)
    for name in ('m', 'delta'):
        assert np.array_equal(model.p0.update_rule.state[name], other.p0.update_rule.state[name])


def test_empty_parameter_is_left_alone():
    model, updater = set_up(np.zeros((0, 3), np.float32))
    step(model, updater, np.zeros((0, 3), np.float32))
    assert model.p0.shape == (0, 3)


@pytest.mark.parametrize('hyperparameters', [
    {}, {'weight_decay': 0.1}, {'alpha_rmsprop': 0.0}, {'alpha_rmsprop': 0.0, 'alpha_sgd': 1.0}])
def test_gradient_is_only_read(hyperparameters):
    grad = normal(np.random.default_rng(6), (5, 7))
    before = grad.copy()
    grad.flags.writeable = False
    model, updater = set_up(np.ones((5, 7), np.float32), **hyperparameters)
    step(model, updater, grad)
    assert np.array_equal(grad, before)
    assert not np.array_equal(model.p0.array, np.ones((5, 7)))


@pytest.mark.parametrize('hyperparameters', [
    {}, {'weight_decay': 0.1}, {'alpha_rmsprop': 0.0}, {'alpha_rmsprop': 0.0, 'alpha_sgd': 1.0},
    {'alpha_sgd': 0.0}])
@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30])
def test_bad_gradient_shows_in_its_own_elements_alone_and_warns_nobody(value, hyperparameters):
    grad = np.array([1, value, -1], np.float32)
    model, updater = set_up(np.ones(3, np.float32), **hyperparameters)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(2):
            step(model, updater, grad)
    theta = model.p0.array
    assert np.isfinite(theta[[0, 2]]).all()
    if np.isnan(value):
        assert np.isnan(theta[1])
        assert np.isnan(model.p0.update_rule.state['m'][1])


def test_missing_gradient_counts_as_zero():
    model, updater = set_up(np.ones(3, np.float32))
    model.cleargrads()
    updater.update()
    assert np.array_equal(model.p0.array, np.ones(3))


@pytest.mark.parametrize('hyperparameters', [
    {}, {'alpha_rmsprop': 0.0, 'alpha_sgd': 1.0}, {'alpha_sgd': 0.0}])
def test_weight_decay_is_chainers_hook_bit_for_bit(hyperparameters):
    rng = np.random.default_rng(7)
    theta, grads = normal(rng, (6, 5)), [normal(rng, (6, 5)) for _ in range(30)]
    model, updater = set_up(theta, weight_decay=1e-2, **hyperparameters)
    hooked, hooked_updater = set_up(theta, **hyperparameters)
    hooked_updater.add_hook(WeightDecay(1e-2))
    for grad in grads:
        step(model, updater, grad)
        step(hooked, hooked_updater, grad.copy())
    assert np.array_equal(model.p0.array, hooked.p0.array)
    assert np.array_equal(model.p0.update_rule.state['m'], hooked.p0.update_rule.state['m'])


def test_without_rmsprop_it_is_momentum_sgd_bit_for_bit():
    rng = np.random.default_rng(8)
    theta = normal(rng, (300,))
    model, updater = set_up(theta, alpha_sgd=1.0, alpha_rmsprop=0.0)
    velocity, moment, mu1 = np.zeros_like(theta), np.zeros(300), np.float32(0.9)
    for t in range(200):
        grad = normal(rng, (300,))
        lr = 0.1 / (1 + t // 50)
        updater.lr = lr
        step(model, updater, grad)
        velocity = mu1 * velocity - grad
        theta = theta + np.float32(lr) * velocity
        moment = 0.99 * moment + 0.01 * grad.astype(np.float64) ** 2
    assert theta.dtype == np.float32
    assert np.array_equal(model.p0.array, theta)
    assert np.array_equal(model.p0.update_rule.state['delta'], velocity)
    assert model.p0.update_rule.state['m'] == pytest.approx(moment, rel=1e-5)


def test_without_rmsprop_it_is_chainers_corrected_momentum_sgd_bit_for_bit():
    rng = np.random.default_rng(9)
    theta = normal(rng, (7, 9))
    model, updater = set_up(theta, alpha_sgd=1.0, alpha_rmsprop=0.0)
    other = Parameters(theta)
    corrected = chainer.optimizers.CorrectedMomentumSGD(lr=0.1, momentum=0.9).setup(other)
    for t in range(100):
        updater.lr = corrected.lr = 0.1 / (1 + t // 30)
        grad = normal(rng, (7, 9))
        step(model, updater, grad)
        step(other, corrected, grad)
    assert np.array_equal(model.p0.array, other.p0.array)


def test_a_share_of_sgd_scales_its_steps():
    rng = np.random.default_rng(10)
    theta, grad = normal(rng, (20,)), normal(rng, (20,))
    model, updater = set_up(theta, alpha_sgd=0.25, alpha_rmsprop=0.0)
    quarter, quarter_updater = set_up(theta, alpha_sgd=1.0, alpha_rmsprop=0.0)
    for _ in range(5):
        step(model, updater, grad)
        step(quarter, quarter_updater, grad / 4)
    assert np.array_equal(model.p0.array, quarter.p0.array)


def test_without_sgd_and_momentum_it_is_chainers_rmsprop():
    rng = np.random.default_rng(11)
    theta = normal(rng, (40,))
    model, updater = set_up(theta, lr=0.01, alpha_sgd=0.0, alpha_rmsprop=1.0, mu1=0.0)
    other = Parameters(theta)
    rmsprop = chainer.optimizers.RMSprop(lr=0.01, alpha=0.99, eps=1e-8).setup(other)
    for _ in range(100):
        grad = normal(rng, (40,))
        step(model, updater, grad)
        step(other, rmsprop, grad)
    assert_close_to_largest(model.p0.array, other.p0.array, 'theta')


def test_without_sgd_it_is_rmsprop_with_momentum():
    # Unrolled: m and delta are sums over all gradients so far, weighted by powers of mu2 and mu1.
    rng = np.random.default_rng(12)
    theta, grads = normal(rng, (25,)), np.stack([normal(rng, (25,)) for _ in range(60)])
    model, updater = set_up(theta, alpha_sgd=0.0, alpha_rmsprop=0.01)
    for grad in grads:
        step(model, updater, grad)
    lag = np.subtract.outer(np.arange(60), np.arange(60))
    past = lag >= 0
    m = np.where(past, 0.01 * 0.99 ** np.where(past, lag, 0), 0) @ grads.astype(np.float64) ** 2
    delta = np.where(past, 0.9 ** np.where(past, lag, 0), 0) @ (-0.01 * grads / (np.sqrt(m) + 1e-8))
    assert_close_to_largest(model.p0.array, theta + 0.1 * delta.sum(axis=0), 'theta')
    assert_close_to_largest(model.p0.update_rule.state['delta'], delta[-1], 'delta')


def test_a_new_learning_rate_does_not_rescale_the_gathered_steps():
    grad = np.ones(1, np.float32)
    model, updater = set_up(np.zeros(1, np.float32), lr=1.0, alpha_sgd=1.0, alpha_rmsprop=0.0)
    step(model, updater, grad)
    before = model.p0.array.copy()
    updater.lr = 0.1
    step(model, updater, grad)
    assert model.p0.array - before == pytest.approx(-0.1 * (0.9 + 1), rel=1e-6)


def test_hyperparameters_of_one_parameter_override_the_optimizers():
    ones = np.ones(3, np.float32)
    model, updater = set_up(ones, ones, alpha_sgd=1.0, alpha_rmsprop=0.0, weight_decay=0.5)
    model.p1.update_rule.hyperparam.weight_decay = 0.0
    model.p1.update_rule.hyperparam.lr = 0.2
    step(model, updater, ones, ones)
    assert model.p0.array == pytest.approx(1 - 0.1 * 1.5)
    assert model.p1.array == pytest.approx(1 - 0.2)


class Normalized(chainer.Chain):
    """Batch normalizations of all kinds, and a link that only shares their names."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(3, 4, 3)
            self.plain = L.BatchNormalization(4)
            self.nested = chainer.Sequential(L.BatchNormalization(4, use_gamma=False))
            self.deferred = L.BatchNormalization(axis=(0, 2, 3))
            self.bn = L.Linear(2, 2)
            self.layer = L.LayerNormalization(2)


def test_exemption_finds_batch_normalization_by_its_type():
    model = Normalized()
    updater = RMSpropWarmup(0.1, weight_decay=0.5).setup(model)
    exempt_from_weight_decay(model)
    exempt = {name for name, param in model.namedparams() if param.update_rule.hyperparam.weight_decay == 0}
    assert exempt == {'/plain/gamma', '/plain/beta', '/nested/0/beta', '/deferred/gamma', '/deferred/beta'}
    updater.weight_decay = 0.25
    assert model.conv.W.update_rule.hyperparam.weight_decay == 0.25
    assert model.plain.gamma.update_rule.hyperparam.weight_decay == 0


def test_exemption_keeps_gamma_where_the_gradient_vanishes():
    model = Normalized()
    updater = RMSpropWarmup(0.1, weight_decay=0.5).setup(model)
    exempt_from_weight_decay(model)
    weight = model.conv.W.array.copy()
    model.deferred.gamma.initialize(4)
    model.deferred.beta.initialize(4)
    for param in model.params():
        param.grad = np.zeros_like(param.array)
    updater.update()
    assert np.array_equal(model.plain.gamma.array, np.ones(4))
    assert model.conv.W.array == pytest.approx(weight * (1 - 0.1 * 0.5), rel=1e-6)


def test_exemption_before_setup_is_refused():
    with pytest.raises(ValueError, match=r'call optimizer\.setup'):
        exempt_from_weight_decay(Normalized())


def saved_and_loaded(tmp_path, model, updater, restart):
    chainer.serializers.save_npz(tmp_path / 'model.npz', model)
    chainer.serializers.save_npz(tmp_path / 'optimizer.npz', updater)
    model, updater = restart()
    chainer.serializers.load_npz(tmp_path / 'model.npz', model)
    chainer.serializers.load_npz(tmp_path / 'optimizer.npz', updater)
    return model, updater


@pytest.mark.parametrize('dtype, fp32', [(np.float32, False), (np.float32, True), (np.float64, False),
                                         (np.float16, True)])
def test_loaded_optimizer_continues_with_the_same_bits(tmp_path, dtype, fp32):
    rng = np.random.default_rng(13)
    theta, grads = normal(rng, (4, 5), dtype), [normal(rng, (4, 5), dtype) for _ in range(12)]

    def start():
        return set_up(theta, fp32=fp32, weight_decay=1e-3)

    model, updater = start()
    for t, grad in enumerate(grads):
        step(model, updater, grad)
        if t == 5:
            resumed, resumed_updater = saved_and_loaded(tmp_path, model, updater, start)
        if t > 5:
            step(resumed, resumed_updater, grad)
    assert resumed_updater.t == updater.t == 12
    assert resumed.p0.array.tobytes() == model.p0.array.tobytes()
    for name, value in model.p0.update_rule.state.items():
        assert resumed.p0.update_rule.state[name].tobytes() == value.tobytes()


def test_saved_state_is_named_m_and_delta(tmp_path):
    model, updater = set_up(np.ones(3, np.float32))
    step(model, updater, np.ones(3, np.float32))
    chainer.serializers.save_npz(tmp_path / 'optimizer.npz', updater)
    with np.load(tmp_path / 'optimizer.npz') as saved:
        assert sorted(saved) == ['epoch', 'p0/delta', 'p0/m', 'p0/t', 't']


def test_float16_parameter_follows_its_float32_copy():
    rng = np.random.default_rng(14)
    theta = normal(rng, (30,), np.float16)
    model, updater = set_up(theta, fp32=True)
    single, single_updater = set_up(theta.astype(np.float32))
    for _ in range(50):
        grad = normal(rng, (30,), np.float16)
        step(model, updater, grad)
        step(single, single_updater, grad.astype(np.float32))
    assert model.p0.dtype == np.float16
    assert np.array_equal(model.p0.array, single.p0.array.astype(np.float16))
    assert model.p0.update_rule.state['m'].dtype == np.float32


def test_eps_that_vanishes_in_float16_is_refused():
    model, updater = set_up(np.ones(3, np.float16))
    with pytest.raises(ValueError, match='eps 1e-08 is 0 in float16.*use_fp32_update'):
        step(model, updater, np.ones(3, np.float16))


@attr.gpu
@pytest.mark.parametrize('hyperparameters', [
    {}, {'weight_decay': 0.1}, {'alpha_rmsprop': 0.0, 'alpha_sgd': 1.0}, {'alpha_sgd': 0.0}])
def test_gpu_agrees_with_the_cpu(hyperparameters):
    rng = np.random.default_rng(15)
    theta, grads = normal(rng, (30, 40)), [normal(rng, (30, 40)) for _ in range(100)]
    model, updater = set_up(theta, **hyperparameters)
    other, other_updater = set_up(theta, **hyperparameters)
    other.to_device('@cupy:0')
    for grad in grads:
        step(model, updater, grad)
        step(other, other_updater, cuda.to_gpu(grad))
    other.to_device('@numpy')
    assert_close_to_largest(other.p0.array, model.p0.array, 'theta')
