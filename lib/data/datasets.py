"""Which images there are, and their labels: directories in the ImageNet layout and Chainer's list files.

An :class:`ImageList` holds 1.28 million entries in three blocks of memory (about 40 bytes an entry), so that
rank 0 can read the file system once and broadcast the result. Nothing here opens an image.
"""

import codecs
import hashlib
import os
import stat

from lib import files
from lib.errors import UserError

import numpy as np

IMAGE_SUFFIXES = ('.jpeg', '.jpg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif')
_ARCHIVE_SUFFIXES = ('.tar', '.tar.gz', '.tgz')
_TAR_MAGIC_AT = 257
_SUFFIXES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)


class ImageList:
    """Paths and labels of ``len(self)`` images.

    Args:
        root (str): Directory that relative paths start from.
        paths (iterable of bytes): Paths as the file system spells them, relative to ``root`` or absolute.
        labels (sequence of int): One class index per path.
        class_names (list of str or None): Name of each class, where the data say it.
        n_class (int or None): Number of classes; by default that of ``class_names``, else max label + 1.

    Attributes:
        labels (numpy.ndarray): int32, shape ``(len(self),)``.
        n_class (int): Number of classes of the training data, also in a validation list.
        class_names (list of str or None): As given.
    """

    __slots__ = ('root', 'labels', 'class_names', 'n_class', '_blob', '_offsets')

    def __init__(self, root, paths, labels, class_names=None, n_class=None):
        paths = list(paths)
        self.root = root
        self.labels = np.asarray(labels, dtype=np.int32)
        self.class_names = class_names
        if n_class is None:
            n_class = int(self.labels.max()) + 1 if class_names is None else len(class_names)
        self.n_class = n_class
        self._blob = b''.join(paths)
        self._offsets = np.zeros(len(paths) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, paths), dtype=np.int64, count=len(paths)), out=self._offsets[1:])

    def __len__(self):
        return len(self.labels)

    def path(self, i):
        """Return the path of image ``i`` (0 <= i < len), ready to be opened."""
        if not 0 <= i < len(self):
            raise IndexError(f'image {i} of {len(self)}')
        return os.path.join(self.root, os.fsdecode(self._blob[self._offsets[i]:self._offsets[i + 1]]))

    def fingerprint(self):
        """16 hexadecimal digits that tell these paths and labels, in this order, from others.

        ``root`` does not enter: the same data in another place are the same data.
        """
        digest = hashlib.blake2b(digest_size=8)
        digest.update(self._offsets.astype('<i8').tobytes())
        digest.update(self._blob)
        digest.update(self.labels.astype('<i4').tobytes())
        return digest.hexdigest()


def open_pair(train, val, root='.'):
    """Read the training and the validation data, each a directory or a list file.

    The training data decide the classes. Validation folders are labelled by the training folders' names; a
    validation list may accompany a training directory (its labels then count the sorted class folders), but
    not the other way round, since a list does not say what its classes are called.

    Args:
        train (str): Directory in the ImageNet layout, or list file.
        val (str): The same.
        root (str): What relative paths in list files start from.

    Returns:
        Two :class:`ImageList`, training and validation, with the same ``n_class``.

    Raises:
        UserError: If either cannot be read, or they do not fit together.
    """
    train_list = read_directory(train) if _is_directory(train) else read_list(train, root)
    if train_list.class_names is None:
        _check_every_class_present(train, train_list)
    if not _is_directory(val):
        val_list = read_list(val, root, train_list.n_class)
        val_list.class_names = train_list.class_names
    elif train_list.class_names is not None:
        val_list = read_directory(val, train_list.class_names)
    else:
        raise UserError(f'{val}: a directory cannot validate the list file {train}, which does not name its '
                        'classes; give two directories or two list files')
    return train_list, val_list


def read_directory(path, class_names=None):
    """Read a directory in the ImageNet layout, ``<class>/<image>``.

    Classes and the files of a class come in the order of their names (code points); hidden files and files
    without an image's suffix (:data:`IMAGE_SUFFIXES`, in any case) are ignored.

    Args:
        path (str): The directory.
        class_names (list of str or None): Classes to label by; folders of some may be missing. By default
            the folders themselves.

    Returns:
        ImageList: With paths relative to ``path``.

    Raises:
        UserError: If there is no class folder, a class folder without an image, or a folder that
            ``class_names`` lacks; also if something cannot be read.
    """
    top = os.fsencode(path)
    folders, n_image, archive = [], 0, None
    for entry in _scan(top):
        if not entry.name.startswith(b'.'):
            if entry.is_dir():
                folders.append(entry.name)
            elif _has_image_suffix(entry.name):
                n_image += 1
            elif entry.name.lower().endswith(b'.tar'):
                archive = os.fsdecode(entry.name)
    if not folders and n_image:
        raise UserError(f'{path}: holds images ({n_image}) but no class folders, expected <class>/*.JPEG; '
                        '`python -m lib.prepare` turns flat ImageNet validation images into class folders')
    if not folders and archive:
        raise UserError(f'{path}: holds archives such as {archive} and no class folders; `python -m '
                        'lib.prepare` makes class folders of ImageNet as it is distributed, in tar files')
    if not folders:
        raise UserError(f'{path}: holds no class folders, expected <class>/*.JPEG; give a directory in the '
                        'ImageNet layout or a list file')
    folders.sort()
    names = [os.fsdecode(folder) for folder in folders]
    if class_names is None:
        class_names = names
    label_of = {name: label for label, name in enumerate(class_names)}
    for name in names:
        if name not in label_of:
            raise UserError(f'{path}: class folder {name!r} is none of the {len(class_names)} classes of the '
                            'training data; remove it, or add the class to the training data')

    paths, labels = [], []
    for folder, name in zip(folders, names):
        images = sorted(entry.name for entry in _scan(os.path.join(top, folder)) if _is_image(entry))
        if not images:
            raise UserError(f'{path}: class folder {name!r} holds no image, expected files such as '
                            f'{name}/*.JPEG directly in it; add images or remove the folder')
        prefix = folder + b'/'
        paths += [prefix + image for image in images]
        labels += [label_of[name]] * len(images)
    return ImageList(path, paths, labels, class_names)


def read_list(path, root='.', n_class=None):
    """Read a list file of Chainer's ``LabeledImageDataset``: ``path label`` per line.

    The label is what follows the last white space, so that paths may contain some; a path is spelled byte for
    byte as the file system does. Blank lines are ignored.

    Args:
        path (str): The list file.
        root (str): Directory that relative paths start from.
        n_class (int or None): Number of classes, where the training data have decided it.

    Returns:
        ImageList: In the order of the file, without class names.

    Raises:
        UserError: If the file is empty or not such a list, a label is not an integer in ``[0, n_class)``, or
            an image does not exist.
    """
    paths, labels, numbers = [], [], []
    limit = np.iinfo(np.int32).max if n_class is None else n_class
    for number, line in enumerate(_read_lines(path), 1):
        fields = line.rsplit(None, 1)
        if not fields:
            continue
        if len(fields) != 2:
            raise UserError(f'{path}, line {number}: {os.fsdecode(line)!r} is not a pair, expected "path '
                            'label"; correct the line')
        image, label = fields
        # isdigit of bytes: ASCII digits alone, no sign, no underscore.
        if not label.isdigit():
            raise UserError(f'{path}, line {number}: label {os.fsdecode(label)!r} is not an integer from 0 '
                            'on; correct the line, expected "path label"')
        label = int(label)
        if label >= limit:
            raise UserError(f'{path}, line {number}: label {label} is too large, expected at most {limit - 1}'
                            + (', the last class of the training data' if n_class is not None else '')
                            + '; correct the line')
        paths.append(image)
        labels.append(label)
        numbers.append(number)
    if not paths:
        raise UserError(f'{path}: the list is empty, expected "path label" lines; add images or give another')
    missing = _first_missing(paths, root)
    if missing is not None:
        raise UserError(f'{path}, line {numbers[missing]}: no image file '
                        f'{os.path.join(root, os.fsdecode(paths[missing]))}; correct the list, or set the '
                        'directory that its paths start from with --root')
    return ImageList(root, paths, labels, n_class=n_class)


def _check_every_class_present(path, images):
    present = np.unique(images.labels)
    if len(present) < images.n_class:
        gap = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise UserError(f'{path}: no image has label {gap}, though labels reach {images.n_class - 1}; number '
                        'the classes of the training data from 0 without gaps')


def _is_directory(path):
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f'{path}: no such directory or list file; correct the path') from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f'{path}: neither a directory nor a list file; give a directory with class folders '
                        'or a file of "path label" lines')
    return stat.S_ISDIR(mode)


def _scan(directory):
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise _unreadable(os.fsdecode(directory), error) from None


def _read_lines(path):
    try:
        with files.open_regular(path) as file:
            data = file.read(_TAR_MAGIC_AT + 512)
            if not _is_archive(path, data):
                data += file.read()
    except OSError as error:
        raise _unreadable(path, error) from None
    if _is_archive(path, data):
        raise UserError(f'{path}: an archive; `python -m lib.prepare` makes class folders of ImageNet as it '
                        'is distributed, in tar files')
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8):]
    if b'\0' in data:  # UTF-16 has them too
        line = data.count(b'\n', 0, data.index(b'\0')) + 1
        raise UserError(f'{path}, line {line}: not text, expected "path label" lines; give a list file in '
                        'UTF-8')
    return [line.strip() for line in data.split(b'\n')]


def _is_archive(path, start):
    return start[_TAR_MAGIC_AT:].startswith(b'ustar') or path.lower().endswith(_ARCHIVE_SUFFIXES)


def _unreadable(path, error):
    return UserError(f'{path}: cannot be read ({error.strerror}); allow reading it, or correct the path')


def _has_image_suffix(name):
    return name.lower().endswith(_SUFFIXES)


def _is_image(entry):
    # Links are not followed: a stat for each of a million takes minutes on a parallel file system.
    return (_has_image_suffix(entry.name) and not entry.name.startswith(b'.')
            and not entry.is_dir(follow_symlinks=False))


def _first_missing(paths, root):
    """Index of the first path that is no file, or None; lists each directory once, a stat each is slow."""
    root = os.fsencode(root)
    listings = {}
    for i, path in enumerate(paths):
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = _file_names(os.path.join(root, folder))
        # A file system that folds case or normalizes names may hold the file under another spelling.
        if name not in listings[folder] and not os.path.isfile(os.path.join(root, path)):
            return i
    return None


def _file_names(directory):
    try:
        with os.scandir(directory or b'.') as entries:
            return {entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)}
    except OSError:
        return frozenset()
