"""The CUDA sources without a GPU: compiled by NVRTC as CuPy would, and run as C++ on the CPU.

NVRTC and CuPy come with the extra ``gpu`` and need no GPU to compile; the second part needs a C++ compiler.
"""

import ctypes
import itertools
import shutil
import subprocess

from lib import optimizers
from lib.communication import wire
from lib.data import normalization

import numpy as np
import pytest

# Each kernel, and the types it is used with.
FLOATS = ('float16', 'float32')
KERNELS = [
    *((optimizers.UPDATE_KERNEL, {'T': T}) for T in (*FLOATS, 'float64')),
    *((normalization.KERNEL, {'T': T}) for T in FLOATS),
    *((wire.PACK_KERNEL, {'T': T, 'W': W}) for T, W in itertools.product(FLOATS, FLOATS)),
    *((wire.MEAN_KERNEL, {'W': W}) for W in FLOATS),
]
SCALARS = {'eta', 'alpha_sgd', 'alpha_rmsprop', 'mu1', 'mu2', 'one_minus_mu2', 'eps', 'weight_decay', 'area',
           'virtual_workers', 'divisor'}


def parameters(kernel):
    """(raw, type, name) of each parameter."""
    for text in f'{kernel[0]}, {kernel[1]}'.split(', '):
        *raw, type_, name = text.split()
        yield raw == ['raw'], type_, name


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kernel, types', KERNELS, ids=lambda value: value[-1] if isinstance(value, tuple)
                         else '-'.join(value.values()))
def test_kernel_compiles(kernel, types):
    cupy = pytest.importorskip('cupy', reason='no CuPy: the extra "gpu" has it', exc_type=ImportError)
    nvrtc = cupy.cuda.nvrtc
    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f'no NVRTC ({error})')
    source = cuda_source(cupy, kernel, types)
    program = nvrtc.createProgram(source, f'{kernel[-1]}.cu', (), ())
    try:
        nvrtc.compileProgram(program, compiler_options(cupy))
    except nvrtc.NVRTCError:
        pytest.fail(f'{nvrtc.getProgramLog(program)}\n{source}')


def cuda_source(cupy, kernel, types):
    """What CuPy makes of an elementwise kernel on contiguous arrays; by functions of its own."""
    from cupy._core import _carray
    from cupy._core._kernel import _ArgInfo, _get_elementwise_kernel_code, _TypeMap
    array, indexer, scalar = 1, 2, 3  # CuPy's kinds of arguments
    arguments = []
    for _, type_, name in parameters(kernel):
        dtype = np.dtype(types.get(type_, type_)).type
        arguments.append(_ArgInfo(scalar, dtype, dtype, 0, True, True) if name in SCALARS else
                         _ArgInfo(array, cupy.ndarray, dtype, 1, True, True))
    arguments.append(_ArgInfo(indexer, _carray.Indexer, None, 1, True, True))
    pairs = tuple((name, np.dtype(type_).type) for name, type_ in types.items())
    function = cupy.ElementwiseKernel(*kernel)
    code = _get_elementwise_kernel_code(tuple(arguments), _TypeMap(pairs), function.params,
                                        function.operation, function.name, function.preamble)
    headers = ('complex.cuh', 'carray.cuh', 'atomics.cuh', 'math_constants.h')
    return ''.join(f'#include <cupy/{name}>\n' for name in headers) + code


def compiler_options(cupy):
    from cupy._core import core
    from cupy.cuda import compiler
    more_folders = getattr(compiler, '_get_extra_include_dir_opts', tuple)()  # CuPy 13
    return (*core.assemble_cupy_compiler_options(()), *more_folders, '--device-as-default-execution-space',
            '-arch=sm_75')


# The wire's type only holds values: what is divided in it would lose small gradients, and is NaN here.
WIRE = '''
struct W {
  float value;
  W(float value) : value(value) {}
  operator float() const { return value; }
};
inline float operator/(W, W) { return NAN; }
inline float operator/(W, float) { return NAN; }
inline float operator/(float, W) { return NAN; }
'''


def as_function(kernel):
    """The kernel in C++, for float: every element in turn, by pointers and scalars."""
    signature, views = [], []
    for raw, type_, name in parameters(kernel):
        type_ = {'int64': 'long long', 'uint8': 'unsigned char', 'bool': 'bool', 'W': 'W'}.get(type_, 'float')
        signature.append(f'{type_} {name}' if name in SCALARS else
                         f'{type_} *{name}' if raw else f'{type_} *{name}_')
        if not raw and name not in SCALARS:
            views.append(f'{type_} &{name} = {name}_[i];')
    return (f'extern "C" void {kernel[-1]}(long long size, {", ".join(signature)}) {{\n'
            f'  for (long long i = 0; i < size; i++) {{ {" ".join(views)} {kernel[2]}; }}\n}}\n')


@pytest.fixture(scope='module')
def on_cpu(tmp_path_factory):
    """``on_cpu(kernel, size, *arguments)``: arrays and scalars in the kernel's order."""
    compiler = shutil.which('c++')
    if compiler is None:
        pytest.skip('no C++ compiler')
    folder = tmp_path_factory.mktemp('kernels')
    kernels = [optimizers.UPDATE_KERNEL, normalization.KERNEL, wire.PACK_KERNEL, wire.MEAN_KERNEL]
    (folder / 'kernels.cc').write_text('#include <cmath>\nusing namespace std;\ntypedef float T;\n'
                                       + WIRE + ''.join(map(as_function, kernels)))
    subprocess.run([compiler, '-O1', '-ffp-contract=off', '-shared', '-fPIC', 'kernels.cc', '-o',
                    'kernels.so'], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / 'kernels.so'))

    def run(kernel, size, *arguments):
        converted = [ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else
                     ctypes.c_longlong(value) if isinstance(value, int) else ctypes.c_float(value)
                     for value in arguments]
        getattr(library, kernel[-1])(ctypes.c_longlong(size), *converted)

    return run


@pytest.mark.parametrize('alpha_sgd, alpha_rmsprop, weight_decay', [
    (0.3, 0.002, 1e-4), (1.0, 0.0, 0.1), (0.0, 0.002, 0.0)])
def test_update_kernel_is_the_rule_of_section_a1(on_cpu, alpha_sgd, alpha_rmsprop, weight_decay):
    eta, mu1, mu2, eps = 0.1, 0.9, 0.99, 1e-8
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(50).astype(np.float32)
    m, delta = np.zeros_like(theta), np.zeros_like(theta)
    expected, expected_m, expected_delta = theta.astype(float), np.zeros(50), np.zeros(50)
    for _ in range(40):
        grad = rng.standard_normal(50).astype(np.float32)
        on_cpu(optimizers.UPDATE_KERNEL, 50, grad, eta, alpha_sgd, alpha_rmsprop, mu1, mu2, 1 - mu2, eps,
               weight_decay, theta, m, delta)
        g = grad + weight_decay * expected
        expected_m = mu2 * expected_m + (1 - mu2) * g ** 2
        expected_delta = mu1 * expected_delta - (alpha_sgd + alpha_rmsprop / (np.sqrt(expected_m) + eps)) * g
        expected = expected + eta * expected_delta
    for got, right in ((theta, expected), (m, expected_m), (delta, expected_delta)):
        assert abs(got - right).max() <= 1e-5 * abs(right).max()


def test_normalization_kernel_gives_the_cpu_s_bits(on_cpu):
    images = np.random.default_rng(4).integers(0, 256, (3, 4, 5, 3), np.uint8)
    out = np.empty((3, 3, 4, 5), np.float32)
    on_cpu(normalization.KERNEL, out.size, images, normalization._tables(np.dtype(np.float32)), 20, out)
    assert np.array_equal(out, normalization.normalize(images))


def test_exchange_kernels_give_the_cpu_s_bits(on_cpu):
    gradient = np.random.default_rng(5).standard_normal(60).astype(np.float32)
    payload, right = np.empty_like(gradient), np.empty_like(gradient)
    on_cpu(wire.PACK_KERNEL, 60, gradient, 3.0, payload)
    wire.to_wire(gradient, right, 3)
    assert np.array_equal(payload, right)
    mean, finite = np.empty_like(gradient), np.ones(1, bool)
    on_cpu(wire.MEAN_KERNEL, 60, payload, 7.0, mean, finite)
    wire.from_wire(payload, 7.0, right)
    assert np.array_equal(mean, right) and finite[0]


@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_mean_kernel_notices_what_is_not_finite(on_cpu, value):
    total = np.ones(60, np.float32)
    total[17] = value
    finite = np.ones(1, bool)
    on_cpu(wire.MEAN_KERNEL, 60, total, 7.0, np.empty_like(total), finite)
    assert not finite[0]
