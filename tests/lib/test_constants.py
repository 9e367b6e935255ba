"""Every constant once more, as its source has it; A, G and fb are what ``lib.constants`` names so."""

from lib import constants

import pytest

SOURCES = {
    'A section 1': {'EPOCHS': 90},
    'A section 3': {'PAPER_NODE_GPUS': 8, 'PAPER_LINK_BITS': 56e9},
    'A section 4': {'BATCH': 32, 'PAPER_WORKERS': 1024, 'PAPER_SECONDS': 897.9, 'PAPER_SECONDS_STD': 3.3,
                    'PAPER_ACCURACY': 0.7494, 'PAPER_ACCURACY_STD': 0.0009, 'PAPER_EFFICIENCY_GPU': 0.70,
                    'PAPER_EFFICIENCY_NODE': 0.80},
    'A section A.1': {'MU1': 0.9, 'MU2': 0.99, 'EPS': 1e-8, 'ETA_RMSPROP': 0.0003, 'BETA_CENTER': 10,
                      'BETA_PERIOD': 5},
    'A section A.2': {'BASE_RATE': 0.1, 'BASE_BATCH': 256,
                      'SLOW_START': ((0, 0.5), (40, 0.075), (70, 0.01), (85, 0.001)),
                      'GOYAL_STEPS': ((0, 1.0), (30, 0.1), (60, 0.01), (80, 0.001))},
    'A Table 1': {'TABLE_1': (
        ('He et al.', 'Tesla P100 × 8', 'Caffe', 256, '29 hr', 0.753),
        ('Goyal et al.', 'Tesla P100 × 256', 'Caffe2', 8192, '1 hr', 0.763),
        ('Codreanu et al.', 'KNL 7250 × 720', 'Intel Caffe', 11520, '62 min', 0.750),
        ('You et al.', 'Xeon 8160 × 1600', 'Intel Caffe', 16000, '31 min', 0.753),
        ('Akiba et al.', 'Tesla P100 × 1024', 'Chainer', 32768, '15 min', 0.749))},
    'G section 2.2': {'GOYAL_WARMUP_EPOCHS': 5, 'GOYAL_ETA_START': 0.1},
    'G section 5.1': {'WEIGHT_DECAY': 0.0001, 'FC_STD': 0.01, 'BN_DECAY': 0.9, 'INSIZE': 224,
                      'VAL_SHORT_SIDE': 256},
    'fb.resnet.torch, models/resnet.lua': {'BN_EPS': 1e-5},
    'fb.resnet.torch, datasets/imagenet.lua and transforms.lua': {
        'CROP_AREA': (0.08, 1.0), 'CROP_ASPECT': (0.75, 1.3333333333333333), 'CROP_TRIES': 10,
        'IMAGE_MEAN': (0.485, 0.456, 0.406), 'IMAGE_STD': (0.229, 0.224, 0.225),
        'JITTER_STRENGTH': 0.4, 'LUMINANCE': (0.299, 0.587, 0.114), 'LIGHTING_STD': 0.1,
        'LIGHTING_EIGENVALUES': (0.2175, 0.0188, 0.0045),
        'LIGHTING_EIGENVECTORS': ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140),
                                  (-0.5836, -0.6948, 0.4203))},
    'ILSVRC 2012': {'IMAGENET_TRAIN': 1281167, 'IMAGENET_VAL': 50000, 'IMAGENET_CLASSES': 1000},
    'tech.preferred.jp on MN-1': {'PAPER_NODE_LINKS': 2},
    'ResNet-50 counted layer by layer': {'RESNET50_PARAMETERS': 25557032, 'RESNET50_STATISTICS': 53120},
}


@pytest.mark.parametrize('source', SOURCES)
def test_constants_are_those_of_their_source(source):
    assert {name: getattr(constants, name) for name in SOURCES[source]} == SOURCES[source]


def test_no_constant_is_without_a_source():
    assert {name for name in vars(constants) if name.isupper()} == {
        name for constants_of_source in SOURCES.values() for name in constants_of_source}
