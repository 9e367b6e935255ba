"""Builds CUDA's stand-ins, once, and runs the program on them: README.md in this folder says what for."""

import collections
import concurrent.futures
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import pytest

from jobs.faults import injection, soak

SOURCES = pathlib.Path(__file__).resolve().parent / 'src'
ROOT = SOURCES.parents[2]
LIBRARY = 'libcuda_on_cpu.so'
# Names by which CuPy asks for it; without cuDNN's it is CuPy without cuDNN.
NAMES = ['libcuda.so.1', 'libnccl.so.2',
         *(f'lib{name}.so.{major}' for name in ('nvrtc', 'cublas', 'cublasLt') for major in (12, 13))]
CUDNNS = (8, 9)
# Nothing is fused, as nvcc would: the CPU's results are those to compare with.
COMPILER = ['g++', '-std=gnu++17', '-ffp-contract=off', '-fPIC']
# With the same flags kernels find their header precompiled.
FOR_KERNELS = ['-w', '-O1', '-fpermissive', '-U_FORTIFY_SOURCE']

# Where CuPy is, if not where Python looks for it, which cuDNN is found, and who calls it if not CuPy.
CUPY_14 = pathlib.Path(sys.prefix) / 'cupy14'
TIMEOUT = 1200  # seconds: the first run compiles some sixty kernels
VARIANTS = {
    'CuPy 13 with cuDNN': (None, 8, {}),
    'CuPy 13 beside cuDNN': (None, 8, {'EXTREME_SGD_CUDNN': 'own'}),
    'CuPy 13': (None, None, {}),
    'CuPy 14 beside cuDNN': (CUPY_14, 9, {}),
    'CuPy 14': (CUPY_14, None, {}),
}


def pytest_collection_modifyitems(items):
    """Skip all of this folder where it cannot run, and say why."""
    here = [item for item in items if SOURCES.parent in item.path.parents]
    missing = what_is_missing() if here else None
    for item in here if missing else ():
        item.add_marker(pytest.mark.skip(reason=missing))


def what_is_missing():
    if platform.system() != 'Linux' or platform.machine() != 'x86_64':
        return 'the stand-ins for CUDA are written for Linux on x86-64'
    if shutil.which('g++') is None:
        return 'no g++, which compiles the stand-ins for CUDA and the kernels'
    if importlib.util.find_spec('cupy') is None or not CUPY_14.exists():
        return 'no CuPy: make test-gpu installs it'
    return None


@pytest.fixture(scope='session')
def libraries(kept):
    """Folder with the stand-ins."""
    files = sorted(SOURCES.iterdir())
    folder = kept('libraries', files)
    built = folder / 'built'
    if not built.exists():
        build(files, folder)
        built.touch()
    return folder


@pytest.fixture(scope='session')
def kept(pytestconfig):
    """``kept(what, files)``: folder in pytest's cache; another one when files, flags or compiler change."""
    version = subprocess.run(['g++', '--version'], capture_output=True, check=True).stdout

    def kept(what, files):
        digest = hashlib.sha256(version + repr([COMPILER, FOR_KERNELS, NAMES]).encode())
        for file in files:
            digest.update(file.read_bytes())
        return pathlib.Path(pytestconfig.cache.mkdir(f'cuda_on_cpu-{what}-{digest.hexdigest()[:16]}'))
    return kept


def build(files, folder):
    def compile(*arguments):
        done = subprocess.run([*COMPILER, *map(str, arguments)], cwd=folder, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr

    sources = [file for file in files if file.suffix == '.cpp']
    for header in set(files) - set(sources):
        shutil.copy(header, folder)  # where nvrtc.cpp looks for them
    objects = [f'{source.stem}.o' for source in sources]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile, *FOR_KERNELS, '-x', 'c++-header', 'kernel.h', '-o', 'kernel.h.gch')]
        command = f'-DKERNEL_COMPILER="{" ".join(COMPILER + FOR_KERNELS)}"'
        jobs += [pool.submit(compile, command, '-Wall', '-Wextra', '-O3', '-c', source, '-o', made)
                 for source, made in zip(sources, objects)]
        for job in jobs:
            job.result()
    compile('-shared', *objects, '-o', LIBRARY, '-ldl', '-lpthread', '-lrt')
    for major in CUDNNS:
        (folder / f'cudnn{major}').mkdir(exist_ok=True)
    for name in [*NAMES, *(f'cudnn{major}/libcudnn.so.{major}' for major in CUDNNS)]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / LIBRARY)


@pytest.fixture(scope='session')
def environment(libraries, kept):
    """``environment(variant)``: what a process needs in its environment to take the CPU for four GPUs."""
    compiled = kept('kernels', [*sorted(SOURCES.glob('*.h')), SOURCES / 'nvrtc.cpp'])

    def of(variant):
        cupy, cudnn, more = VARIANTS[variant]
        paths = [*([libraries / f'cudnn{cudnn}'] if cudnn else []), libraries]
        return {
            'LD_PRELOAD': LIBRARY,
            'LD_LIBRARY_PATH': os.pathsep.join(map(str, paths)),
            'PYTHONPATH': os.pathsep.join(map(str, [*([cupy] if cupy else []), ROOT])),
            'PYTHONWARNINGS': 'ignore::UserWarning:cupy._environment',  # there are two CuPys
            'CUPY_CACHE_DIR': str(compiled),
            'CUPY_ACCELERATORS': '',
            **more,
        }
    return of


Ended = collections.namedtuple('Ended', 'status statuses out err')


@pytest.fixture(scope='session')
def start(environment):
    """``start(variant, ranks, *runs)``: runs of jobs/faults/injection.py; without a variant, on the CPU."""
    jobs = []

    def start(variant, ranks, *runs):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(variant).items() if variant else ():
                patch.setenv(name, value)
            jobs.append(injection.start(ranks, *runs))
        return jobs[-1]

    yield start
    for job in jobs:
        soak.kill(job, 'all', None)


@pytest.fixture(scope='session')
def run(start, tmp_path_factory, small_data):
    """``run(variant, ranks, {name: (options, faults)}, **more)``: folder of the output, and an ``Ended``.

    Its ``statuses`` hold what each rank's run ended with, by the run's name. A run named ``x 2`` goes into
    the folder ``x``, where one named ``x 1`` may have stopped.
    """
    def run(variant, ranks, runs, **more):
        folder = tmp_path_factory.mktemp('runs')
        communicator = 'pure_nccl' if variant else 'naive'
        common = [*small_data, '--arch', 'resnet8', '--insize', '16', '-j', '0', '-B', '8', '-E', '2',
                  '--communicator', communicator]
        described = [{'options': [*common, '--out', folder / re.sub(r' \d+$', '', name), *options],
                      'faults': faults, **more} for name, (options, faults) in runs.items()]
        job = start(variant, ranks, *described)
        out, err = job.communicate(timeout=TIMEOUT)
        statuses = collections.defaultdict(list)
        for number, status in re.findall(r'run (\d+) on rank \d: exit (\d+)', out):
            statuses[list(runs)[int(number)]].append(int(status))
        return folder, Ended(job.returncode, statuses, out, err)
    return run
