"""Parameters and state end to end on a GPU; test_cuda_kernels.py has the kernels on a CPU."""

from lib.gpu import flat
from lib.optimizers import RMSpropWarmup

import chainer
import numpy as np
import pytest
from chainer.backends import cuda
from chainer.testing import attr

SHAPES = [(3, 5), (flat.CHUNK + 1,), (7, 64)]
RULE = {'alpha_sgd': 0.3, 'alpha_rmsprop': 0.002, 'weight_decay': 0.1}


def make(laid_flat, shapes=SHAPES, dtype=np.float32, fp32=False):
    """A link on the GPU, its optimizer, and the guard."""
    rng, link, guard = np.random.default_rng(1), chainer.Link(), flat.Guard()
    with link.init_scope():
        for i, shape in enumerate(shapes):
            drawn = rng.standard_normal(shape).astype(np.float32 if i == 1 else dtype)
            setattr(link, f'p{i:04}', chainer.Parameter(drawn))
    link.to_device('@cupy:0')
    optimizer = RMSpropWarmup(0.1, **RULE).setup(link)
    link.p0000.update_rule.hyperparam.weight_decay = 0.0
    if fp32:
        optimizer.use_fp32_update()
    if laid_flat:
        optimizer.lay_flat(guard)
    return link, optimizer, guard


def step(link, optimizer, seed):
    rng = np.random.default_rng([2, seed])
    for _, param in sorted(link.namedparams()):
        param._set_grad_without_check(cuda.to_gpu(rng.standard_normal(param.shape).astype(param.dtype)))
    optimizer.update()


def values(link):
    """Parameters, state and counters, by name, on the host."""
    found = {}
    for name, param in link.namedparams():
        rule = param.update_rule
        found[name] = param.array
        found.update({f'{name}/{key}': array for key, array in rule.state.items()}, **{f'{name}/t': rule.t})
        if rule._fp32_param is not None:
            found[f'{name}/fp32'] = rule._fp32_param.array
    return {name: cuda.to_cpu(value) if isinstance(value, cuda.ndarray) else value
            for name, value in found.items()}


def assert_close(link, other):
    got, expected = values(link), values(other)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert np.shape(value) == np.shape(expected[name])
        rtol = 2e-3 if np.result_type(value) == np.float16 else 1e-5
        np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=1e-6)


@attr.gpu
@pytest.mark.parametrize('dtype, fp32', [(np.float32, False), (np.float16, True)])
def test_one_launch_does_what_one_for_each_parameter_does(dtype, fp32):
    pair = [make(laid_flat, dtype=dtype, fp32=fp32)[:2] for laid_flat in (True, False)]
    for seed in range(5):
        for link, optimizer in pair:
            step(link, optimizer, seed)
    assert pair[0][1].t == 5
    assert_close(pair[0][0], pair[1][0])


@attr.gpu
def test_more_arrays_than_a_launch_takes_are_all_updated():
    shapes = [(i % 3 + 1,) for i in range(flat.LIMIT + 3)]
    pair = [make(laid_flat, shapes)[:2] for laid_flat in (True, False)]
    for link, optimizer in pair:
        step(link, optimizer, 0)
    assert_close(pair[0][0], pair[1][0])


@attr.gpu
def test_a_parameter_or_state_that_somebody_has_replaced_is_laid_again():
    pair = [make(laid_flat)[:2] for laid_flat in (True, False)]
    for link, optimizer in pair:
        step(link, optimizer, 0)
        link.p0001.array = link.p0001.array * 2
        link.p0002.update_rule._state = {name: array + 1 for name, array in
                                         link.p0002.update_rule.state.items()}
        step(link, optimizer, 1)
    assert_close(pair[0][0], pair[1][0])


@attr.gpu
def test_master_copies_out_of_a_file_are_laid_again():
    pair = [make(laid_flat, dtype=np.float16, fp32=True)[:2] for laid_flat in (True, False)]
    for link, optimizer in pair:
        step(link, optimizer, 0)
        saved = chainer.serializers.DictionarySerializer()
        optimizer.serialize(saved)
        saved.target = {name: value + 1 if name.endswith('fp32_param') else value
                        for name, value in saved.target.items()}
        optimizer.serialize(chainer.serializers.NpzDeserializer(saved.target))
        step(link, optimizer, 1)
    assert_close(pair[0][0], pair[1][0])


@attr.gpu
def test_nothing_changes_once_the_guard_has_seen_a_fault():
    link, optimizer, guard = make(True)
    step(link, optimizer, 0)
    before = values(link)
    guard.failed_at[...] = 1
    step(link, optimizer, 1)
    for name, value in values(link).items():
        assert name.endswith('/t') or np.array_equal(value, before[name])


@attr.gpu
def test_parameters_lie_where_cudnn_wants_them():
    link, _, _ = make(True, dtype=np.float16, fp32=True)
    assert all(param.array.data.ptr % 128 == 0 for param in link.params())


@attr.gpu
@pytest.mark.parametrize('spoil, dtype', [
    (lambda rule: setattr(rule.hyperparam, 'lr', 1.0), np.float32),
    (lambda rule: setattr(rule, 'enabled', False), np.float32),
    (lambda rule: None, np.float16)])
def test_what_cannot_be_updated_with_the_others_is_refused_by_name(spoil, dtype):
    link, optimizer, guard = make(False, dtype=dtype)
    spoil(link.p0002.update_rule)
    with pytest.raises(ValueError, match='/p000. cannot be updated in one launch'):
        optimizer.lay_flat(guard)
