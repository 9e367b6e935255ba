"""Everything that follows from the options before training starts."""

import dataclasses

from lib import constants, sharding
from lib.errors import UserError
from lib.recipe import Recipe

from models import stages


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job, described by what it was given; what follows is computed by its methods.

    Attributes:
        recipe (Recipe): The method.
        arch (str): Network.
        insize (int): Side of the network's input, pixels.
        n_class (int): Number of classes.
        stage_sizes (tuple of int): Learnable values of each stage of the network, first to last.
        n_statistics (int): Means and variances that batch normalization keeps.
        n_train (int): Training images N.
        n_val (int): Validation images.
        data (str): Fingerprint of both image lists.
        workers (int): Workers n.
        processes (int): Processes P that play them.
        batch (int): Images per worker b.
        seed (int): Seed.
        allreduce_grad_dtype (str): Wire format of gradients.
        loss_scale (float): Factor on the loss before backward.
        dtype (str): Precision of the computation.
        tf32 (bool): Whether GPUs may multiply float32 in TF32.
        jitter (bool): Whether colors are augmented.
        skip_bad_images (bool): Whether another image takes an undecodable one's place.
        synthetic (bool): Whether images are random pixels.
        initmodel (str or None): Where the initial weights come from.
        initmodel_skip (str or None): Layer that does not take them.
        overlap (bool): Whether gradients leave while others are computed.
        max_iterations (int or None): Ends the run early, for tests.
    """

    recipe: Recipe
    arch: str
    insize: int
    n_class: int
    stage_sizes: tuple
    n_statistics: int
    n_train: int
    n_val: int
    data: str
    workers: int
    processes: int
    batch: int = constants.BATCH
    seed: int = 0
    allreduce_grad_dtype: str = 'float16'
    loss_scale: float = 1
    dtype: str = 'float32'
    tf32: bool = False
    jitter: bool = False
    skip_bad_images: bool = False
    synthetic: bool = False
    initmodel: str = None
    initmodel_skip: str = None
    overlap: bool = True
    max_iterations: int = None

    @property
    def n_parameters(self) -> int:
        """Learnable values."""
        return sum(self.stage_sizes)

    @property
    def parts(self) -> tuple:
        """Stages whose gradients travel together, as ``models.stages.parts`` has them."""
        return stages.parts(self.stage_sizes, self.processes)

    @property
    def virtual_workers(self) -> tuple:
        """Workers K per process, ``(least, most)``."""
        return self.workers // self.processes, -(-self.workers // self.processes)

    def workers_of(self, rank):
        """Workers that process ``rank`` plays: a range; as many as the others', or within one of them."""
        return range(*sharding.block(rank, self.processes, self.workers))

    @property
    def total_batch(self) -> int:
        """b_total = n * b_local (section A.2)."""
        return self.workers * self.batch

    @property
    def iterations(self) -> int:
        """T = ceil(E * N / (n * b)), or fewer for a test."""
        full = sharding.n_iterations(self.recipe.epochs, self.n_train, self.total_batch)
        return full if self.max_iterations is None else min(full, self.max_iterations)

    @property
    def wire_bytes(self) -> int:
        """Bytes of gradient that each process gives to one all-reduce."""
        return self.n_parameters * {'float16': 2, 'float32': 4}[self.allreduce_grad_dtype]

    def epoch_at(self, iteration: int) -> float:
        """Fractional epoch at which ``iteration`` (from 0) trains: images seen before it, over N."""
        return iteration * self.total_batch / self.n_train

    def hyperparameters(self, iteration: int):
        """Return the hyperparameters of ``iteration`` (from 0), as ``lib.recipe.Hyperparameters``."""
        return self.recipe.hyperparameters(self.epoch_at(iteration), self.total_batch)

    def phases(self) -> list:
        """List the learning rates per phase: ``(first epoch, end epoch, first rate, last rate)``."""
        return self.recipe.phases(self.total_batch)

    def moment(self, iteration) -> str:
        """Tell where in the schedule ``iteration`` (from 0) stands: epoch, phase, and its eta."""
        epoch = self.epoch_at(iteration)
        start, end, *_ = next(phase for phase in reversed(self.phases()) if phase[0] <= epoch)
        return f'epoch {epoch:.4g}, phase {start:g} to {end:g}, eta {self.hyperparameters(iteration).lr:.6g}'

    def check(self):
        """Check that there is something to learn, and an image for every worker.

        Raises:
            UserError: If not.
        """
        if self.n_class < 2:
            raise UserError('the training data have one class, and every answer is right: give two or more')
        if self.workers > self.n_train:
            raise UserError(f'{self.workers:,} workers, but {self.n_train:,} training images: give each '
                            'worker an image of its own at least')

    def identity(self) -> dict:
        """Tell what must agree for one run to continue another: a flat dict of JSON values.

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
