"""Labels of validation images that lie in no class folders, from the files published with ImageNet."""

import glob
import os
import re

from lib.errors import UserError

# Looked for in this order: files that name classes before files that number them.
LABEL_FILES = ('LOC_val_solution.csv', 'val_synsets.txt', 'imagenet_2012_validation_synset_labels.txt',
               'synset_labels.txt', 'val.txt', 'ILSVRC*_validation_ground_truth.txt')
ID_MAP = 'map_clsloc.txt'

# Files that number images or classes exist in several orders; these images give a wrong one away.
_KNOWN_CLASSES = {
    'ILSVRC2012_val_00000001': 'n01751748',
    'ILSVRC2012_val_00000002': 'n09193705',
    'ILSVRC2012_val_00000003': 'n02105855',
}

_NUMBERED = re.compile(r'.*_val_(\d{8})')

CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')


def find_val_labels(source, top, val):
    """Path of the first of :data:`LABEL_FILES` in ``source``, ``top``, ``val`` or a development kit.

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
    raise UserError(f'{val}: images in no class folder, and no labels ({", ".join(LABEL_FILES)}) '
                    f'in {source} or a *devkit* folder in it; name one with --val-labels')


def read_val_labels(path, names, train_classes=None):
    """Classes of validation images that lie in no class folder.

    The file has one of these forms, told apart by what it holds:

    * ``image class``, further columns ignored, separated by white space or commas, with or without the header
      ``ImageId,PredictionString``: Kaggle's ``LOC_val_solution.csv``;
    * ``image label``: a list file of Chainer or Caffe, whose labels count the sorted training classes from 0;
    * one class per line, for the images in the order of their numbers;
    * one ILSVRC id per line, in the same order: ``ILSVRC2012_validation_ground_truth.txt``. Beside it must
      lie ``map_clsloc.txt`` with lines ``class id``.

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
    rows = [line.replace(',', ' ').split() for line in _read_text(path).splitlines()]
    rows = [row for row in rows if row and row[0] != 'ImageId']
    if not rows:
        raise UserError(f'{path}: holds no labels; give the classes of the validation images')
    if all(len(row) == 1 for row in rows):
        classes = _by_number(path, [row[0] for row in rows], names)
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


def _by_number(path, values, names):
    """Gives line i to the image whose name says that it is number i, from 1."""
    if all(value.isdigit() for value in values):
        class_of = _read_id_map(path)
        missing = next((value for value in values if int(value) not in class_of), None)
        if missing is not None:
            raise UserError(f'{path}: id {missing} is not in {ID_MAP} beside it; give the map that belongs '
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


def _read_id_map(labels):
    path = os.path.join(os.path.dirname(labels), ID_MAP)
    if not os.path.isfile(path):
        raise UserError(f'{labels}: holds ILSVRC ids, and {path} with lines "class id" is missing; make it '
                        'as --help says, or give a file that names classes, such as LOC_val_solution.csv, '
                        'with --val-labels')
    class_of = {}
    for line in _read_text(path).splitlines():
        row = line.split()
        if row:
            if len(row) < 2 or not row[1].isdigit():
                raise UserError(f'{path}: {line!r} is not a line "class id", such as "n02119789 1 kit_fox"')
            class_of[int(row[1])] = row[0]
    return class_of


def _check_known(path, classes, train_classes):
    by_stem = {_stem(name): class_name for name, class_name in classes.items()}
    for stem, expected in _KNOWN_CLASSES.items():
        found = by_stem.get(stem, expected)
        if found != expected and expected in (train_classes or ()):
            raise UserError(f'{path}: makes {stem} a {found}, but it is a {expected}; give the labels of '
                            'ILSVRC 2012, in their own order, with --val-labels')


def _read_text(path):
    try:
        with open(path, encoding='utf-8-sig') as file:
            return file.read()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); give a file of labels') from None
    except UnicodeDecodeError:
        raise UserError(f'{path}: not a text file; give a file of labels, see --help') from None


def _stem(name):
    return os.path.splitext(os.path.basename(name))[0]


def check_class_names(origin, names):
    """A class becomes a folder of the copy, and must not become one anywhere else."""
    for name in names:
        if name in ('.', '..') or '/' in name or '\\' in name or CONTROL.search(name):
            raise UserError(f'{origin}: {name!r} cannot be the name of a class, which names a folder; give '
                            'it one without separators and control characters, other than . and ..')
