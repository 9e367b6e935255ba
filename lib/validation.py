"""Validation by sums: exact for every number of images, processes and images per step."""

from lib import sharding
from lib.data import normalization

import chainer
import chainer.functions as F
import numpy as np


def evaluate(model, batches):
    """Add up what a model makes of some images.

    Args:
        model (chainer.Link): Network; its batch normalization uses its running statistics.
        batches (iterable): Pairs of uint8 images ``(m, side, side, 3)`` and int32 labels ``(m,)``.

    Returns:
        numpy.ndarray: float64 ``(3,)``: sum of the losses, correct answers (top-1), images.
    """
    device = model.device
    loss, correct, count = 0.0, 0, 0
    dtype = chainer.get_dtype(map_mixed16='float16')
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for images, labels in batches:
            x = normalization.normalize(device.send(images), dtype)
            t = device.send(labels)
            y = F.cast(model(x), 'float32')
            loss += F.softmax_cross_entropy(y, t, reduce='no').array.sum(dtype='float64')
            correct += (y.array.argmax(axis=1) == t).sum()
            count += len(labels)
    return np.array([float(loss), float(correct), count], np.float64)


def evaluate_share(plan, rank, model, statistics, batches):
    """Evaluate one process's share of the validation set.

    Every worker has a block of the images. With averaged batch normalization statistics, to which the model
    is bound, those of one process are evaluated as one; without, each with the worker's own.

    Args:
        plan (lib.plan.Plan): The job.
        rank (int): Process.
        model (chainer.Link): Network.
        statistics (lib.batch_statistics.BatchStatistics): The workers' statistics.
        batches (callable): ``batches(start, stop)`` gives the images from ``start`` to ``stop - 1``.

    Returns:
        numpy.ndarray: As ``evaluate`` does.
    """
    if plan.recipe.bn_statistics != 'last-local':
        return evaluate(model, batches(*sharding.block(rank, plan.processes, plan.n_val)))
    sums = np.zeros(3)
    for k in range(plan.virtual_workers):
        share = sharding.block(rank * plan.virtual_workers + k, plan.workers, plan.n_val)
        with statistics.using(k):
            sums += evaluate(model, batches(*share))
    return sums


def means(sums):
    """Return the mean loss and accuracy.

    Args:
        sums (numpy.ndarray): As ``evaluate`` returns.

    Returns:
        dict: ``loss`` and ``accuracy``; empty if there were no images, for which neither is defined.
    """
    loss, correct, count = sums.tolist()
    return {'loss': loss / count, 'accuracy': correct / count} if count else {}
