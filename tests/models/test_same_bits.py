"""Training on a CPU gives the same bits wherever the same vectors are used."""

import os
import pathlib
import subprocess
import sys

from lib import compiled

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STEPS = '''
import hashlib
from lib import optimizers
import chainer.functions as F
import numpy as np
import models
model = models.build('resnet8', 5)
optimizer = optimizers.RMSpropWarmup(lr=0.01, alpha_sgd=0.5, alpha_rmsprop=0.001).setup(model)
x = np.random.RandomState(0).standard_normal((32, 3, 20, 20)).astype('float32')
for _ in range(3):
    model.cleargrads()
    F.softmax_cross_entropy(model(x), np.arange(32, dtype='int32') % 5).backward()
    optimizer.update()
weights = b''.join(param.array.tobytes() for _, param in sorted(model.namedparams()))
print(hashlib.sha256(weights).hexdigest())
'''


@pytest.mark.parametrize('width', compiled.available()[1:])
def test_neither_threads_nor_blas_s_kernels_change_a_bit(width):
    digests = set()
    for setting in ('OPENBLAS_NUM_THREADS=1', 'OPENBLAS_NUM_THREADS=2', 'OPENBLAS_CORETYPE=Prescott'):
        name, value = setting.split('=')
        done = subprocess.run([sys.executable, '-c', STEPS], cwd=ROOT, check=True, capture_output=True,
                              env={**os.environ, compiled.VARIABLE: width, name: value})
        digests.add(done.stdout)
    assert len(digests) == 1
