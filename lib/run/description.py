"""A plan in words and as JSON, and what a finished run came to."""

import math
import textwrap

from lib import constants, schedules

_COLUMNS = 80


def describe(plan):
    """Describe a plan for people, in lines of 80 columns.

    Args:
        plan (lib.plan.Plan): The job.

    Returns:
        str: Lines that name and say what the options imply.
    """
    recipe = plan.recipe
    first = plan.hyperparameters(0)
    lines = [
        ('network', f'{plan.arch}, {plan.insize} x {plan.insize} pixels, {plan.n_class} classes, '
                    f'{plan.n_parameters:,} parameters, {plan.dtype}'),
        ('data', f'{plan.n_train:,} training and {plan.n_val:,} validation images, seed {plan.seed}'),
        ('workers', f'{plan.workers:,} = {_processes(plan)}'),
        ('total batch', f'{plan.total_batch:,} = {plan.workers:,} workers x {plan.batch} images'),
        ('length', f'{recipe.epochs} epochs = {plan.iterations:,} iterations, '
                   f'{plan.n_train / plan.total_batch:.4g} per epoch'),
        ('recipe', f'{recipe.name}: transition {recipe.transition}, schedule {recipe.schedule}'),
        ('eta_base', f'{recipe.eta_base(plan.total_batch):.6g} = {constants.BASE_RATE} x '
                     f'{plan.total_batch:,} / {constants.BASE_BATCH}'
                     + (f' x {recipe.eta_scale:g}' if recipe.eta_scale != 1 else '')),
    ]
    for start, end, low, high in plan.phases():
        rate = f'{low:.6g}' if low == high else f'{low:.6g} rising to {high:.6g}'
        lines.append(('learning rate', f'{rate} in epochs {start:.6g} to {end:.6g}'))
    lines.append(('alpha_SGD', _transition(plan)))
    if recipe.transition != 'none':
        lines.append(('alpha_RMSprop', f'(1 - alpha_SGD) x {constants.ETA_RMSPROP} / eta_SGD, '
                                       f'{first.alpha_rmsprop:.6g} at epoch 0'))
    lines += [
        ('optimizer', f'mu1 {constants.MU1}, mu2 {constants.MU2}, eps {constants.EPS:g}'),
        ('weight decay', f'{constants.WEIGHT_DECAY:g} on the averaged gradient, not on batch '
                         'normalization\'s gamma and beta'),
        ('BN training', f'each worker normalizes with its own {plan.batch} images'),
        ('BN validation', _validation_statistics(plan)),
        ('wire', f'{plan.wire_bytes:,} bytes of {plan.allreduce_grad_dtype} gradient per process and '
                 f'iteration; loss scale {plan.loss_scale:g}'),
        ('exchange', _exchange(plan)),
    ]
    lines += [('deviation', text) for text in deviations(plan)]
    lines += [('reading', text) for text in readings(plan)]
    return '\n'.join(_wrapped(name, text) for name, text in lines)


def _wrapped(name, text):
    return textwrap.fill(f'{name:<14} {text}', _COLUMNS, subsequent_indent=15 * ' ', break_long_words=False,
                         break_on_hyphens=False)


def as_dict(plan):
    """Give a plan and what follows from it as JSON values (``plan.json``)."""
    least, most = plan.virtual_workers
    return {
        **plan.identity(), 'recipe': plan.recipe.name, 'processes': plan.processes,
        'virtual_workers': [least, most] if least < most else least, 'total_batch': plan.total_batch,
        'iterations_per_epoch': plan.n_train / plan.total_batch,
        'eta_base': plan.recipe.eta_base(plan.total_batch), 'beta_center': plan.recipe.beta_center,
        'beta_period': plan.recipe.beta_period, 'eta_rmsprop': constants.ETA_RMSPROP,
        'alpha_sgd': _transition(plan), 'mu1': constants.MU1, 'mu2': constants.MU2,
        'eps': constants.EPS, 'weight_decay': constants.WEIGHT_DECAY,
        'weight_decay_exempt': 'gamma and beta of batch normalization',
        'bn_training': f'each worker normalizes with its own {plan.batch} images',
        'bn_validation': _validation_statistics(plan), 'bn_decay': plan.recipe.bn_decay,
        'bn_eps': constants.BN_EPS,
        'phases': [dict(zip(('from_epoch', 'to_epoch', 'lr_first', 'lr_last'), row))
                   for row in plan.phases()],
        'n_parameters': plan.n_parameters, 'n_statistics': plan.n_statistics,
        'wire_bytes_per_iteration': plan.wire_bytes, 'exchange': _exchange(plan),
        'deviations': deviations(plan), 'readings': readings(plan),
    }


def deviations(plan):
    """List the differences from the paper's method and from its own run, each with its reason."""
    return (_deviations_of_the_method(plan.recipe) + _deviations_of_the_arithmetic(plan)
            + _deviations_of_the_run(plan))


def readings(plan):
    """List what the papers leave open and this program has decided, with what it does."""
    found = [f'batch normalization: epsilon {constants.BN_EPS:g}, which neither paper states',
             'crops: resized with a filter that looks across the crop\'s edge where the image goes on']
    if plan.recipe.transition != 'none':
        first = 1 / math.sqrt(1 - constants.MU2)
        found += [
            f'start: m = 0, not corrected, so that the first RMSprop steps are up to {first:.0f} times as '
            'large as eta_RMSprop',
            'weight decay: lambda theta enters g before m does; where gamma is 0 a branch has no other '
            'gradient in iteration 1, which normalized moves each of its weights '
            f'{first * constants.ETA_RMSPROP:g} towards zero, some ten times that with momentum']
    else:
        found.append('weight decay: lambda theta enters g, and momentum with it')
    return found


def _deviations_of_the_method(recipe):
    found = []
    if recipe.transition == 'continuous':
        found.append('transition: continuous, alpha_SGD = 1/2 + (epoch - c)/p after the center; as '
                     'printed, 1/2 + 2(epoch - c)/p, it would pass 1 at c + p/4 and make alpha_RMSprop '
                     'negative, against the paper\'s own text')
    elif recipe.transition == 'printed':
        found.append('transition: as printed; alpha_SGD passes 1 and alpha_RMSprop becomes negative, '
                     'against the paper\'s own text')
    elif recipe.transition != 'none':
        found.append(f'transition: {recipe.transition} instead of the paper\'s, for comparison')
    else:
        found.append('momentum: plain momentum SGD without RMSprop warm-up; Goyal used Nesterov momentum '
                     'and calls plain equally effective')
    if recipe.schedule == 'goyal':
        found.append('schedule: Goyal\'s gradual warm-up and steps instead of slow start')
    if recipe.bn_statistics != 'last':
        what = {'moving': f'moving averages with decay {constants.BN_DECAY}, averaged over workers',
                'last-local': 'the last minibatch of each worker, not averaged'}[recipe.bn_statistics]
        found.append(f'batch normalization: {what}, instead of the averaged last minibatch')
    if recipe.bn_variance != 'mean':
        found.append('batch normalization: pooled variance instead of the mean of variances')
    if recipe.eta_scale != 1:
        found.append(f'learning rate: {recipe.eta_scale:g} times the linear rule')
    if recipe.epochs != constants.EPOCHS:
        found.append(f'length: {recipe.epochs} epochs instead of {constants.EPOCHS}; all that is counted '
                     f'in epochs scales by {recipe.epoch_scale:.4g}')
    return found


def _deviations_of_the_arithmetic(plan):
    found = ['first iteration: updates; ChainerMN\'s optimizer spends its first minibatch on a broadcast',
             'CPU: convolution and batch normalization are this project\'s own; on a GPU they are cuDNN\'s, '
             'with the residual and the ReLU behind a batch normalization in one kernel']
    if plan.allreduce_grad_dtype == 'float16':
        found += [
            'mean: divided in float32, after the sum; ChainerMN divides in float16, where most means of '
            'small gradients become zero at 1024 workers',
            'sum: on GPUs NCCL\'s, in float16; on CPUs in float32, rounded once']
        least, most = plan.virtual_workers
        if most > 1:
            found.append(f'rounding: each process rounds the mean of its {most} workers to '
                         'float16 once, not each worker')
        if plan.loss_scale == 1:
            found.append('underflow: some gradients of the branches become zero on the wire in the first ten '
                         'iterations (3 % in iteration 2); a --loss-scale above 1 keeps them')
    return found


def _deviations_of_the_run(plan):
    found = []
    if plan.arch != 'resnet50':
        found.append(f'network: {plan.arch} instead of resnet50')
    if plan.insize != constants.INSIZE:
        found.append(f'input: {plan.insize} pixels instead of {constants.INSIZE}')
    if plan.initmodel:
        without = f', except {plan.initmodel_skip}' if plan.initmodel_skip else ''
        found.append(f'start: from the weights of {plan.initmodel}{without}')
    if plan.synthetic:
        found.append('data: random pixels, nothing can be learned')
    elif plan.n_train != constants.IMAGENET_TRAIN or plan.n_class != constants.IMAGENET_CLASSES:
        found.append(f'data: {plan.n_train:,} images of {plan.n_class} classes instead of ImageNet\'s '
                     f'{constants.IMAGENET_TRAIN:,} of {constants.IMAGENET_CLASSES}')
    if plan.batch != constants.BATCH:
        found.append(f'images per worker: {plan.batch} instead of {constants.BATCH}; batch normalization '
                     'sees as many')
    if plan.workers != constants.PAPER_WORKERS:
        found.append(f'workers: {plan.workers} instead of {constants.PAPER_WORKERS}')
    if plan.allreduce_grad_dtype != 'float16':
        found.append(f'wire: gradients travel as {plan.allreduce_grad_dtype} instead of float16')
    if plan.loss_scale != 1:
        found.append(f'loss scale: {plan.loss_scale:g}, undone in float32 after the all-reduce')
    if plan.dtype != 'float32':
        found.append(f'arithmetic: {plan.dtype} instead of float32')
    elif plan.tf32:
        found.append('arithmetic: GPUs that can, from Ampere on, multiply float32 rounded to TF32')
    if plan.jitter:
        found.append('augmentation: color jitter and lighting, which Goyal\'s text does not have')
    if plan.skip_bad_images:
        found.append('data: the next image of the epoch takes the place of one that cannot be decoded')
    if plan.max_iterations is not None:
        found.append(f'length: a test of {plan.iterations} iterations')
    return found


def _exchange(plan):
    sizes = [sum(plan.stage_sizes[stage] for stage in part) for part in plan.parts]
    if len(sizes) == 1:
        return 'all gradients together, when all are computed'
    when = 'each while others are computed' if plan.overlap else 'when all are computed'
    return f'{len(sizes)} parts of {", ".join(f"{size:,}" for size in sizes)} gradients, {when}'


def _processes(plan):
    least, most = plan.virtual_workers
    more = plan.workers - least * plan.processes
    even = f'{plan.processes - more:,} process{"es" * (plan.processes - more != 1)} x {least}'
    return even + (f' + {more:,} x {most}' if more else '')


def _transition(plan):
    recipe = plan.recipe
    center, period = recipe.beta_center, recipe.beta_period
    at_zero = f'{plan.hyperparameters(0).alpha_sgd:.6g} at epoch 0'
    half = f'1/2 at {center:.6g} (beta_center)'
    end = f'1 from {center + period / 2:.6g}'
    return {
        'continuous': f'{at_zero}, {half}, beta_period {period:.6g}; {end}',
        'printed': f'{at_zero}, {half}, beta_period {period:.6g}; rises to 3/2, and is {end}',
        'linear': f'0 until {center - period / 2:.6g}, {half}, {end}',
        'sigmoid': f'{at_zero}, {half}, beta_period {period:.6g}; '
                   f'{schedules.alpha_sgd(center + period / 2, center, period, "sigmoid"):.6g} at '
                   f'{center + period / 2:.6g}',
        'sudden': f'0 until {center:.6g} (beta_center), 1 from there',
        'none': '1 throughout (momentum SGD)',
    }[recipe.transition]


def _validation_statistics(plan):
    recipe = plan.recipe
    return {
        'last': f'statistics of the last minibatch, averaged over workers (variance: '
                f'{recipe.bn_variance}), {plan.n_statistics:,} values in one all-reduce',
        'last-local': 'statistics of each worker\'s own last minibatch, not averaged',
        'moving': f'moving averages with decay {constants.BN_DECAY}, averaged over workers (variance: '
                  f'{recipe.bn_variance})',
    }[recipe.bn_statistics]


def summarize(plan, log):
    """Tell in a few lines what a run came to, from the rows of its log.

    Args:
        plan (lib.plan.Plan): The job.
        log (list of dict): Rows of ``log``, all of them.

    Returns:
        str: Accuracy, time, images per second and the shares of computation, communication and data.
    """
    spent = {'iteration': 0.0, 'allreduce': 0.0, 'data': 0.0}
    before = 0
    for row in log:
        for name in spent:
            spent[name] += row.get(f'{name}_time', 0.0) * (row['iteration'] - before)
        before = row['iteration']
    last, lines = log[-1], []
    accuracies = [row['validation/main/accuracy'] for row in log if 'validation/main/accuracy' in row]
    if accuracies:
        best = max(range(len(accuracies)), key=accuracies.__getitem__)
        lines.append(f'accuracy   {accuracies[-1]:.4f} at the end, {accuracies[best]:.4f} at best '
                     f'(validation {best + 1} of {len(accuracies)})')
    lines.append(f'time       {last["elapsed_time"]:.1f} s for {plan.iterations:,} iterations of '
                 f'{plan.total_batch:,} images, validation included')
    if spent['iteration']:
        share = {name: seconds / spent['iteration'] for name, seconds in spent.items()}
        lines.append(f'speed      {plan.iterations * plan.total_batch / spent["iteration"]:,.0f} images/s '
                     'while training')
        lines.append(f'iteration  {1 - share["allreduce"] - share["data"]:.0%} computation, '
                     f'{share["allreduce"]:.0%} communication, {share["data"]:.0%} waiting for data')
    return '\n'.join(lines)
