"""From Chainer's model and optimizer to host arrays by name, and back."""

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
    values = {**model_values(model, 'model/'), **_optimizer_values(optimizer)}
    return {name: to_host(value) for name, value in _in_few_copies(values).items()}


def _in_few_copies(values):
    """Copy arrays of a GPU into pinned memory, those that lie in one block of its memory all at once."""
    on_gpu = {name: value for name, value in values.items()
              if isinstance(value, cuda.ndarray) and value.flags.c_contiguous}
    if not on_gpu:
        return values
    import cupyx
    stream = cuda.cupy.cuda.get_current_stream()
    copies = {}
    for value in on_gpu.values():
        block = value.data.mem
        if block.ptr not in copies:
            copies[block.ptr] = copy = cupyx.empty_pinned(block.size, np.uint8)
            cuda.cupy.cuda.MemoryPointer(block, 0).copy_to_host_async(copy.ctypes.data, copy.nbytes, stream)
    stream.synchronize()
    return {**values, **{
        name: np.ndarray(value.shape, value.dtype, copies[value.data.mem.ptr],
                         value.data.ptr - value.data.mem.ptr) for name, value in on_gpu.items()}}


def restore(arrays, model, optimizer):
    """Put what :func:`flatten` gave back into model and optimizer, in place.

    Entries outside ``model/`` and ``optimizer/`` are the caller's and left alone.

    Raises:
        UserError: An entry is missing, left over, or of another shape or dtype; the model is unchanged.
    """
    arrays = {name: array for name, array in arrays.items() if name.startswith(('model/', 'optimizer/'))}
    for path, param, rule in _update_rules(optimizer):
        _prepare_state(arrays, path, param, rule)
    found = differences(arrays, {**model_values(model, 'model/'), **_optimizer_values(optimizer)},
                        same_dtype=True)
    if found:
        raise UserError(f'the checkpoint does not fit this model: {found}; '
                        'resume with the options of the run that wrote it')
    source = chainer.serializers.NpzDeserializer(arrays)
    source['model'].load(model)
    optimizer.t = source('optimizer/t', optimizer.t)
    optimizer.epoch = source('optimizer/epoch', optimizer.epoch)
    for path, _, rule in _update_rules(optimizer):
        rule.t = source(f'{path}t', rule.t)
        for name, array in _arrays_of(rule).items():
            source(f'{path}{name}', array)  # in place


def model_values(model, path=''):
    """Collect the live values of a network by path, copying none."""
    values = {}
    _Collector(values, path).save(model)
    return values


def to_host(value):
    """Copy a value into host memory, which training does not change any more."""
    return cuda.to_cpu(value) if isinstance(value, cuda.ndarray) else np.array(value)


def differences(arrays, values, same_dtype):
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
