"""Which file of labels is taken, and what one holds; whole directories are read in test_source.py."""

from lib.errors import UserError
from lib.prepare import labels
from lib.prepare.labels import check_class_names, find_val_labels, read_val_labels

import pytest

NAMES = [f'ILSVRC2012_val_{number:08d}.JPEG' for number in range(1, 4)]
CLASSES = ['n01751748', 'n09193705', 'n02105855']  # as published
EXPECTED = dict(zip(NAMES, CLASSES))


@pytest.fixture
def read(tmp_path):
    def read(text, names=NAMES, train_classes=CLASSES):
        path = tmp_path / 'labels.txt'
        path.write_bytes(text.encode())
        return read_val_labels(str(path), names, train_classes)
    return read


def test_files_that_name_classes_go_before_those_that_number_them(tmp_path):
    for name in ('ILSVRC2012_validation_ground_truth.txt', 'val.txt', 'synset_labels.txt'):
        (tmp_path / name).touch()
    assert find_val_labels(str(tmp_path), 'top', 'val') == str(tmp_path / 'synset_labels.txt')


def test_labels_are_found_in_a_folder_whose_name_has_brackets(tmp_path):
    folder = tmp_path / 'images [1]'
    folder.mkdir()
    (folder / 'val.txt').touch()
    assert find_val_labels(str(folder), 'top', 'val') == str(folder / 'val.txt')


def test_numbers_count_the_sorted_classes_whatever_their_order_and_the_header(read):
    rows = [f'{name},{sorted(CLASSES).index(expected)}' for name, expected in EXPECTED.items()]
    text = '\n'.join(['ImageId,PredictionString', *rows])
    for classes in (CLASSES, CLASSES[::-1]):
        assert read(text, train_classes=classes) == EXPECTED


def test_file_may_begin_with_a_byte_order_mark(read):
    rows = [f'{name} {class_name}' for name, class_name in EXPECTED.items()]
    assert read('\ufeff' + '\n'.join(rows)) == EXPECTED


def test_image_of_number_0_has_no_line(read):
    with pytest.raises(UserError, match='no class for 1 of 1 images'):
        read('\n'.join(CLASSES), ['ILSVRC2012_val_00000000.JPEG'])


def test_images_in_classes_of_ones_own_may_be_called_as_imagenets(read):
    assert read('cat\ndog\ncat', train_classes=['cat', 'dog']) == dict(zip(NAMES, ['cat', 'dog', 'cat']))


def test_file_too_large_for_labels_is_not_read(read, monkeypatch):
    monkeypatch.setattr(labels, '_MAX_BYTES', 1 << 20)
    with pytest.raises(UserError, match='more than 1 MiB'):
        read('\n'.join(CLASSES) + ' ' * (1 << 20))


@pytest.mark.parametrize('name', [' x', 'x ', 'x\x85y', '\x1fx'])
def test_class_that_a_list_file_could_not_hold_is_named(name):
    with pytest.raises(UserError, match='cannot be the name of a class'):
        check_class_names('train', ['y', name])
