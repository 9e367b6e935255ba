"""Everything that follows from the options before training starts."""

import dataclasses

from lib import constants, schedules, sharding
from lib.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job, described by what it was given; what follows is computed by its methods.

    Attributes:
        recipe (Recipe): The method.
        arch (str): Network.
        insize (int): Side of the network's input, pixels.
        n_class (int): Number of classes.
        n_parameters (int): Learnable values.
        n_statistics (int): Means and variances that batch normalization keeps.
        n_train (int): Training images N.
        n_val (int): Validation images.
        data (str): Fingerprint of both image lists.
        workers (int): Workers n.
        virtual_workers (int): Workers K per process.
        batch (int): Images per worker b.
        seed (int): Seed.
        allreduce_grad_dtype (str): Wire format of gradients.
        loss_scale (float): Factor on the loss before backward.
        dtype (str): Precision of the computation.
        jitter (bool): Whether colours are augmented.
        skip_bad_images (bool): Whether another image takes an undecodable one's place.
        synthetic (bool): Whether images are random pixels.
        initmodel (str or None): Where the initial weights come from.
        initmodel_skip (str or None): Layer that does not take them.
        max_iterations (int or None): Ends the run early, for tests.
    """

    recipe: Recipe
    arch: str
    insize: int
    n_class: int
    n_parameters: int
    n_statistics: int
    n_train: int
    n_val: int
    data: str
    workers: int
    virtual_workers: int = 1
    batch: int = constants.BATCH
    seed: int = 0
    allreduce_grad_dtype: str = 'float16'
    loss_scale: float = 1
    dtype: str = 'float32'
    jitter: bool = False
    skip_bad_images: bool = False
    synthetic: bool = False
    initmodel: str = None
    initmodel_skip: str = None
    max_iterations: int = None

    @property
    def processes(self):
        return self.workers // self.virtual_workers

    @property
    def total_batch(self):
        """b_total = n * b_local (section A.2)."""
        return self.workers * self.batch

    @property
    def iterations(self):
        """T = ceil(E * N / (n * b)), or fewer for a test."""
        full = sharding.n_iterations(self.recipe.epochs, self.n_train, self.total_batch)
        return full if self.max_iterations is None else min(full, self.max_iterations)

    @property
    def wire_bytes(self):
        """Bytes of gradient that each process gives to one all-reduce."""
        return self.n_parameters * {'float16': 2, 'float32': 4}[self.allreduce_grad_dtype]

    def epoch_at(self, iteration):
        """Fractional epoch at which ``iteration`` (from 0) trains: images seen before it, over N."""
        return iteration * self.total_batch / self.n_train

    def hyperparameters(self, iteration):
        """Hyperparameters of ``iteration`` (from 0), as ``lib.recipe.Hyperparameters``."""
        return self.recipe.hyperparameters(self.epoch_at(iteration), self.total_batch)

    def phases(self):
        """Learning rate per phase.

        Returns:
            list of tuple: ``(first epoch, end epoch, first rate, last rate)``; the two rates differ in
            Goyal's warm-up only.
        """
        recipe = self.recipe
        eta_base = recipe.eta_base(self.total_batch)
        steps = constants.SLOW_START if recipe.schedule == 'slow-start' else constants.GOYAL_STEPS
        starts = [epoch * recipe.epoch_scale for epoch, _ in steps]
        rates = [factor * eta_base for _, factor in steps]
        ends = starts[1:] + [recipe.epochs]
        rows = [(start, end, rate, rate) for start, end, rate in zip(starts, ends, rates)]
        if recipe.schedule == 'goyal':
            warm = constants.GOYAL_WARMUP_EPOCHS * recipe.epoch_scale
            first = min(constants.GOYAL_ETA_START, eta_base)
            rows[:1] = [(0.0, warm, first, eta_base), (warm, ends[0], eta_base, eta_base)]
        return rows

    def identity(self):
        """What must agree for one run to continue another: a flat dict of JSON values.

        Processes, loaders and paths may differ.
        """
        recipe = dataclasses.asdict(self.recipe)
        del recipe['name']  # a recipe is its parts
        return {
            'workers': self.workers, 'batch': self.batch, 'n_train': self.n_train, 'n_val': self.n_val,
            'data': self.data, 'seed': self.seed, 'arch': self.arch, 'insize': self.insize,
            'n_class': self.n_class, 'dtype': self.dtype, 'allreduce_grad_dtype': self.allreduce_grad_dtype,
            'loss_scale': self.loss_scale, 'jitter': self.jitter, 'iterations': self.iterations, **recipe,
        }

    def deviations(self):
        """Differences from the paper's method and from its own run, each with its reason, as a list."""
        recipe, found = self.recipe, []
        if recipe.transition == 'continuous':
            found.append('transition: continuous, alpha_SGD = 1/2 + (epoch - c)/p after the centre; as '
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
        if self.arch != 'resnet50':
            found.append(f'network: {self.arch} instead of resnet50')
        if self.insize != constants.INSIZE:
            found.append(f'input: {self.insize} pixels instead of {constants.INSIZE}')
        if self.initmodel:
            without = f', except {self.initmodel_skip}' if self.initmodel_skip else ''
            found.append(f'start: from the weights of {self.initmodel}{without}')
        if self.synthetic:
            found.append('data: random pixels, nothing can be learnt')
        elif self.n_train != constants.IMAGENET_TRAIN or self.n_class != constants.IMAGENET_CLASSES:
            found.append(f'data: {self.n_train:,} images of {self.n_class} classes instead of ImageNet\'s '
                         f'{constants.IMAGENET_TRAIN:,} of {constants.IMAGENET_CLASSES}')
        if self.batch != constants.BATCH:
            found.append(f'images per worker: {self.batch} instead of {constants.BATCH}; batch normalization '
                         'sees as many')
        if self.workers != constants.PAPER_WORKERS:
            found.append(f'workers: {self.workers} instead of {constants.PAPER_WORKERS}')
        if self.allreduce_grad_dtype != 'float16':
            found.append(f'wire: gradients travel as {self.allreduce_grad_dtype} instead of float16')
        if self.loss_scale != 1:
            found.append(f'loss scale: {self.loss_scale:g}, undone in float32 after the all-reduce')
        if self.dtype != 'float32':
            found.append(f'arithmetic: {self.dtype} instead of float32')
        if self.jitter:
            found.append('augmentation: colour jitter and lighting, which Goyal\'s text does not have')
        if self.skip_bad_images:
            found.append('data: the next image of the epoch takes the place of one that cannot be decoded')
        if self.max_iterations is not None:
            found.append(f'length: a test of {self.iterations} iterations')
        return found

    def as_dict(self):
        """The plan and what follows from it, as JSON values (``plan.json``)."""
        return {
            **self.identity(), 'recipe': self.recipe.name, 'processes': self.processes,
            'virtual_workers': self.virtual_workers, 'total_batch': self.total_batch,
            'iterations_per_epoch': self.n_train / self.total_batch,
            'eta_base': self.recipe.eta_base(self.total_batch), 'beta_center': self.recipe.beta_center,
            'beta_period': self.recipe.beta_period, 'eta_rmsprop': constants.ETA_RMSPROP,
            'alpha_sgd': self._describe_transition(), 'mu1': constants.MU1, 'mu2': constants.MU2,
            'eps': constants.EPS, 'weight_decay': constants.WEIGHT_DECAY,
            'weight_decay_exempt': 'gamma and beta of batch normalization',
            'bn_training': f'each worker normalises with its own {self.batch} images',
            'bn_validation': self._describe_validation_statistics(), 'bn_decay': self.recipe.bn_decay,
            'bn_eps': constants.BN_EPS,
            'phases': [dict(zip(('from_epoch', 'to_epoch', 'lr_first', 'lr_last'), row))
                       for row in self.phases()],
            'n_parameters': self.n_parameters, 'n_statistics': self.n_statistics,
            'wire_bytes_per_iteration': self.wire_bytes, 'deviations': self.deviations(),
        }

    def describe(self):
        """The plan as text for people."""
        recipe = self.recipe
        first = self.hyperparameters(0)
        lines = [
            ('network', f'{self.arch}, {self.insize} x {self.insize} pixels, {self.n_class} classes, '
                        f'{self.n_parameters:,} parameters, {self.dtype}'),
            ('data', f'{self.n_train:,} training and {self.n_val:,} validation images, seed {self.seed}'),
            ('workers', f'{self.workers:,} = {self.processes:,} processes x {self.virtual_workers}'),
            ('total batch', f'{self.total_batch:,} = {self.workers:,} workers x {self.batch} images'),
            ('length', f'{recipe.epochs} epochs = {self.iterations:,} iterations, '
                       f'{self.n_train / self.total_batch:.4g} per epoch'),
            ('recipe', f'{recipe.name}: transition {recipe.transition}, schedule {recipe.schedule}'),
            ('eta_base', f'{recipe.eta_base(self.total_batch):.6g} = {constants.BASE_RATE} x '
                         f'{self.total_batch:,} / {constants.BASE_BATCH}'
                         + (f' x {recipe.eta_scale:g}' if recipe.eta_scale != 1 else '')),
        ]
        for start, end, low, high in self.phases():
            rate = f'{low:.6g}' if low == high else f'{low:.6g} rising to {high:.6g}'
            lines.append(('learning rate', f'{rate} in epochs {start:.6g} to {end:.6g}'))
        lines.append(('alpha_SGD', self._describe_transition()))
        if recipe.transition != 'none':
            lines.append(('alpha_RMSprop', f'(1 - alpha_SGD) x {constants.ETA_RMSPROP} / eta_SGD, '
                                           f'{first.alpha_rmsprop:.6g} at epoch 0'))
        lines += [
            ('optimizer', f'mu1 {constants.MU1}, mu2 {constants.MU2}, eps {constants.EPS:g}'),
            ('weight decay', f'{constants.WEIGHT_DECAY:g} on the averaged gradient, not on batch '
                             'normalization\'s gamma and beta'),
            ('BN training', f'each worker normalises with its own {self.batch} images'),
            ('BN validation', self._describe_validation_statistics()),
            ('wire', f'{self.wire_bytes:,} bytes of {self.allreduce_grad_dtype} gradient per process and '
                     f'iteration; loss scale {self.loss_scale:g}'),
        ]
        lines += [('deviation', text) for text in self.deviations()]
        return '\n'.join(f'{name:<14} {text}' for name, text in lines)

    def _describe_transition(self):
        recipe = self.recipe
        center, period = recipe.beta_center, recipe.beta_period
        at_zero = f'{self.hyperparameters(0).alpha_sgd:.6g} at epoch 0'
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

    def _describe_validation_statistics(self):
        recipe = self.recipe
        return {
            'last': f'statistics of the last minibatch, averaged over workers (variance: '
                    f'{recipe.bn_variance}), {self.n_statistics:,} values in one all-reduce',
            'last-local': 'statistics of each worker\'s own last minibatch, not averaged',
            'moving': f'moving averages with decay {constants.BN_DECAY}, averaged over workers (variance: '
                      f'{recipe.bn_variance})',
        }[recipe.bn_statistics]
