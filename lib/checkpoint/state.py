"""From Chainer's model and optimizer to host arrays by name, and back; the weights that a run leaves."""

from lib import file_format, files
from lib.checkpoint.file import archive_at, reason_of, write_array
from lib.errors import UserError

import chainer
import numpy as np
from chainer.backends import cuda

_MASTER_COPY = 'fp32_param'


def flatten(model, optimizer):
    """Copy model and optimizer into host arrays.

    Args:
        model (chainer.Link): Parameters and persistent values go under ``model/``.
        optimizer (chainer.GradientMethod): Goes under ``optimizer/``: ``t`` and ``epoch``, and of each
            parameter its update rule's ``t``, its state (none before the first update) and, under
            ``fp32_param``, the float32 master copy of a float16 parameter.

    Returns:
        dict of str to numpy.ndarray: Scalars as 0-d arrays.
    """
    values = {**_model_values(model, 'model/'), **_optimizer_values(optimizer)}
    return {name: _to_host(value) for name, value in values.items()}


def restore(arrays, model, optimizer):
    """Put what :func:`flatten` gave back into model and optimizer, in place.

    Entries outside ``model/`` and ``optimizer/`` are the caller's and left alone.

    Raises:
        UserError: An entry is missing, left over, or of another shape or dtype; the model is unchanged.
    """
    arrays = {name: array for name, array in arrays.items() if name.startswith(('model/', 'optimizer/'))}
    for path, param, rule in _update_rules(optimizer):
        _prepare_state(arrays, path, param, rule)
    differences = _differences(arrays, {**_model_values(model, 'model/'), **_optimizer_values(optimizer)},
                               same_dtype=True)
    if differences:
        raise UserError(f'the checkpoint does not fit this model: {differences}; '
                        'resume with the options of the run that wrote it')
    source = chainer.serializers.NpzDeserializer(arrays)
    source['model'].load(model)
    optimizer.t = source('optimizer/t', optimizer.t)
    optimizer.epoch = source('optimizer/epoch', optimizer.epoch)
    for path, _, rule in _update_rules(optimizer):
        rule.t = source(f'{path}t', rule.t)
        for name, array in _arrays_of(rule).items():
            source(f'{path}{name}', array)  # in place


def save_model(path, model):
    """Write a model's weights, atomically, as ``chainer.serializers.load_npz`` reads them."""
    arrays = {name: _to_host(value) for name, value in _model_values(model).items()}
    with archive_at(path) as archive:
        for name in sorted(arrays):
            write_array(archive, name, arrays[name])


def load_model(path, model, report=lambda line: None):
    """Load weights written by :func:`save_model` or ``chainer.serializers.save_npz``, without unpickling.

    Values are cast to the model's dtypes (float32 weights into a float16 network). Weights without a format
    get today's names: see :func:`lib.file_format.to_current`.

    Args:
        path: File.
        model (chainer.Link): Network to fill.
        report (callable): Called with one line if names of the file are not today's.

    Raises:
        UserError: The file is missing, no weights file or a newer version's, or its weights are another
            network's.
    """
    try:
        with files.open_regular(path) as file, np.load(file, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except Exception as error:  # a damaged file may raise anything
        reason = reason_of(error)
        raise UserError(f'{path}: not a weights file ({reason}); expected an .npz as a run leaves it in '
                        'model.npz') from error
    arrays = file_format.to_current(path, arrays, report=report)
    differences = _differences(arrays, _model_values(model), same_dtype=False)
    if differences:
        raise UserError(f'{path}: weights of another network: {differences}; '
                        'choose the --arch and the classes they were trained with')
    chainer.serializers.NpzDeserializer(arrays).load(model)


class _Collector(chainer.Serializer):
    """Collects the live values of a link by path, copying none."""

    def __init__(self, target, path):
        self._target = target
        self._path = path

    def __getitem__(self, key):
        return _Collector(self._target, f'{self._path}{key.strip("/")}/')

    def __call__(self, key, value):
        if value is None:
            raise ValueError(f'{self._path}{key} has no value yet: give the network its input sizes')
        self._target[f'{self._path}{key}'] = value
        return value


def _model_values(model, path=''):
    values = {}
    _Collector(values, path).save(model)
    return values


def _update_rules(optimizer):
    for name, param in optimizer.target.namedparams():
        if param.update_rule is not None:
            yield f'optimizer{name}/', param, param.update_rule


def _optimizer_values(optimizer):
    values = {'optimizer/t': optimizer.t, 'optimizer/epoch': optimizer.epoch}
    for path, _, rule in _update_rules(optimizer):
        values[f'{path}t'] = rule.t
        for name, value in _arrays_of(rule).items():
            values[f'{path}{name}'] = value
    return values


def _arrays_of(rule):
    """State of an update rule by name, with the float32 master copy of a float16 parameter.

    Chainer itself saves no master copies: a resumed run would start from rounded ones.
    """
    copy = {} if rule._fp32_param is None else {_MASTER_COPY: rule._fp32_param.array}
    return {**(rule.state or {}), **copy}


def _to_host(value):
    """A copy in host memory, which training does not change any more."""
    return cuda.to_cpu(value) if isinstance(value, cuda.ndarray) else np.array(value)


def _prepare_state(arrays, path, param, rule):
    """Give an update rule the state that ``arrays`` holds for it, by name and shape."""
    saved = {name[len(path):] for name in arrays if name.startswith(path)}
    if saved == {'t'} and arrays[f'{path}t'] == 0:
        rule._state = rule._fp32_param = None  # as before the first update
        return
    if _MASTER_COPY in saved and rule._fp32_param is None and rule._use_fp32_update:
        rule._fp32_param = chainer.Parameter(param.array.astype(np.float32), name=param.name)
    if rule.state is None:
        rule._init_states(param if rule._fp32_param is None else rule._fp32_param)


def _differences(arrays, values, same_dtype):
    """Say in one line how a file's arrays differ from a program's values; empty when they fit."""
    phrases = []
    for name, value in sorted(values.items()):  # Chainer keeps names in sets, whose order changes
        shape, dtype = np.shape(value), getattr(value, 'dtype', np.dtype(type(value)))
        if name not in arrays:
            phrases.append(f'{name} is not in the file')
        elif arrays[name].shape != shape:
            phrases.append(f"{name} has shape {shape}, the file's is {arrays[name].shape}")
        elif arrays[name].dtype != dtype if same_dtype else not np.can_cast(arrays[name].dtype, dtype,
                                                                            'same_kind'):
            phrases.append(f"{name} has dtype {dtype}, the file's is {arrays[name].dtype}")
    phrases += [f'the file also has {name}' for name in sorted(arrays) if name not in values]
    shown = 3
    more = f' and {len(phrases) - shown} more' if len(phrases) > shown else ''
    return '; '.join(phrases[:shown]) + more
