"""What torchvision calls the values of the networks that both have: ResNet-50, -101 and -152.

The networks are the same, the stride on the 3x3 convolution and batch normalization's eps of 1e-5 included.
So are the arrays: convolutions are (out, in, height, width), the classifier is (n_class, 2048), and a running
variance is unbiased (m/(m-1)) in both. Only names differ.
"""

import models

_BATCH_NORMALIZATION = {'gamma': 'weight', 'beta': 'bias', 'avg_mean': 'running_mean',
                        'avg_var': 'running_var', 'N': 'num_batches_tracked'}


def torchvision_names(arch):
    """Name of each of a network's values in torchvision, by its path here.

    Args:
        arch (str): ``resnet50``, ``resnet101`` or ``resnet152``.

    Returns:
        dict of str to str: ``res2/0/conv1/W`` is ``layer1.0.conv1.weight``, for example.
    """
    layers = [('conv1', 'conv1', False), ('bn1', 'bn1', True)]
    for stage, depth in enumerate(models.ARCHITECTURES[arch].depths, 1):
        for block in range(depth):
            ours, theirs = f'res{stage + 1}/{block}', f'layer{stage}.{block}'
            for i in (1, 2, 3):
                layers += [(f'{ours}/conv{i}', f'{theirs}.conv{i}', False),
                           (f'{ours}/bn{i}', f'{theirs}.bn{i}', True)]
            if block == 0:
                layers += [(f'{ours}/shortcut/conv', f'{theirs}.downsample.0', False),
                           (f'{ours}/shortcut/bn', f'{theirs}.downsample.1', True)]
    names = {}
    for ours, theirs, is_normalization in layers:
        values = _BATCH_NORMALIZATION if is_normalization else {'W': 'weight'}
        names.update({f'{ours}/{value}': f'{theirs}.{name}' for value, name in values.items()})
    return {**names, 'fc/W': 'fc.weight', 'fc/b': 'fc.bias'}
