"""ImageNet as people have it: where each image is, packed or unpacked, and which class it belongs to.

A split (training or validation) may be any of these, in ``SRC`` itself or where Kaggle's archive puts it
(``SRC/ILSVRC/Data/CLS-LOC``):

* a folder ``train``, ``val`` or ``validation`` (or ``ILSVRC2012_img_train``, ``ILSVRC2012_img_val``) of
  class folders, of ``nNNNNNNNN.tar`` files as distributed, or of both, as an interrupted unpacking leaves
  them: a tar file wins over the folder of the same class;
* ``ILSVRC2012_img_train.tar``, which contains the ``nNNNNNNNN.tar`` files, or ``ILSVRC2012_img_val.tar``;
* for validation, images in no class folder, whose classes a file of labels tells (:func:`read_val_labels`);
* for training, or for a set that is not split, class folders or ``nNNNNNNNN.tar`` files in ``SRC`` itself.

Nothing is unpacked: an image in an uncompressed tar file, nested or not, is a range of the outermost file's
bytes.
"""

import os
import re
from typing import NamedTuple, Optional

from lib import files
from lib.data.datasets import IMAGE_SUFFIXES
from lib.data.decoding import MAX_BYTES
from lib.errors import UserError
from lib.prepare.archive import DamagedArchive, members
from lib.prepare.image import UnreadableImage
from lib.prepare.labels import CONTROL, check_class_names, find_val_labels, read_val_labels

TRAIN_NAMES = ('train', 'ILSVRC2012_img_train', 'ILSVRC2012_img_train.tar')
VAL_NAMES = ('val', 'validation', 'ILSVRC2012_img_val', 'ILSVRC2012_img_val.tar')
# No labels were published for these: never taken for a class.
TEST_NAMES = ('test', 'ILSVRC2012_img_test', 'ILSVRC2012_img_test_v10102019')
KAGGLE_FOLDER = os.path.join('ILSVRC', 'Data', 'CLS-LOC')

_CLASS_TAR = re.compile(r'(n\d{8})\.tar')


class Location(NamedTuple):
    """Where the bytes of one image are."""

    container: str           # directory, or tar file
    offset: int = 0          # in the tar file
    size: Optional[int] = None  # None: a file of its own in the directory


class Split(NamedTuple):
    """The images of one split."""

    origin: str              # file or directory that holds them
    classes: dict            # class name -> {file name: Location}


def read_image(location, name):
    """Bytes of the image file ``name`` at ``location``.

    Raises:
        OSError: If they cannot be read, or it is no regular file.
        UnreadableImage: If it is longer than an image is, or its name cannot stand in a list file.
    """
    container, offset, size = location
    if not can_be_listed(name):
        raise UnreadableImage('control character in its name')
    with files.open_regular(os.path.join(container, name) if size is None else container) as file:
        if size is None:
            size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise UnreadableImage(f'{size} bytes, more than {MAX_BYTES}')
        file.seek(offset)
        return file.read(size)


def can_be_listed(name):
    """Whether a file name leaves a line of a list file whole: a line end in it would make one of its own."""
    return not CONTROL.search(name)


def find_images(source, val_labels=None):
    """Find the images below ``source`` and their classes, without opening any.

    Args:
        source (str): Directory in one of the forms above.
        val_labels (str or None): File of labels for validation images in no class folder; by default one
            that :func:`find_val_labels` finds.

    Returns:
        dict: :class:`Split` by ``'train'`` and ``'val'``, or by ``''`` for a set that is not split.

    Raises:
        UserError: If there are no images, an archive is damaged, images have no class, or a class cannot be
            a folder.
    """
    if not os.path.isdir(source):
        reason = 'not a directory' if os.path.exists(source) else 'no such directory'
        raise UserError(f'{source}: {reason}; give the directory of ImageNet, unpacked or in tar files')
    kaggle = os.path.join(source, KAGGLE_FOLDER)
    top = kaggle if os.path.isdir(kaggle) else source
    train, val = _first_present(top, TRAIN_NAMES), _first_present(top, VAL_NAMES)

    splits = {}
    if train is not None:
        splits['train'] = Split(train, _in_classes(train, *_scan(train)))
    else:
        classes, flat = _scan_folder(top, ignore=TRAIN_NAMES + VAL_NAMES + TEST_NAMES, empty_allowed=True)
        if classes:
            splits['train' if val is not None else ''] = Split(top, _in_classes(top, classes, flat))
        elif val is None:
            found = f'{len(flat)} images in no class folder' if flat else 'no images'
            raise UserError(f'{source}: holds {found}; expected train and val, class folders, or '
                            'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar')
    if val is not None:
        classes, flat = _scan(val)
        if flat:
            known = splits['train'].classes if 'train' in splits else None
            labels = val_labels or find_val_labels(source, top, val)
            for name, class_name in read_val_labels(labels, list(flat), known).items():
                classes.setdefault(class_name, {})[name] = flat[name]
        splits['val'] = Split(val, _in_classes(val, classes, {}))
    return splits


def _first_present(top, names):
    for name in names:
        path = os.path.join(top, name)
        # An empty folder is what a failed unpacking leaves beside the archive. Whatever else has the name is
        # looked at later, and not taken for a split that is missing.
        if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
            return path
    return None


def _in_classes(path, classes, flat):
    if flat:
        raise UserError(f'{path}: {len(flat)} images lie in no class folder, the first {min(flat)}; put each '
                        'into the folder of its class')
    if not classes:
        raise UserError(f'{path}: holds no images; expected class folders or tar files of ImageNet')
    check_class_names(path, classes)
    return classes


def _scan(path):
    return _scan_folder(path) if os.path.isdir(path) else _scan_tar(path)


def _scan_folder(path, ignore=(), empty_allowed=False):
    """Images of class folders and class tar files in ``path``, and those directly in it."""
    classes, flat, tars = {}, {}, {}
    for entry in _entries(path):
        class_tar = _CLASS_TAR.fullmatch(entry.name)
        if entry.name in ignore:
            continue
        if entry.is_dir():
            location = Location(entry.path)
            images = {file.name: location for file in _entries(entry.path) if _is_image(file.name)}
            if images:
                classes[entry.name] = images
            elif not empty_allowed:
                classes.setdefault(entry.name, {})
        elif class_tar:
            tars[class_tar.group(1)] = entry.path
        elif _is_image(entry.name):
            flat[entry.name] = Location(path)
    for class_name, tar in tars.items():
        inner_classes, images = _scan_tar(tar)
        classes[class_name] = images
        if inner_classes:
            raise UserError(f'{tar}: holds tar files where the images of one class were expected; give the '
                            'archives as distributed')
    for class_name, images in classes.items():
        if not images:
            raise UserError(f'{os.path.join(path, class_name)}: class folder without images directly in it; '
                            'add them or remove the folder')
    return classes, flat


def _scan_tar(path):
    """Images of the class tar files in the tar file ``path``, and those directly in it."""
    classes, flat = {}, {}
    try:
        with files.open_regular(path) as file:
            end = os.fstat(file.fileno()).st_size
            for name, offset, size in list(members(file, 0, end)):
                class_tar = _CLASS_TAR.fullmatch(name)
                if class_tar:
                    inner = members(file, offset, offset + size)
                    classes[class_tar.group(1)] = {
                        image: Location(path, *place) for image, *place in inner if _is_image(image)}
                elif _is_image(name):
                    flat[name] = Location(path, offset, size)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); expected a tar file of ImageNet that '
                        'you may read') from None
    except DamagedArchive as error:
        raise UserError(f'{path}: not a whole, uncompressed tar file ({error}); download or copy it '
                        'again') from None
    empty = next((class_name for class_name, images in classes.items() if not images), None)
    if empty is not None or not (classes or flat):
        raise UserError(f'{path}: holds no images' + (f' of class {empty}' if empty else '')
                        + '; download or copy it again')
    return classes, flat


def _entries(path):
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if not entry.name.startswith('.')]
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); check that you may read it') from None


def _is_image(name):
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
