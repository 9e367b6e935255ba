"""Model and optimizer as arrays by name."""


from lib.checkpoint import file, state
from lib.errors import UserError
from lib.optimizers import RMSpropWarmup

import chainer
import chainer.functions as F
import numpy as np
import pytest

from tests.lib.checkpoint.examples import Network, description, same


def make(n_out=3, dtype=np.float32, seed=0):
    np.random.seed(seed)
    model = Network(n_out, dtype)
    optimizer = RMSpropWarmup(lr=0.01, alpha_sgd=0.5, alpha_rmsprop=0.5)
    if dtype == chainer.mixed16:
        optimizer.use_fp32_update()
    return model, optimizer.setup(model)


def train(model, optimizer, first, last):
    for iteration in range(first, last):
        x = np.random.RandomState(iteration).randn(8, 4).astype(model.fc.W.dtype)
        model.cleargrads()
        F.sum(F.cast(model(x), 'float32') ** 3).backward()
        optimizer.update()


@pytest.mark.parametrize('dtype', [np.float32, chainer.mixed16])
@pytest.mark.parametrize('used', [False, True])
def test_a_restored_run_continues_to_the_same_bytes(tmp_path, dtype, used):
    model, optimizer = make(dtype=dtype)
    optimizer.epoch = 5
    train(model, optimizer, 0, 3)
    file.write(tmp_path / 'a.npz', state.flatten(model, optimizer), description())
    train(model, optimizer, 3, 6)

    resumed, its_optimizer = make(dtype=dtype, seed=1)
    if used:
        train(resumed, its_optimizer, 20, 22)
    state.restore(file.read(tmp_path / 'a.npz')[0], resumed, its_optimizer)
    train(resumed, its_optimizer, 3, 6)
    assert same(state.flatten(resumed, its_optimizer), state.flatten(model, optimizer))


def test_flatten_names_everything_and_shares_no_memory():
    model, optimizer = make(dtype=chainer.mixed16)
    train(model, optimizer, 0, 1)
    arrays = state.flatten(model, optimizer)
    params = ['fc/W', 'fc/b', 'bn/gamma', 'bn/beta']
    rules = [f'{param}/{entry}' for param in params for entry in ('t', 'm', 'delta')]
    masters = [f'{name}/fp32_param' for name, param in model.namedparams() if param.dtype == np.float16]
    assert len(masters) >= 2
    assert set(arrays) == {f'model/{name}' for name in [*params, 'bn/avg_mean', 'bn/avg_var', 'bn/N']} | {
        f'optimizer/{name}' for name in ['t', 'epoch', *rules]} | {f'optimizer{name}' for name in masters}
    assert all(arrays[f'optimizer{name}'].dtype == np.float32 for name in masters)
    before = {name: array.copy() for name, array in arrays.items()}
    train(model, optimizer, 1, 2)
    assert same(arrays, before)


def test_before_the_first_update_there_is_no_state_to_save_or_restore():
    model, optimizer = make()
    arrays = state.flatten(model, optimizer)
    assert arrays['optimizer/fc/W/t'] == 0 and 'optimizer/fc/W/m' not in arrays
    train(model, optimizer, 0, 2)

    resumed, its_optimizer = make(seed=1)
    train(resumed, its_optimizer, 20, 22)
    state.restore(arrays, resumed, its_optimizer)
    train(resumed, its_optimizer, 0, 2)
    assert same(state.flatten(resumed, its_optimizer), state.flatten(model, optimizer))


def test_restore_keeps_the_arrays_it_fills():
    model, optimizer = make()
    train(model, optimizer, 0, 1)
    arrays = state.flatten(model, optimizer)
    weights, momentum = model.fc.W.array, model.fc.W.update_rule.state['m']
    train(model, optimizer, 1, 2)
    state.restore({**arrays, 'workers/statistics': np.zeros(3)}, model, optimizer)
    assert model.fc.W.array is weights and model.fc.W.update_rule.state['m'] is momentum
    assert same(state.flatten(model, optimizer), arrays)


@pytest.mark.parametrize('change, message', [
    (lambda a: a.pop('model/fc/W'), 'model/fc/W is not in the file'),
    (lambda a: a.pop('optimizer/fc/W/m'), 'optimizer/fc/W/m is not in the file'),
    (lambda a: a.pop('optimizer/t'), 'optimizer/t is not in the file'),
    (lambda a: a.pop('model/bn/N'), 'model/bn/N is not in the file'),
    (lambda a: a.update({'model/fc2/W': np.zeros(1)}), 'the file also has model/fc2/W'),
    (lambda a: a.update({'optimizer/fc/W/x': np.zeros(1)}), 'the file also has optimizer/fc/W/x'),
    (lambda a: a.update({'model/fc/b': np.zeros(4, 'f')}), r"has shape \(3,\), the file's is \(4,\)"),
    (lambda a: a.update({'model/fc/b': np.zeros(3, 'd')}), "has dtype float32, the file's is float64"),
    (lambda a: a.update({'optimizer/fc/b/m': np.zeros((), 'f')}), r"shape \(3,\), the file's is \(\)"),
])
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_model_unchanged(change, message):
    model, optimizer = make()
    train(model, optimizer, 0, 1)
    arrays = state.flatten(model, optimizer)
    change(arrays)
    other, its_optimizer = make(seed=1)
    train(other, its_optimizer, 0, 1)
    before = state.flatten(other, its_optimizer)
    with pytest.raises(UserError, match=message):
        state.restore(arrays, other, its_optimizer)
    assert same(state.flatten(other, its_optimizer), before)
