import ctypes
import types

from lib.errors import UserError
from lib.gpu import cudnn, wheels

import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer.backends import cuda
from chainer.testing import attr


class Library:
    """In the place of a libcudnn: its functions return ``status``."""

    def __init__(self, path):
        self.path, self.status = path, 0
        self.cudnnGetVersion = lambda: {'8': 8907, '9': 91002}[path[-1]]
        self.cudnnGetErrorString = lambda status: f'CUDNN_STATUS_{status}'.encode()

    def __getattr__(self, name):
        return lambda *arguments: self.status


@pytest.fixture
def machine(monkeypatch):
    """``machine(found, installed, runtime, **cuda)``: what loads, by name and by path; CUDA; Chainer's."""
    def machine(found, installed=(), runtime=12090, **attributes):
        def load(path):
            if path not in (*found, *installed):
                raise OSError(f'{path}: cannot open shared object file')
            return Library(path)
        monkeypatch.setattr(ctypes, 'CDLL', load)
        monkeypatch.setattr(wheels, 'find', lambda pattern: [each for each in installed if pattern in each])
        cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(
            runtime=types.SimpleNamespace(runtimeGetVersion=lambda: runtime)))
        monkeypatch.setattr(cudnn, 'cuda', types.SimpleNamespace(**{
            'available': True, 'cupy': cupy, 'cudnn_enabled': False, '_cudnn_disabled_by_user': False,
            'libcudnn': types.SimpleNamespace(getVersion=lambda: 8907), **attributes}))
    monkeypatch.delenv('EXTREME_SGD_CUDNN', raising=False)
    cudnn.library.cache_clear()
    yield machine
    cudnn.library.cache_clear()


@pytest.mark.parametrize('found, installed, expected', [
    (['libcudnn.so.8', 'libcudnn.so.9'], [], 'libcudnn.so.9'),
    (['libcudnn.so.8'], [], 'libcudnn.so.8'),
    (['libcudnn.so.9'], ['/nvidia/cudnn/lib/libcudnn.so.9'], '/nvidia/cudnn/lib/libcudnn.so.9'),
    (['libcudnn.so.9'], ['/nvidia/cudnn/lib/libcudnn.so.8'], 'libcudnn.so.9')])
def test_the_newest_cudnn_is_taken_an_installed_wheel_first(machine, found, installed, expected):
    machine(found, installed)
    assert cudnn.library().path == expected
    assert cudnn.version() == {'8': 8907, '9': 91002}[expected[-1]]


@pytest.mark.parametrize('found, attributes', [
    ([], {}),
    (['libcudnn.so.9'], {'available': False}),
    (['libcudnn.so.9'], {'_cudnn_disabled_by_user': True})])
def test_without_library_or_gpu_or_against_the_users_will_there_is_none(machine, found, attributes):
    machine(found, **attributes)
    assert cudnn.library() is None and cudnn.version() is None


def test_with_cuda_13_cudnn_8_is_not_tried(machine):
    machine(['libcudnn.so.8'], runtime=13020)
    assert cudnn.library() is None


def test_chainers_cudnn_comes_first(machine):
    machine(['libcudnn.so.8', 'libcudnn.so.9'], cudnn_enabled=True)
    assert cudnn.library() is None and cudnn.version() == 8907


def test_in_the_place_of_chainers_it_is_the_one_that_is_loaded_already(machine, monkeypatch):
    monkeypatch.setenv('EXTREME_SGD_CUDNN', 'own')
    machine(['libcudnn.so.8', 'libcudnn.so.9'], cudnn_enabled=True)
    assert cudnn.library().path == 'libcudnn.so.8'


def test_a_choice_that_means_nothing_is_refused(machine, monkeypatch):
    monkeypatch.setenv('EXTREME_SGD_CUDNN', '1')
    with pytest.raises(UserError, match='EXTREME_SGD_CUDNN=1: expected own, .* or chainer'):
        cudnn.library()


def test_where_chainer_is_told_never_to_use_cudnn_none_is_used(machine):
    machine(['libcudnn.so.9'])
    with chainer.using_config('use_cudnn', 'never'):
        assert cudnn.version() is None and not cudnn.covers()


def test_an_error_is_told_with_cudnns_own_words(machine):
    machine(['libcudnn.so.9'])
    cudnn.library().status = 3
    with pytest.raises(RuntimeError, match=r'^cudnnCreate: CUDNN_STATUS_3 \(cuDNN 91002\)$'):
        cudnn._call('cudnnCreate')


@pytest.fixture
def calls(monkeypatch):
    """Calls of cuDNN, which knows four algorithms for every convolution, the quickest first."""
    made = []

    def call(function, *arguments):
        made.append((function, arguments))
        if 'Algorithm' in function:
            results = next(each for each in arguments if isinstance(each, ctypes.Array))
            results[0] = cudnn._Performance(algorithm=1, status=9)
            results[1] = cudnn._Performance(algorithm=2, memory=cudnn.WORKSPACE + 1)
            results[2] = cudnn._Performance(algorithm=3, memory=10)
            results[3] = cudnn._Performance(algorithm=4, memory=20, deterministic=1, math=1)
            next(each for each in arguments if hasattr(each, '_obj'))._obj.value = 4
    monkeypatch.setattr(cudnn, '_call', call)
    monkeypatch.setattr(cudnn, '_handle', ctypes.c_void_p)
    return made


@pytest.mark.parametrize('deterministic, algorithm, size, math', [(False, 3, 10, 0), (True, 4, 20, 1)])
def test_the_quickest_algorithm_that_works_fits_and_is_allowed_is_chosen_with_its_math(
        calls, deterministic, algorithm, size, math):
    with chainer.using_config('autotune', False), chainer.using_config('cudnn_deterministic', deterministic):
        chosen = cudnn._choose('Forward', [(None, None)] * 3, 1, 0, 'f')
    assert chosen[1:] == (algorithm, size)
    assert [function for function, _ in calls if 'Algorithm' in function] == [
        'cudnnGetConvolutionForwardAlgorithm_v7']
    assert calls[-1][0] == 'cudnnSetConvolutionMathType' and calls[-1][1][1] == math


@pytest.mark.parametrize('char, math', [('f', 0), ('e', 1)])
def test_tensor_cores_are_asked_for_in_float16(calls, char, math):
    with chainer.using_config('autotune', False):
        cudnn._choose('BackwardFilter', [(None, None)] * 3, 1, 0, char)
    asked = [arguments[1] for function, arguments in calls if function == 'cudnnSetConvolutionMathType']
    assert asked[0] == math


# On a GPU.

@pytest.fixture
def own(monkeypatch):
    """Work on a stream that nothing orders but itself, by this module, whatever Chainer has."""
    monkeypatch.setenv('EXTREME_SGD_CUDNN', 'own')
    cudnn.library.cache_clear()
    if cudnn.library() is None:
        pytest.skip('no libcudnn is found')
    with cuda.cupy.cuda.Stream(non_blocking=True):
        yield
    cudnn.library.cache_clear()


def normal(seed, *shape, dtype=np.float32):
    return np.random.RandomState(seed).standard_normal(shape).astype(dtype)


def to_gpu(array):
    """The same values in another order in memory."""
    return cuda.cupy.asarray(np.ascontiguousarray(array.T)).T


def assert_close(got, expected, dtype):
    assert got.dtype == dtype
    error = abs(cuda.to_cpu(got).astype(float) - expected).max() / abs(expected).max()
    assert error <= {np.float32: 1e-3, np.float16: 5e-3}[dtype]  # convolutions in TF32 too


@attr.gpu
@pytest.mark.parametrize('autotune', [False, True])
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
@pytest.mark.parametrize('ksize, stride, pad', [(3, 1, 1), (3, 2, 1), (1, 2, 0), (7, 2, 3)])
def test_convolution_and_its_gradients_are_chainers_on_a_cpu(own, ksize, stride, pad, dtype, autotune):
    x, w = normal(0, 4, 3, 9, 8, dtype=dtype), normal(1, 6, 3, ksize, ksize, dtype=dtype)
    inputs = [chainer.Variable(each.astype(np.float32)) for each in (x, w)]
    expected = F.convolution_2d(*inputs, stride=stride, pad=pad)
    gy = normal(2, *expected.shape, dtype=dtype)
    gradients = chainer.grad([expected], inputs, [chainer.Variable(gy.astype(np.float32))])
    gx, gw = (each.array for each in gradients)
    x, w, gy = map(to_gpu, (x, w, gy))
    with chainer.using_config('autotune', autotune):
        assert_close(cudnn.convolve('Forward', x, w, expected.shape, stride, pad), expected.array, dtype)
        assert_close(cudnn.convolve('BackwardData', w, gy, x.shape, stride, pad), gx, dtype)
        assert_close(cudnn.convolve('BackwardFilter', x, gy, w.shape, stride, pad), gw, dtype)


@attr.gpu
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
@pytest.mark.parametrize('decay', [0, 0.9])
def test_batch_normalization_its_gradients_and_statistics_are_chainers_on_a_cpu(own, dtype, decay):
    x, gy = normal(0, 4, 3, 5, 6, dtype=dtype), normal(1, 4, 3, 5, 6, dtype=dtype)
    gamma, beta, mean, var = normal(2, 3), normal(3, 3), normal(4, 3), normal(5, 3) ** 2
    inputs = [chainer.Variable(each.astype(np.float32)) for each in (x, gamma, beta)]
    fixed = F.fixed_batch_normalization(*inputs, mean, var, eps=1e-5).array
    on_gpu = [to_gpu(each) for each in (x, gamma, beta, mean, var)]
    assert_close(cudnn.normalize_by(*on_gpu, 1e-5), fixed, dtype)

    expected = F.batch_normalization(*inputs, eps=1e-5, running_mean=mean, running_var=var, decay=decay)
    gradients = chainer.grad([expected], inputs, [chainer.Variable(gy.astype(np.float32))])
    y, *saved = cudnn.normalize(*on_gpu, decay, 1e-5)
    assert_close(y, expected.array, dtype)
    assert_close(on_gpu[3], mean, np.float32)
    assert_close(on_gpu[4], var, np.float32)
    assert_close(cudnn.normalize(*on_gpu[:3], None, None, decay, 1e-5)[0], expected.array, dtype)
    ours = cudnn.normalize_backward(on_gpu[0], to_gpu(gy), on_gpu[1], *saved, 1e-5)
    for got, gradient, kind in zip(ours, gradients, (dtype, np.float32, np.float32)):
        assert_close(got, gradient.array, kind)


@attr.gpu
@pytest.mark.parametrize('dtype, override, asked', [
    (np.float32, '0', 3), (np.float32, '', 0), (np.float16, '0', 1)])  # cuDNN's numbers
def test_tf32_is_not_asked_for_where_it_is_forbidden(own, monkeypatch, dtype, override, asked):
    calls, call = [], cudnn._call
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', override)
    monkeypatch.setattr(cudnn, '_chosen', {})
    monkeypatch.setattr(cudnn, '_call', lambda *words: (calls.append(words), call(*words)))
    cudnn.convolve('Forward', *(cuda.cupy.ones((2, 3, 4, 4), dtype) for _ in range(2)), (2, 2, 1, 1), 1, 0)
    kinds = [words[2] for words in calls if words[0] == 'cudnnSetConvolutionMathType']
    assert kinds[0] == asked


@attr.gpu
def test_what_cudnn_refuses_is_named(own):
    x, w = (cuda.cupy.ones((2, 3, 4, 4), np.float32) for _ in range(2))
    with pytest.raises(RuntimeError, match=r'cudnn(Find|Get).*: CUDNN_STATUS_\w+ \(cuDNN \d+\)|no algorithm'):
        cudnn.convolve('Forward', x, w, (2, 2, 7, 7), 1, 0)
