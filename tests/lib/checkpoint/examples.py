"""What the tests of checkpoints write, and how they damage it."""

import os
import pickle
import zipfile

from lib.checkpoint import directory, file

import chainer
import chainer.links as L
import numpy as np

ARRAYS = {
    'model/fc/W': np.arange(6, dtype=np.float32).reshape(2, 3),
    'model/half': np.array([1.5, -0.0, np.nan], np.float16),
    'optimizer/t': np.array(7),
    'empty': np.empty((0, 4), np.float64),
    'flags': np.array([True, False]),
}


class Network(chainer.Chain):

    def __init__(self, n_out=3, dtype=np.float32):
        super().__init__()
        with chainer.using_config('dtype', dtype), self.init_scope():
            self.fc = L.Linear(4, n_out)
            self.bn = L.BatchNormalization(n_out)

    def forward(self, x):
        return self.bn(self.fc(x))


def description(iteration=7, **more):
    """What a checkpoint has to say of itself, at least."""
    return {'job': {'seed': 0, 'arch': 'resnet8', 'iterations': 10 ** 9}, 'iteration': iteration,
            'log': [{'epoch': 0.1, 'iteration': 1, 'lr': 1e-3}], 'elapsed_time': 1.5, 'versions': {}, **more}


BIG = {'a': np.arange(100_000)}

WRITER = '''
import sys
import numpy as np
from lib.checkpoint import directory, file
arrays = {'a': np.arange(100_000)}
print('ready', flush=True)
described = {'job': {}, 'log': [], 'elapsed_time': 0, 'versions': {}}
for iteration in range(1, 1000000):
    file.write(directory.path_of(sys.argv[1], iteration), arrays, {**described, 'iteration': iteration})
    print(iteration, flush=True)
'''


def same(arrays, others):
    return arrays.keys() == others.keys() and all(
        arrays[name].dtype == others[name].dtype and arrays[name].shape == others[name].shape
        and arrays[name].tobytes() == others[name].tobytes() for name in arrays)


def open_full(path, mode):
    open(path, mode).close()
    return open('/dev/full', 'wb')


def foreign_files(directory):
    def make(name, content):
        (directory / name).write_bytes(content)

    make('empty.npz', b'')
    make('text.npz', b'not a zip file\n' * 20)
    make('pickle.npz', pickle.dumps({'a': 1}))
    np.savez(directory / 'weights.npz', W=np.zeros(3))
    np.savez(directory / 'objects.npz', description=np.array(None), sha256=np.array([{}], object))
    np.save(directory / 'array.npy', np.zeros(3))
    with zipfile.ZipFile(directory / 'zip.npz', 'w') as archive:
        archive.writestr('description.npy', b'')
        archive.writestr('sha256.npy', b'')
    (directory / 'directory.npz').mkdir()
    os.mkfifo(directory / 'pipe.npz')
    os.symlink('loop.npz', directory / 'loop.npz')
    return [*directory.iterdir(), directory / 'missing.npz', directory / 'text.npz' / 'below.npz']


def write_iterations(out, *iterations):
    for iteration in iterations:
        file.write(directory.path_of(out, iteration), ARRAYS, description(iteration))


def damage(path):
    with open(path, 'r+b') as file:
        file.truncate(os.path.getsize(path) // 2)


def iterations_of(out):
    return [int(path.name[10:-4]) for path in directory.list_checkpoints(out)]
