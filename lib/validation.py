"""Validation by sums: exact for every number of images, processes and images per step."""

from lib import sharding
from lib.data import normalization

import chainer
import chainer.functions as F
import numpy as np
from chainer import backend
from chainer.backends import cuda

TOP = 5  # answers that top-5 accuracy looks at


def evaluate(model, batches):
    """Add up what a model makes of some images.

    Args:
        model (chainer.Link): Network; its batch normalization uses its running statistics.
        batches (iterable): Pairs of uint8 images ``(m, side, side, 3)`` and int32 labels ``(m,)``.

    Returns:
        numpy.ndarray: float64 ``(4,)``: sum of the losses, images whose label is the network's first answer
        (top-1), images whose label is among its first five (top-5, or all answers where classes are fewer),
        images.
    """
    loss, top1, top5, count = 0.0, 0, 0, 0
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for images, labels in batches:
            t = model.device.send(labels)
            y = _logits(model, images)
            places = _places(y.array, t)
            loss += F.softmax_cross_entropy(y, t, reduce='no').array.sum(dtype='float64')
            top1 += (places == 0).sum()
            top5 += (places < TOP).sum()
            count += len(labels)
    return np.array([float(loss), float(top1), float(top5), count], np.float64)


def _logits(model, images):
    """Answers of a network to uint8 images ``(m, side, side, 3)``: Variable, float32 ``(m, n_class)``."""
    dtype = chainer.get_dtype(map_mixed16='float16')
    return F.cast(model(normalization.normalize(model.device.send(images), dtype)), 'float32')


def probabilities(model, images):
    """Probability of each class, by the softmax that training minimizes the cross entropy of.

    Args:
        model (chainer.Link): As for :func:`evaluate`.
        images (numpy.ndarray): uint8 ``(m, side, side, 3)``.

    Returns:
        numpy.ndarray: float32 ``(m, n_class)``.
    """
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return cuda.to_cpu(F.softmax(_logits(model, images)).array)


def _places(answers, labels):
    """Place of each image's label among the network's answers, from 0.

    Of equal logits the first class comes first, as ``argmax`` has it. A label whose logit is NaN is last, and
    a NaN is before every other label: the network has no answer.

    Args:
        answers: Logits, float32 ``(m, n_class)``.
        labels: int32 ``(m,)``.
    """
    xp = backend.get_array_module(answers)
    own = answers[xp.arange(len(labels)), labels][:, None]
    ahead = ~(answers <= own)
    earlier = xp.arange(answers.shape[1]) < labels[:, None]
    return (ahead | (answers == own) & earlier).sum(axis=1)


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
    sums = np.zeros(4)
    for k in range(plan.virtual_workers):
        share = sharding.block(rank * plan.virtual_workers + k, plan.workers, plan.n_val)
        with statistics.using(k):
            sums += evaluate(model, batches(*share))
    return sums


def means(sums):
    """Return the mean loss, and the accuracy in the first and in the first five answers.

    Args:
        sums (numpy.ndarray): As ``evaluate`` returns.

    Returns:
        dict: ``loss``, ``accuracy`` and ``accuracy_top5``; empty if there were no images, for which none is
        defined.
    """
    loss, top1, top5, count = sums.tolist()
    return {'loss': loss / count, 'accuracy': top1 / count, 'accuracy_top5': top5 / count} if count else {}
