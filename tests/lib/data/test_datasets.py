import os
import pathlib
import pickle
import subprocess
import sys

from lib import files
from lib.data.datasets import ImageList, open_pair, read_directory, read_list
from lib.errors import UserError

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def error_of(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert '\n' not in message
    return message


# ---- ImageList


def test_paths_are_joined_with_the_root_unless_absolute():
    images = ImageList('/data', [b'a/1.JPEG', b'/elsewhere/2.JPEG', 'ü x.png'.encode()], [1, 0, 1])
    assert [images.path(i) for i in range(3)] == ['/data/a/1.JPEG', '/elsewhere/2.JPEG', '/data/ü x.png']


def test_index_out_of_range_is_refused():
    images = ImageList('.', [b'a', b'b'], [0, 1])
    for i in (-1, 2):
        with pytest.raises(IndexError):
            images.path(i)


def test_numpy_integers_index():
    assert ImageList('/r', [b'a', b'b'], [0, 1]).path(np.int64(1)) == '/r/b'


def test_labels_are_int32_and_decide_the_number_of_classes():
    images = ImageList('.', [b'a', b'b', b'c'], [0, 4, 2])
    assert images.labels.dtype == np.int32 and images.labels.tolist() == [0, 4, 2]
    assert images.n_class == 5 and images.class_names is None


def test_pickle_keeps_everything():
    images = ImageList('/r', [b'a/1.png', b'b/22.png'], [0, 1], ['a', 'b'])
    again = pickle.loads(pickle.dumps(images))
    assert [again.path(i) for i in range(2)] == ['/r/a/1.png', '/r/b/22.png']
    assert again.labels.tolist() == [0, 1] and again.class_names == ['a', 'b'] and again.n_class == 2
    assert again.fingerprint() == images.fingerprint()


def test_an_entry_costs_its_path_and_12_bytes():
    n = 100000
    images = ImageList('/r', [b'n01440764/n01440764_%06d.JPEG' % i for i in range(n)], np.arange(n) % 1000)
    assert len(pickle.dumps(images, protocol=4)) < n * (31 + 12) + 1000


def test_fingerprint_does_not_depend_on_the_root():
    paths, labels = [b'a', b'b'], [0, 1]
    assert ImageList('/x', paths, labels).fingerprint() == ImageList('/y', paths, labels).fingerprint()


@pytest.mark.parametrize('paths, labels', [
    ([b'a', b'c'], [0, 1]), ([b'a', b'b'], [1, 0]), ([b'b', b'a'], [0, 1]), ([b'ab', b''], [0, 1]),
    ([b'a'], [0]),
])
def test_fingerprint_tells_other_data(paths, labels):
    assert ImageList('.', paths, labels).fingerprint() != ImageList('.', [b'a', b'b'], [0, 1]).fingerprint()


# ---- read_directory


def test_directory_labels_follow_sorted_class_names(tmp_path):
    root = make(tmp_path, 'n02/b.JPEG', 'n02/a.JPEG', 'n10/c.JPEG', 'n01/d.JPEG')
    images = read_directory(root)
    assert images.class_names == ['n01', 'n02', 'n10']
    assert [images.path(i) for i in range(4)] == [os.path.join(root, name) for name in
                                                 ('n01/d.JPEG', 'n02/a.JPEG', 'n02/b.JPEG', 'n10/c.JPEG')]
    assert images.labels.tolist() == [0, 1, 1, 2] and images.n_class == 3


def test_directory_takes_images_by_suffix_in_any_case_and_nothing_else(tmp_path):
    good = ['1.jpeg', '2.JPG', '3.Png', '4.bmp', '5.webp', '6.tif', '7.TIFF', '8.gif']
    root = make(tmp_path, *(f'a/{name}' for name in good), 'a/.hidden.jpg', 'a/notes.txt', 'a/jpg',
                'a/x.jpg.part', 'a/folder.jpg/1.jpg', '.cache/1.jpg', 'README.jpg')
    images = read_directory(root)
    assert [os.path.basename(images.path(i)) for i in range(len(images))] == good


def test_directory_follows_links_to_images_and_classes(tmp_path):
    make(tmp_path, 'store/x/1.jpg', 'data/b/2.jpg')
    (tmp_path / 'data/a').symlink_to(tmp_path / 'store/x')
    (tmp_path / 'data/b/3.jpg').symlink_to(tmp_path / 'store/x/1.jpg')
    images = read_directory(str(tmp_path / 'data'))
    assert images.labels.tolist() == [0, 1, 1]


def test_one_image_is_enough(tmp_path):
    images = read_directory(make(tmp_path, 'only/1.jpg'))
    assert len(images) == 1 and images.n_class == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='other file systems refuse such names')
def test_file_names_need_not_be_utf8(tmp_path):
    make(tmp_path, 'a/1.jpg')
    os.rename(tmp_path / 'a/1.jpg', os.fsencode(tmp_path) + b'/a/\xff.jpg')
    images = read_directory(str(tmp_path))
    assert os.path.exists(images.path(0))


def test_flat_directory_is_refused_and_the_remedy_named(tmp_path):
    root = make(tmp_path, 'ILSVRC2012_val_00000001.JPEG', 'ILSVRC2012_val_00000002.JPEG')
    message = error_of(read_directory, root)
    assert root in message and 'python -m lib.prepare' in message


def test_directory_without_anything_is_refused(tmp_path):
    assert 'no class folders' in error_of(read_directory, str(tmp_path))


def test_empty_class_is_named(tmp_path):
    root = make(tmp_path, 'a/1.jpg', 'b/notes.txt', 'c/images/1.jpg')
    assert "'b'" in error_of(read_directory, root)


def test_unreadable_class_folder_is_named(tmp_path, monkeypatch):
    root = make(tmp_path, 'a/1.jpg', 'b/1.jpg')
    scandir = os.scandir

    def refuse(path):
        if os.fsencode(path).endswith(b'/b'):
            raise PermissionError(13, 'Permission denied')
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    message = error_of(read_directory, root)
    assert os.path.join(root, 'b') in message and 'Permission denied' in message


# ---- read_list


def test_list_paths_may_contain_spaces_and_start_from_root(tmp_path):
    root = make(tmp_path / 'data', 'a/my cat 1.jpg', 'b/2.jpg')
    path = write(tmp_path / 'list.txt', f'a/my cat 1.jpg 1\n\n   \n{root}/b/2.jpg\t 0 \r\n')
    images = read_list(path, root)
    assert [images.path(i) for i in range(2)] == [f'{root}/a/my cat 1.jpg', f'{root}/b/2.jpg']
    assert images.labels.tolist() == [1, 0] and images.n_class == 2 and images.class_names is None


def test_list_paths_start_from_the_working_directory_by_default(tmp_path, monkeypatch):
    make(tmp_path, '1.jpg')
    monkeypatch.chdir(tmp_path)
    assert len(read_list(write(tmp_path / 'list.txt', '1.jpg 0'))) == 1


def test_list_may_begin_with_a_byte_order_mark_and_hold_utf8(tmp_path):
    root = make(tmp_path, 'é.jpg')
    images = read_list(write(tmp_path / 'list.txt', b'\xef\xbb\xbf' + 'é.jpg 0\n'.encode()), root)
    assert os.path.exists(images.path(0))


@pytest.mark.parametrize('line, shown', [
    ('1.jpg -1', "'-1'"), ('1.jpg cat', "'cat'"), ('1.jpg 1.0', "'1.0'"), ('1.jpg', "'1.jpg'"),
    ('1.jpg 1_0', "'1_0'"), ('1.jpg 99999999999', '99999999999'),
])
def test_wrong_label_is_reported_with_its_line(tmp_path, line, shown):
    root = make(tmp_path, '1.jpg')
    path = write(tmp_path / 'list.txt', f'1.jpg 0\n\n{line}\n1.jpg 1\n')
    message = error_of(read_list, path, root)
    assert f'{path}, line 3' in message and shown in message


def test_missing_file_is_reported_with_its_line_and_full_path(tmp_path):
    root = make(tmp_path, 'a/1.jpg', 'a/3.jpg')
    path = write(tmp_path / 'list.txt', 'a/1.jpg 0\n\na/2.jpg 0\na/3.jpg 1\nb/4.jpg 1\n')
    message = error_of(read_list, path, root)
    assert f'{path}, line 3' in message and f'{root}/a/2.jpg' in message and '--root' in message


@pytest.mark.parametrize('line', ['b/1.jpg 0', 'a 0', 'a/ 0', '/nowhere/1.jpg 0'])
def test_what_is_no_file_is_missing(tmp_path, line):
    root = make(tmp_path, 'a/1.jpg')
    assert 'line 2' in error_of(read_list, write(tmp_path / 'list.txt', f'a/1.jpg 0\n{line}\n'), root)


def test_existence_is_checked_by_directory_not_by_file(tmp_path, monkeypatch):
    names = [f'{folder}/{i}.jpg' for folder in 'ab' for i in range(50)]
    root = make(tmp_path, *names)
    path = write(tmp_path / 'list.txt', ''.join(f'{name} 0\n' for name in names))
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, 'scandir', lambda folder: scanned.append(folder) or scandir(folder))
    monkeypatch.setattr(os.path, 'isfile', None)
    assert len(read_list(path, root)) == 100
    assert len(scanned) == 2


def test_file_that_its_directory_lists_by_another_spelling_is_there(tmp_path, monkeypatch):
    root = make(tmp_path, 'a/1.jpg')
    monkeypatch.setattr(os.path, 'isfile', lambda path: True)  # as where case is folded
    assert len(read_list(write(tmp_path / 'list.txt', 'a/1.JPG 0\n'), root)) == 1


@pytest.mark.parametrize('text', ['', '\n \n'])
def test_empty_list_is_refused(tmp_path, text):
    path = write(tmp_path / 'list.txt', text)
    assert f'{path}: the list is empty' in error_of(read_list, path)


def test_list_that_is_no_text_is_refused_with_the_line(tmp_path):
    path = write(tmp_path / 'list.txt', 'a.jpg 0\n'.encode('utf-16'))
    assert f'{path}, line 1: not text' in error_of(read_list, path)


def test_path_in_a_list_is_the_bytes_of_the_file_system(tmp_path):
    (tmp_path / os.fsdecode(b'\xe9.jpg')).write_bytes(b'')
    path = write(tmp_path / 'list.txt', b'\xe9.jpg 0\n')
    assert os.fsencode(read_list(path, str(tmp_path)).path(0)).endswith(b'\xe9.jpg')


@pytest.mark.parametrize('name, content', [('Train.TAR', b''), ('train', bytes(257) + b'ustar\0' + bytes(9)),
                                           ('train.tar.gz', b'\x1f\x8b')])
def test_archive_leads_to_the_command_that_unpacks_it(tmp_path, name, content):
    path = write(tmp_path / name, content)
    assert f'{path}: an archive; `python -m lib.prepare`' in error_of(read_list, path)


def test_folder_of_archives_leads_to_the_command_that_unpacks_them(tmp_path):
    make(tmp_path, 'n01440764.tar', 'n01751748.tar')
    assert 'such as n0' in error_of(read_directory, str(tmp_path))
    assert '`python -m lib.prepare`' in error_of(read_directory, str(tmp_path))


def test_unreadable_list_is_refused(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(files, 'open_regular', refuse)
    assert 'Permission denied' in error_of(read_list, str(tmp_path / 'list.txt'))


def test_list_that_is_no_regular_file_is_refused_unread(tmp_path, special_file):
    special_file(tmp_path / 'list.txt')
    assert 'list.txt: cannot be read (not a regular file)' in error_of(read_list, str(tmp_path / 'list.txt'))


# ---- open_pair


def test_validation_classes_take_the_labels_of_training_classes(tmp_path):
    make(tmp_path, 'train/a/1.jpg', 'train/b/1.jpg', 'train/c/1.jpg', 'val/c/1.jpg', 'val/a/1.jpg')
    train, val = open_pair(str(tmp_path / 'train'), str(tmp_path / 'val'))
    assert val.labels.tolist() == [0, 2]
    assert val.n_class == train.n_class == 3 and val.class_names == train.class_names


def test_validation_class_unknown_to_training_is_named(tmp_path):
    make(tmp_path, 'train/a/1.jpg', 'val/a/1.jpg', 'val/zebra/1.jpg')
    message = error_of(open_pair, str(tmp_path / 'train'), str(tmp_path / 'val'))
    assert str(tmp_path / 'val') in message and "'zebra'" in message


def test_empty_validation_class_is_named(tmp_path):
    make(tmp_path, 'train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg', 'val/b/readme')
    message = error_of(open_pair, str(tmp_path / 'train'), str(tmp_path / 'val'))
    assert str(tmp_path / 'val') in message and "'b'" in message


def test_two_lists_share_the_number_of_classes(tmp_path):
    root = make(tmp_path, '1.jpg')
    train = write(tmp_path / 't', '1.jpg 0\n1.jpg 1\n1.jpg 2\n')
    pair = open_pair(train, write(tmp_path / 'v', '1.jpg 1\n'), root)
    assert [images.n_class for images in pair] == [3, 3]


def test_validation_label_beyond_training_is_reported_with_its_line(tmp_path):
    root = make(tmp_path, '1.jpg')
    val = write(tmp_path / 'v', '1.jpg 0\n1.jpg 2\n')
    message = error_of(open_pair, write(tmp_path / 't', '1.jpg 0\n1.jpg 1\n'), val, root)
    assert f'{val}, line 2' in message and 'at most 1' in message


@pytest.mark.parametrize('labels, gap', [((0, 1, 3), 2), ((1, 2), 0), ((0, 2000000000), 1)])
def test_first_class_without_a_training_image_is_named(tmp_path, labels, gap):
    root = make(tmp_path, '1.jpg')
    train = write(tmp_path / 't', ''.join(f'1.jpg {label}\n' for label in labels))
    message = error_of(open_pair, train, write(tmp_path / 'v', '1.jpg 1\n'), root)
    assert f'{train}: no image has label {gap}' in message


def test_list_may_validate_a_directory(tmp_path):
    make(tmp_path, 'train/a/1.jpg', 'train/b/1.jpg', 'val/1.jpg')
    val = write(tmp_path / 'v', '1.jpg 1\n')
    train, val = open_pair(str(tmp_path / 'train'), val, str(tmp_path / 'val'))
    assert val.labels.tolist() == [1] and val.n_class == 2 and val.class_names == ['a', 'b']


def test_directory_cannot_validate_a_list(tmp_path):
    root = make(tmp_path, '1.jpg', 'val/a/1.jpg')
    train = write(tmp_path / 't', '1.jpg 0\n')
    message = error_of(open_pair, train, str(tmp_path / 'val'), root)
    assert train in message and str(tmp_path / 'val') in message


def test_missing_data_are_named(tmp_path):
    make(tmp_path, 'train/a/1.jpg')
    assert '/nowhere/train: no such' in error_of(open_pair, '/nowhere/train', str(tmp_path))
    assert '/nowhere/val: no such' in error_of(open_pair, str(tmp_path / 'train'), '/nowhere/val')


def test_what_is_neither_directory_nor_file_is_refused():
    assert '/dev/null: neither' in error_of(open_pair, '/dev/null', '/dev/null')


def test_path_through_a_file_is_refused(tmp_path):
    make(tmp_path, 'file')
    assert 'cannot be read' in error_of(open_pair, str(tmp_path / 'file' / 'train'), str(tmp_path))


def test_reading_lists_imports_neither_chainer_nor_mpi():
    code = ('import sys, lib.data.datasets, lib.data.sample_set; '
            'sys.exit(any(name in sys.modules for name in ("chainer", "chainermn", "mpi4py")))')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
