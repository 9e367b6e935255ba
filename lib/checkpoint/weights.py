"""Weights, and the network that they are of: ``model.npz``, and where else both are found.

``model.npz`` holds a network's values as ``chainer.serializers.load_npz`` reads them, and two entries that it
never asks for: ``format`` (:mod:`models.file_format`), and ``description``, a JSON text of what
:func:`describe` tells. Checkpoints hold the same (``network`` in their description), and so does
``plan.json``.
"""

import dataclasses
import json
import os

from lib import constants, files
from lib.checkpoint import directory, file, state
from lib.errors import UserError

import chainer
import numpy as np

import models
from models import file_format

NAME = 'model.npz'  # of what a run leaves
_DESCRIPTION = 'description'
_CLASSIFIER = 'fc'


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that were read.

    Attributes:
        path (str): File they come from.
        arrays (dict of str to numpy.ndarray): Values by the paths that the network gives them.
        description (dict or None): As :func:`describe` makes it; a checkpoint of an earlier version has a
            part of it, and weights of other programs have none.
    """

    path: str
    arrays: dict
    description: dict


def describe(plan, classes, val_batchsize):
    """Tell what somebody has to know who uses the weights, as JSON values.

    Args:
        plan (lib.plan.Plan): The job that trains them.
        classes (list of str or None): Name of each class, where the data tell it.
        val_batchsize (int): Images per step of validation, in whose order losses are added up.

    Returns:
        dict: Network, side of its input in pixels, precision, classes, and mean and standard deviation that
        its images are normalized with, of RGB in [0, 1].
    """
    return {'arch': plan.arch, 'insize': plan.insize, 'dtype': plan.dtype, 'n_class': plan.n_class,
            'classes': classes, 'image_mean': list(constants.IMAGE_MEAN),
            'image_std': list(constants.IMAGE_STD), 'val_batchsize': val_batchsize}


def save(path, model, description=None):
    """Write ``model.npz``, atomically.

    Raises:
        OSError: The file cannot be written; an older file of that name is untouched.
    """
    values = state.model_values(model)
    if description is not None:
        values[_DESCRIPTION] = json.dumps(description)
    with file.archive_at(path) as archive:
        for name in sorted(values):
            file.write_array(archive, name, state.to_host(values[name]))


def read(source, report=lambda line: None):
    """Read weights, without unpickling anything.

    Args:
        source: ``--out`` of a run, whose ``model.npz`` is read or, where there is none yet, the newest valid
            checkpoint; a weights file, also one that ``chainer.serializers.save_npz`` wrote; a checkpoint.
        report (callable): Called with one line for each checkpoint passed over, or if names of the file are
            not today's.

    Returns:
        Weights

    Raises:
        UserError: There are none, or they are damaged, or a newer version's.
    """
    if not os.path.isdir(source):
        if file.is_checkpoint(source):
            return _of_checkpoint(source, *file.read(source))
        return _of_file(source, report)
    path = os.path.join(source, NAME)
    if os.path.exists(path):
        return _of_file(path, report)
    found = directory.newest_valid(source, report)
    if found is None:
        raise UserError(f'{source}: holds neither {NAME} nor a checkpoint; give the --out of a '
                        'run, its weights or a checkpoint')
    return _of_checkpoint(*found)


def _of_checkpoint(path, arrays, description):
    network = description.get('network')
    if network is None:  # written before there was one
        job = description['job']
        network = {name: job.get(name) for name in ('arch', 'insize', 'dtype', 'n_class')}
    if not _is_network(network):
        raise file.DamagedCheckpoint(path, 'its description is none of a network')
    prefix = 'model/'
    return Weights(str(path), {name[len(prefix):]: array for name, array in arrays.items()
                               if name.startswith(prefix)}, network)


def _is_network(description):
    """Whether a description has the form that :func:`describe` gives it, as far as it goes."""
    if not isinstance(description, dict):
        return False
    counts = [description.get(name, 1) for name in ('insize', 'n_class', 'val_batchsize')]
    classes = description.get('classes')
    return (all(type(count) is int and 0 < count < 1 << 24 for count in counts)
            and isinstance(description.get('arch', ''), str)
            and description.get('dtype', 'float32') in ('float32', 'mixed16')
            and (classes is None or isinstance(classes, list) and len(classes) == description.get('n_class')
                 and all(isinstance(name, str) for name in classes)))


def _of_file(path, report):
    try:
        with files.open_regular(path) as opened, np.load(opened, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
        text = arrays.pop(_DESCRIPTION, None)
        description = None if text is None else json.loads(text.item())
        if not (description is None or _is_network(description)):
            raise ValueError('its description is none of a network')
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f'{path}: not a weights file ({file.reason_of(error)}); expected an .npz as a run '
                        f'leaves it in {NAME}, a checkpoint, or the --out of a run') from error
    return Weights(str(path), file_format.to_current(path, arrays, report=report), description)


def load(source, model, skip=None, report=lambda line: None):
    """Put weights into a network, cast to its dtypes (float32 weights into a float16 network).

    Args:
        source: As for :func:`read`.
        model (chainer.Link): Network to fill.
        skip (str or None): Layer that keeps its own values, such as ``fc``.
        report (callable): As for :func:`read`.

    Raises:
        UserError: They cannot be read, or are another network's; the model is unchanged.
    """
    fill(model, read(source, report), skip)


def fill(model, weights, skip=None):
    """Put ``weights`` that were read into a network; see :func:`load`."""
    values, arrays = state.model_values(model), weights.arrays
    if skip is not None:
        kept = {name: state.to_host(value) for name, value in values.items()
                if name.startswith(f'{skip}/')}
        if not kept:
            layers = sorted({name.split('/')[0] for name in values if '/' in name})
            raise UserError(f'--initmodel-skip {skip}: the network has no such layer; choose one of '
                            f'{", ".join(layers)}')
        arrays = {name: array for name, array in arrays.items() if not name.startswith(f'{skip}/')}
        arrays.update(kept)
    found, wanted = (_n_class(values) for values in (arrays, values))
    if None not in (found, wanted) and found != wanted:
        raise UserError(f'{weights.path}: weights for {found} classes, and the network has {wanted}; start '
                        f'its last layer anew with --initmodel-skip {_CLASSIFIER}, or give the data that the '
                        'weights were trained on')
    differences = state.differences(arrays, values, same_dtype=False)
    if differences:
        raise UserError(f'{weights.path}: weights of another network: {differences}; '
                        'choose the --arch and the classes they were trained with')
    chainer.serializers.NpzDeserializer(arrays).load(model)


def _n_class(values):
    bias = values.get(f'{_CLASSIFIER}/b')
    return None if bias is None else np.size(bias)


def complete(weights, arch=None, insize=None):
    """Fill the gaps of a description with what the user says.

    Args:
        weights (Weights): With or without a description.
        arch (str or None): Network, for weights that do not tell it.
        insize (int or None): Side of the input in pixels, in place of the one that the weights tell.

    Returns:
        dict: As :func:`describe` makes it.

    Raises:
        UserError: The network is not known, or contradicts the weights; or its images are too small for it,
            or were normalized in another way than this program does it.
    """
    told = dict(weights.description or {})
    if arch and arch != told.setdefault('arch', arch):
        raise UserError(f'{weights.path}: weights of {told["arch"]}, not of --arch {arch}; leave it out')
    if 'arch' not in told:
        raise UserError(f'{weights.path}: does not say which network it is of; add --arch, one of '
                        f'{", ".join(models.ARCHITECTURES)}, and --insize if it is not the network\'s own')
    if told['arch'] not in models.ARCHITECTURES:
        raise UserError(f'{weights.path}: weights of {told["arch"]}, and this program knows '
                        f'{", ".join(models.ARCHITECTURES)}')
    network = models.ARCHITECTURES[told['arch']]
    standard = {'insize': network.insize, 'dtype': 'float32',
                'n_class': _n_class(weights.arrays), 'classes': None,
                'image_mean': list(constants.IMAGE_MEAN), 'image_std': list(constants.IMAGE_STD)}
    if standard['n_class'] is None:
        raise UserError(f'{weights.path}: weights of another network: {_CLASSIFIER}/b is not in the file')
    for name in ('image_mean', 'image_std'):
        if told.get(name, standard[name]) != standard[name]:
            raise UserError(f'{weights.path}: {name} {told[name]}, and this program normalizes with '
                            f'{standard[name]}; use the program that trained the weights')
    completed = {**standard, **told, **({'insize': insize} if insize else {})}
    if completed['n_class'] != standard['n_class']:
        raise UserError(f'{weights.path}: weights for {standard["n_class"]} classes, and its description '
                        f'tells {completed["n_class"]}; give the file as a run has left it')
    if completed['insize'] < network.min_insize:
        raise UserError(f'{weights.path}: an input of {completed["insize"]} pixels, and {told["arch"]} takes '
                        f'{network.min_insize} or more; give another --insize')
    return completed


def build(description):
    """Make the network of a description, and set Chainer's dtype to its precision."""
    mixed = description['dtype'] == 'mixed16'
    chainer.global_config.dtype = chainer.mixed16 if mixed else np.dtype(description['dtype'])
    return models.build(description['arch'], description['n_class'])
