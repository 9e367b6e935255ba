"""The CUDA sources without a GPU: compiled by NVRTC as CuPy would, and run as C++ on the CPU.

NVRTC and CuPy come with the extra ``gpu`` and need no GPU to compile; the second part needs a C++ compiler.
"""

import ctypes
import pathlib
import shutil
import subprocess

from lib import optimizers
from lib.communication import wire
from lib.data import normalization
from lib.gpu import flat

import numpy as np
import pytest

# Each kernel, and the types it is used with.
FLOATS = ('float16', 'float32')
KERNELS = [
    *((optimizers.UPDATE_KERNEL, {'T': T}) for T in (*FLOATS, 'float64')),
    *((normalization.KERNEL, {'T': T}) for T in FLOATS),
    *((wire.MEAN_KERNEL, {'W': W}) for W in FLOATS),
]
SCALARS = {'eta', 'alpha_sgd', 'alpha_rmsprop', 'mu1', 'mu2', 'one_minus_mu2', 'eps', 'weight_decay', 'area',
           'divisor', 'exchange'}
# Whole sources, by name.
SOURCES = {
    'pack of float16': flat.PACK.replace('WIRE', '__half'),
    'pack of float32': flat.PACK.replace('WIRE', 'float'),
    'update': flat.UPDATE.replace('RULE', optimizers.UPDATE_KERNEL[2]),
}


def parameters(kernel):
    """(raw, type, name) of each parameter."""
    for text in f'{kernel[0]}, {kernel[1]}'.split(', '):
        *raw, type_, name = text.split()
        yield raw == ['raw'], type_, name


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kernel, types', KERNELS, ids=lambda value: value[-1] if isinstance(value, tuple)
                         else '-'.join(value.values()))
def test_kernel_compiles(kernel, types, compile_cuda):
    compile_cuda(lambda cupy: cuda_source(cupy, kernel, types))


@pytest.mark.parametrize('name', SOURCES)
def test_source_compiles(name, compile_cuda):
    compile_cuda(lambda cupy: SOURCES[name])


@pytest.fixture
def compile_cuda():
    """``compile_cuda(source_by)``: what ``source_by(cupy)`` gives compiles as CuPy would have it."""
    cupy = pytest.importorskip('cupy', reason='no CuPy: the extra "gpu" has it', exc_type=ImportError)
    nvrtc = cupy.cuda.nvrtc
    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f'no NVRTC ({error})')

    def compile(source_by):
        source = source_by(cupy)
        program = nvrtc.createProgram(source, 'kernel.cu', (), ())
        try:
            nvrtc.compileProgram(program, compiler_options(cupy))
        except nvrtc.NVRTCError:
            pytest.fail(f'{nvrtc.getProgramLog(program)}\n{source}')
    return compile


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
        type_ = {'int64': 'long long', 'uint8': 'unsigned char', 'int32': 'int', 'W': 'W'}.get(type_, 'float')
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
    kernels = [optimizers.UPDATE_KERNEL, normalization.KERNEL, wire.MEAN_KERNEL]
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


def test_mean_kernel_gives_the_cpu_s_bits(on_cpu):
    total = np.random.default_rng(5).standard_normal(60).astype(np.float32)
    mean, right = np.empty_like(total), np.empty_like(total)
    failed_at = np.full(1, flat.NEVER, np.int32)
    on_cpu(wire.MEAN_KERNEL, 60, total, 7.0, 1, mean, failed_at)
    wire.from_wire(total, 7.0, right)
    assert np.array_equal(mean, right) and failed_at[0] == flat.NEVER


@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_mean_kernel_keeps_the_number_of_the_first_exchange_that_was_not_finite(on_cpu, value):
    total = np.ones(60, np.float32)
    failed_at = np.full(1, flat.NEVER, np.int32)
    for exchange, element in ((1, 1.0), (2, value), (3, value), (4, 1.0)):
        total[17] = element
        on_cpu(wire.MEAN_KERNEL, 60, total, 7.0, exchange, np.empty_like(total), failed_at)
        assert failed_at[0] == (flat.NEVER if exchange == 1 else 2)


# Kernels of lib/gpu/flat.py, run by one thread a block.

SIZES = 3, flat.CHUNK + 5, 0, 64
HEADERS = pathlib.Path(__file__).parents[1] / 'cuda_on_cpu' / 'src'
CALLS = '''
extern "C" void run(int blocks, const Arrays *arrays, const Chunk *chunks, %s) {
  gridDim.x = blocks;
  blockDim.x = 1;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) %s(*arrays, chunks, 0, %s);
}
'''
PACK_ARGUMENTS = ('float workers, int exchange, const int *failed_at, WIRE *payload, '
                  'unsigned long long *faults')
UPDATE_ARGUMENTS = ('float eta, float alpha_sgd, float alpha_rmsprop, float mu1, float mu2, '
                    'float one_minus_mu2, float eps, float common_decay, const float *decays, '
                    'const int *failed_at, float *thetas, float *ms, float *deltas, __half *halves')


@pytest.fixture(scope='module')
def launch(tmp_path_factory):
    """``launch(name, arrays, *arguments)``: a kernel of SOURCES on arrays of SIZES."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('no g++')
    folder, runs = tmp_path_factory.mktemp('flat'), {}
    for name, source in SOURCES.items():
        text = PACK_ARGUMENTS if 'pack' in name else UPDATE_ARGUMENTS
        names = ', '.join(argument.split()[-1].lstrip('*') for argument in text.split(', '))
        path = folder / f'{name.replace(" ", "_")}.cc'
        wire_type = '__half' if '16' in name else 'float'
        path.write_text('#include "kernel.h"\n' + source
                        + (CALLS % (text, name.split()[0], names)).replace('WIRE', wire_type))
        subprocess.run([compiler, '-std=gnu++17', '-w', '-O1', '-ffp-contract=off', '-shared', '-fPIC',
                        f'-I{HEADERS}', path, '-o', f'{path}.so'], check=True)
        runs[name] = ctypes.CDLL(f'{path}.so').run
    chunks = np.ascontiguousarray(flat.lay_out(SIZES)[2])

    def launch(name, arrays, *arguments):
        table = np.zeros(flat.LIMIT, np.uint64)
        table[:len(arrays)] = [0 if array is None else array.ctypes.data | (array.dtype == np.float16)
                               for array in arrays]
        runs[name](len(chunks), *(
            ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else
            ctypes.c_float(value) if isinstance(value, float) else value
            for value in (table, chunks, *arguments)))
    return launch


def drawn(dtype=np.float32, seed=6):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for size in SIZES]


def test_the_layout_is_aligned_and_its_chunks_take_every_element_once():
    spans, size, chunks = flat.lay_out(SIZES)
    assert [span.stop - span.start for span in spans] == list(SIZES)
    assert all(span.start % flat.ALIGNMENT == 0 for span in spans) and size % flat.ALIGNMENT == 0
    taken = [(place + k, array, first + k) for array, first, place, length in chunks for k in range(length)]
    assert taken == [(spans[array].start + k, array, k) for array, size in enumerate(SIZES)
                     for k in range(size)]
    assert chunks[:, 3].max() <= flat.CHUNK


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('wire_dtype', FLOATS)
def test_pack_kernel_gives_the_cpu_s_bits(launch, dtype, wire_dtype):
    gradients = drawn(dtype)
    gradients[0] = None
    spans, size, _ = flat.lay_out(SIZES)
    payload, faults = np.ones(size, wire_dtype), np.zeros(len(SIZES), np.uint64)
    launch(f'pack of {wire_dtype}', gradients, 3.0, 1, np.full(1, flat.NEVER, np.int32), payload, faults)
    for span, gradient in zip(spans[1:], gradients[1:]):
        right = np.empty(gradient.size, wire_dtype)
        wire.to_wire(gradient, right, 3)
        assert np.array_equal(payload[span], right)
    assert not payload[spans[0]].any() and not faults.any()


@pytest.mark.parametrize('value, kept', [(np.nan, np.nan), (-np.inf, np.inf), (-3 * 70000.0, 70000.0)])
def test_pack_kernel_keeps_what_the_wire_cannot_hold(launch, value, kept):
    gradients = drawn()
    gradients[1][-1], gradients[1][7] = value, 3 * 66000
    faults = np.full(len(SIZES), 4 << 32 | 0x7fffffff, np.uint64)  # of an earlier exchange
    payload = np.empty(flat.lay_out(SIZES)[1], np.float16)
    launch('pack of float16', gradients, 3.0, 5, np.full(1, flat.NEVER, np.int32), payload, faults)
    assert (faults >> np.uint64(32)).tolist() == [4, 5, 4, 4]
    found = (faults[1:2] & np.uint64(0xffffffff)).astype(np.uint32).view(np.float32)
    assert np.array_equal(found, [np.float32(kept)], equal_nan=True)


def test_pack_kernel_leaves_the_payload_of_an_exchange_that_failed(launch):
    payload = np.full(flat.lay_out(SIZES)[1], 7, np.float32)
    for failed_at, changes in ((3, False), (4, True), (5, True)):
        launch('pack of float32', drawn(), 1.0, 4, np.full(1, failed_at, np.int32), payload,
               np.zeros(len(SIZES), np.uint64))
        assert (payload != 7).any() == changes


@pytest.mark.parametrize('failed_at', [flat.NEVER, 3])
def test_update_kernel_updates_all_unless_an_exchange_has_failed(launch, on_cpu, failed_at):
    spans, size, _ = flat.lay_out(SIZES)
    scalars = 0.1, 0.3, 0.002, 0.9, 0.99, 1 - 0.99, 1e-8, 1e-4
    decays = np.array([0, np.nan, 0, np.nan], np.float32)
    rng = np.random.default_rng(8)
    before = [abs(rng.standard_normal(size).astype(np.float32)) for _ in range(3)]
    arrays = [array.copy() for array in before]
    halves = np.zeros(size, np.float16)
    means = drawn()
    launch('update', means, *scalars, decays, np.full(1, failed_at, np.int32), *arrays, halves)
    if failed_at != flat.NEVER:
        assert all(np.array_equal(array, old) for array, old in zip(arrays, before)) and not halves.any()
        return
    for span, mean, decay in zip(spans, means, (0.0, 1e-4, 0.0, 1e-4)):
        right = [array[span].copy() for array in before]
        on_cpu(optimizers.UPDATE_KERNEL, mean.size, mean, *scalars[:-1], decay, *right)
        assert all(np.array_equal(array[span], expected) for array, expected in zip(arrays, right))
        assert np.array_equal(halves[span], arrays[0][span].astype(np.float16))
