from lib.gpu.upload import Upload

import chainer
import numpy as np
from chainer.backends import cuda
from chainer.testing import attr


def batches():
    """Pairs of arrays in the same memory, which the next one overwrites."""
    rng = np.random.default_rng(5)
    images, labels = np.empty((3, 5, 7, 3), np.uint8), np.empty(3, np.int32)
    for _ in range(7):
        images[...], labels[...] = rng.integers(0, 256, images.shape), rng.integers(0, 1000, 3)
        yield images, labels


def test_on_a_cpu_nothing_is_copied():
    upload = Upload(chainer.get_device('@numpy'))
    for images, labels in batches():
        sent = upload.send(images, labels)
        assert sent[0] is images and sent[1] is labels


@attr.gpu
def test_a_gpu_computes_with_each_minibatch_though_the_host_is_ahead():
    upload = Upload(chainer.get_device('@cupy:0'))
    got, expected = [], []
    for images, labels in batches():
        on_gpu = upload.send(images, labels)
        assert [(array.shape, array.dtype) for array in on_gpu] == [
            (array.shape, array.dtype) for array in (images, labels)]
        got.append([on_gpu[0] + np.uint8(1), on_gpu[1] * 2])
        expected.append([images + np.uint8(1), labels * 2])
    for arrays, right in zip(got, expected):
        assert all(np.array_equal(cuda.to_cpu(array), other) for array, other in zip(arrays, right))


@attr.gpu
def test_a_larger_minibatch_finds_room():
    upload = Upload(chainer.get_device('@cupy:0'))
    for size in (2, 4, 3):
        images, labels = np.full((size, 2, 2, 3), size, np.uint8), np.arange(size, dtype=np.int32)
        sent = upload.send(images, labels)
        assert (cuda.to_cpu(sent[0]) == images).all() and (cuda.to_cpu(sent[1]) == labels).all()


@attr.gpu
def test_a_larger_minibatch_leaves_the_last_one_what_it_was():
    import cupyx
    upload = Upload(chainer.get_device('@cupy:0'))
    small, large = (np.full((size, 2, 2, 3), size, np.uint8) for size in (2, 4))
    on_gpu = upload.send(small, np.zeros(2, np.int32))[0] + np.uint8(1)
    upload.send(large, np.zeros(4, np.int32))
    others = [cupyx.empty_pinned(small.nbytes + 8, np.uint8) for _ in range(2)]
    for other in others:
        other[...] = 77  # whoever has the memory now
    assert (cuda.to_cpu(on_gpu) == small + 1).all()
