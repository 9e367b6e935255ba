"""Convert weights between this program and torchvision.

    python -m lib.convert result resnet50.safetensors      # or .pth, where torch is installed
    python -m lib.convert resnet50.pth model.npz

``.safetensors`` and ``.pth`` hold what ``torchvision.models.resnet50().load_state_dict`` takes, in float32.
What the network is of (:func:`lib.checkpoint.weights.describe`) travels in safetensors' metadata; a ``.pth``
has no place for it.
"""

import argparse
import importlib
import json
import os
import sys

from lib import errors, files
from lib.checkpoint import file, state, weights
from lib.errors import UserError

import numpy as np

from models import file_format
from models.torchvision_names import torchvision_names

_ARCHITECTURES = ('resnet50', 'resnet101', 'resnet152')
_DESCRIPTION = 'description'


def main(argv=None):
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        convert(args.source, args.destination, args.arch, errors.say_line)
    except UserError as error:
        errors.say_line(f'lib.convert: {error}')
        return errors.EXIT_USER_ERROR
    return errors.EXIT_FINISHED


def _parser():
    parser = argparse.ArgumentParser(
        prog='python -m lib.convert', allow_abbrev=False,
        description='Convert weights between this program and torchvision (ResNet-50, -101, -152).')
    parser.add_argument('source', metavar='FROM',
                        help='--out of a run, its model.npz, a checkpoint, or a file of torchvision')
    parser.add_argument('destination', metavar='TO', help='.npz, .pth or .safetensors; replaced if it exists')
    parser.add_argument('--arch', help='network, if the weights do not tell it')
    return parser


def convert(source, destination, arch=None, report=lambda line: None):
    """Write the weights in ``source`` to ``destination``, in the format that its suffix says.

    Args:
        source (str): As for :func:`lib.checkpoint.weights.read`, or a file of torchvision's names.
        destination (str): File with the suffix ``.npz``, ``.pth`` or ``.safetensors``.
        arch (str or None): Network, for weights that do not tell it.
        report (callable): As for :func:`lib.checkpoint.weights.read`.

    Raises:
        UserError: The source cannot be read or is none of the networks; the destination cannot be written.
    """
    write = _WRITERS.get(_suffix(destination))
    if write is None:
        raise UserError(f'{destination}: does not say which format; expected a name that ends in '
                        f'{", ".join(_WRITERS)}')
    read = _READERS.get(_suffix(source))
    if read is None:
        found = weights.read(source, report)
    else:
        found = from_torchvision(source, *read(source))
    description = weights.complete(found, arch)
    model = weights.build(description)
    weights.fill(model, found)
    try:
        write(destination, model, description)
    except OSError as error:
        raise UserError(f'{destination}: cannot be written ({error.strerror}); make room, or choose another '
                        'directory') from None


def from_torchvision(path, arrays, description=None):
    """Give torchvision's values the names that they have here.

    Args:
        path: File, for messages.
        arrays (dict of str to numpy.ndarray): Values by torchvision's names. The counts of minibatches
            (``num_batches_tracked``) may be missing, as in its older files.
        description (dict or None): Travels on.

    Returns:
        lib.checkpoint.weights.Weights: With the architecture told.

    Raises:
        UserError: They are of none of the networks.
    """
    for arch in _ARCHITECTURES:
        names = torchvision_names(arch)
        if set(arrays) <= set(names.values()) and all(
                theirs in arrays for theirs in names.values() if not theirs.endswith('.num_batches_tracked')):
            here = {ours: arrays.get(theirs, np.array(0)) for ours, theirs in names.items()}
            here['format'] = np.array(file_format.FORMAT)
            return weights.Weights(str(path), here, {**(description or {}), 'arch': arch})
    raise UserError(f'{path}: not torchvision\'s {", ".join(_ARCHITECTURES)}, whose values have other names; '
                    'expected the state_dict of one of them')


def to_torchvision(model, arch):
    """Give a network's values the names that they have in torchvision.

    Returns:
        dict of str to numpy.ndarray: float32, and int64 for the counts of minibatches.

    Raises:
        UserError: torchvision has no such network.
    """
    if arch not in _ARCHITECTURES:
        raise UserError(f'weights of {arch}, which torchvision does not have; expected those of '
                        f'{", ".join(_ARCHITECTURES)}')
    values = state.model_values(model)
    arrays = {theirs: state.to_host(values[ours]) for ours, theirs in torchvision_names(arch).items()}
    return {name: array.astype(np.float32 if array.ndim else np.int64) for name, array in arrays.items()}


def _read_safetensors(path):
    safetensors = _package('safetensors')
    try:
        files.open_regular(path).close()
        with safetensors.safe_open(path, framework='numpy') as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)
            metadata = opened.metadata() or {}
        return arrays, json.loads(metadata.get(_DESCRIPTION, 'null'))
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f'{path}: not read as safetensors ({file.reason_of(error)}); expected float32 or '
                        'float16 values') from error


def _write_safetensors(path, model, description):
    save = _package('safetensors.numpy').save
    arrays = to_torchvision(model, description['arch'])
    content = save(arrays, {'format': 'pt', _DESCRIPTION: json.dumps(description)})
    with files.replacing(path) as opened:
        opened.write(content)


def _read_torch(path):
    torch = _package('torch')
    try:
        with files.open_regular(path) as opened:
            values = torch.load(opened, map_location='cpu', weights_only=True)  # no other code is unpickled
        return {name: (value.float() if value.is_floating_point() else value).numpy()
                for name, value in values.items()}, None
    except Exception as error:
        raise UserError(f'{path}: not a state_dict as torch.save writes it '
                        f'({file.reason_of(error)})') from error


def _write_torch(path, model, description):
    torch = _package('torch')
    values = {name: torch.from_numpy(np.array(array))
              for name, array in to_torchvision(model, description['arch']).items()}
    with files.replacing(path) as opened:
        torch.save(values, opened)


def _package(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'{error.name or name} is not installed; install the extra "convert"') from None


def _suffix(path):
    return os.path.splitext(path)[1].lower()


_READERS = {'.safetensors': _read_safetensors, '.pth': _read_torch}
_WRITERS = {'.npz': weights.save, '.pth': _write_torch, '.safetensors': _write_safetensors}


if __name__ == '__main__':
    sys.exit(main())
