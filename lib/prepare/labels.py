"""Labels of validation images that lie in no class folders, from the files published with ImageNet."""

import glob
import io
import os
import re

from lib import files
from lib.errors import UserError
from lib.prepare import archive, matlab

# Looked for in this order: files that name classes before files that number them.
LABEL_FILES = ('LOC_val_solution.csv', 'val_synsets.txt', 'imagenet_2012_validation_synset_labels.txt',
               'synset_labels.txt', 'val.txt', 'ILSVRC*_validation_ground_truth.txt')
KIT_ARCHIVES = '*devkit*.t*gz'  # ILSVRC2012_devkit_t12.tar.gz
ID_MAPS = ('map_clsloc.txt', 'meta.mat')

# Files that number images or classes exist in several orders; these images give a wrong one away.
_KNOWN_CLASSES = {
    'ILSVRC2012_val_00000001': 'n01751748',
    'ILSVRC2012_val_00000002': 'n09193705',
    'ILSVRC2012_val_00000003': 'n02105855',
}

_NUMBERED = re.compile(r'.*_val_(\d{8})')
_ARCHIVE = re.compile(r'.*\.(tar|tar\.gz|tgz)', re.IGNORECASE)
_MAX_BYTES = 1 << 26

CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')


def find_val_labels(source, top, val):
    """Find the first of :data:`LABEL_FILES` in ``source``, ``top``, ``val`` or a development kit.

    A kit may still be packed: then it is the path of the archive.

    Raises:
        UserError: If there is none.
    """
    folders = [glob.escape(folder) for folder in (source, top, val)]
    folders += [os.path.join(folders[0], '*devkit*'), os.path.join(folders[0], '*devkit*', 'data')]
    for pattern in LABEL_FILES:
        for folder in folders:
            found = sorted(glob.glob(os.path.join(folder, pattern)))
            if found:
                return found[0]
    kits = sorted(glob.glob(os.path.join(folders[0], KIT_ARCHIVES)))
    if kits:
        return kits[0]
    raise UserError(f'{val}: images in no class folder, and no labels ({", ".join(LABEL_FILES)}) '
                    f'in {source}, a *devkit* folder or {KIT_ARCHIVES} in it; name one with --val-labels')


def read_val_labels(path, names, train_classes=None):
    """Return the classes of validation images that lie in no class folder.

    The file has one of these forms, told apart by what it holds:

    * ``image class``, further columns ignored, separated by white space or commas, with or without the header
      ``ImageId,PredictionString``: Kaggle's ``LOC_val_solution.csv``;
    * ``image label``: a list file of Chainer or Caffe, whose labels count the sorted training classes from 0;
    * one class per line, for the images in the order of their numbers;
    * one ILSVRC id per line, in the same order: ``ILSVRC2012_validation_ground_truth.txt``. Beside it must
      lie ``map_clsloc.txt`` with lines ``class id``, or ``meta.mat``;
    * the development kit as distributed, ``ILSVRC2012_devkit_t12.tar.gz``, which holds those two.

    Args:
        path (str): The file.
        names (list of str): File names of the images.
        train_classes (container of str or None): Class names of the training set, if there is one.

    Returns:
        dict: Class name by file name, for all ``names``.

    Raises:
        UserError: If the file has another form, does not tell every image's class, or names one that cannot
            be a folder.
    """
    text, read_beside = _open(path)
    rows = [line.replace(',', ' ').split() for line in text.splitlines()]
    rows = [row for row in rows if row and row[0] != 'ImageId']
    if not rows:
        raise UserError(f'{path}: holds no labels; give the classes of the validation images')
    if all(len(row) == 1 for row in rows):
        classes = _by_number(path, [row[0] for row in rows], names, read_beside)
    elif all(len(row) > 1 for row in rows):
        by_stem = {_stem(row[0]): row[1] for row in rows}
        if all(value.isdigit() for value in by_stem.values()):
            by_stem = _name_labels(path, by_stem, train_classes)
        classes = {name: by_stem.get(_stem(name)) for name in names}
    else:
        raise UserError(f'{path}: some lines hold one word and some more; expected one class, or image and '
                        'class, on every line')
    unknown = [name for name in names if classes[name] is None]
    if unknown:
        raise UserError(f'{path}: no class for {len(unknown)} of {len(names)} images, the first is '
                        f'{min(unknown)}; give the labels of these images with --val-labels')
    check_class_names(path, classes.values())
    _check_known(path, classes, train_classes)
    return classes


def _by_number(path, values, names, read_beside):
    """Gives line i to the image whose name says that it is number i, from 1."""
    if all(value.isdigit() for value in values):
        origin, class_of = _read_id_map(path, read_beside)
        missing = next((value for value in values if int(value) not in class_of), None)
        if missing is not None:
            raise UserError(f'{path}: id {missing} is not in {origin} beside it; give the map that belongs '
                            'to these labels')
        values = [class_of[int(value)] for value in values]
    classes = {}
    for name in names:
        match = _NUMBERED.fullmatch(_stem(name))
        if match is None:
            raise UserError(f'{path}: one class per line needs image names like ILSVRC2012_val_00000001.JPEG'
                            f', not {name}; give a file with lines "image class"')
        number = int(match.group(1))
        classes[name] = values[number - 1] if 1 <= number <= len(values) else None
    return classes


def _name_labels(path, label_of, train_classes):
    if train_classes is None:
        raise UserError(f'{path}: its labels count the classes of the training set, which is missing; add '
                        'the training set or give a file that names the classes')
    names = sorted(train_classes, key=os.fsencode)
    largest = max(int(label) for label in label_of.values())
    if largest >= len(names):
        raise UserError(f'{path}: label {largest}, but the labels of {len(names)} training classes end at '
                        f'{len(names) - 1}; give a file that names the classes')
    return {image: names[int(label)] for image, label in label_of.items()}


def _read_id_map(labels, read_beside):
    """``(file, class name by ILSVRC id)`` from the first of :data:`ID_MAPS` beside the labels."""
    for name in ID_MAPS:
        data = read_beside(name)
        if data is not None:
            path = os.path.join(os.path.dirname(labels), name)
            return name, _parse_id_map(path, data) if name.endswith('.txt') else _read_table(path, data)
    raise UserError(f'{labels}: holds ILSVRC ids, and neither {ID_MAPS[0]} (lines "class id") nor '
                    f'{ID_MAPS[1]} is beside it; take it from the development kit, or give a file that names '
                    'classes, such as LOC_val_solution.csv, with --val-labels')


def _parse_id_map(path, data):
    class_of = {}
    for line in _text(path, data).splitlines():
        row = line.split()
        if row:
            if len(row) < 2 or not row[1].isdigit():
                raise UserError(f'{path}: {line!r} is not a line "class id", such as "n02119789 1 kit_fox"')
            class_of[int(row[1])] = row[0]
    return class_of


def _read_table(path, data):
    try:
        return matlab.read_class_of_id(data)
    except matlab.UnreadableTable as error:
        raise UserError(f'{path}: not the table of classes that the development kit has there ({error}); '
                        'download or copy it again') from None


def _check_known(path, classes, train_classes):
    by_stem = {_stem(name): class_name for name, class_name in classes.items()}
    for stem, expected in _KNOWN_CLASSES.items():
        found = by_stem.get(stem, expected)
        if found != expected and expected in (train_classes or ()):
            raise UserError(f'{path}: makes {stem} a {found}, but it is a {expected}; give the labels of '
                            'ILSVRC 2012, in their own order, with --val-labels')


def _open(path):
    """The text of a file of labels, and a function that gives the bytes of a file beside it, or None."""
    if _ARCHIVE.fullmatch(path):
        kit = _unpack_kit(path)
        truth = next((name for name in sorted(kit) if name.endswith('_validation_ground_truth.txt')), None)
        if truth is None:
            raise UserError(f'{path}: holds no ILSVRC*_validation_ground_truth.txt; give the development kit '
                            'of ILSVRC 2012, tasks 1 and 2')
        return _text(f'{path}: {truth}', kit[truth]), kit.get

    def read_beside(name):
        beside = os.path.join(os.path.dirname(path), name)
        return _read(beside) if os.path.isfile(beside) else None

    return _text(path, _read(path)), read_beside


def _unpack_kit(path):
    """Bytes of the files in an archive, by their base names."""
    try:
        data = archive.unpacked(_read(path))
        return {name: data[offset:offset + size]
                for name, offset, size in archive.members(io.BytesIO(data), 0, len(data))}
    except archive.DamagedArchive as error:
        raise UserError(f'{path}: not a whole tar file ({error}); download or copy it again') from None


def _read(path):
    try:
        with files.open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); give a file of labels') from None
    if len(data) > _MAX_BYTES:
        raise UserError(f'{path}: more than {_MAX_BYTES >> 20} MiB; give a file of labels')
    return data


def _text(path, data):
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError:
        raise UserError(f'{path}: not a text file; give a file of labels, see --help') from None


def _stem(name):
    return os.path.splitext(os.path.basename(name))[0]


def check_class_names(origin, names):
    """Return a class becomes a folder of the copy, and must not become one anywhere else."""
    for name in names:
        if (name in ('', '.', '..') or name != name.strip() or '/' in name or '\\' in name
                or CONTROL.search(name)):
            raise UserError(f'{origin}: {name!r} cannot be the name of a class, which names a folder; give '
                            'it one without separators, control characters and space at its ends, other than '
                            '. and ..')
