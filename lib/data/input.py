"""The images of a job: from what the command line names to the batches that one process reads."""

from lib.data import datasets, sample_set, synthetic
from lib.data.batches import TrainingBatches, validation_batches
from lib.sharding import Share


def open_sets(train=None, val=None, root='.', is_synthetic=False, n_train=None):
    """Return the training and validation set.

    Args:
        train, val (str or None): Directory or list file; None is the sample set.
        root (str): Where the paths of a list file begin.
        is_synthetic (bool): Whether images are made in memory instead.
        n_train (int or None): Size of the synthetic training set.

    Returns:
        tuple: Two ``lib.data.datasets.ImageList``, or the like.

    Raises:
        UserError: If they cannot be read.
    """
    if is_synthetic:
        return synthetic.open_pair(n_train)
    if train is None:
        train, val = sample_set.ensure_sample_set()
    return datasets.open_pair(train, val, root)


class Input:
    """What one process reads of a job's images.

    Args:
        plan (lib.plan.Plan): The job.
        rank (int): This process.
        pool (lib.data.decoder_pool.ImagePool): Decodes.
        train_set, val_set: As ``open_sets`` gives them.
        val_batchsize (int): Images per validation step.
        on_bad_image (str): ``error`` or ``skip``.

    Attributes:
        skipped (list of lists): Bad images so far, as tuples that begin with path and reason.
    """

    def __init__(self, plan, rank, pool, train_set, val_set, val_batchsize, on_bad_image):
        self._plan = plan
        self._rank = rank
        self._pool = pool
        self._train_set = train_set
        self._val_set = val_set
        self._val_batchsize = val_batchsize
        self._on_bad_image = on_bad_image
        self.skipped = []
        self._read_ahead = {}  # by share, one at most

    def training_batches(self, start_iteration):
        """Make the iterator over this process's minibatches, K per iteration, from ``start_iteration`` on."""
        plan = self._plan
        workers = plan.workers_of(self._rank)
        share = Share(plan.seed, plan.batch, plan.workers, workers.start, len(workers), start_iteration,
                      plan.iterations)
        if isinstance(self._train_set, synthetic.SyntheticImages):
            return synthetic.SyntheticBatches(plan.n_class, plan.insize, share)
        batches = TrainingBatches(self._pool, self._train_set, plan.insize, share, self._on_bad_image,
                                  plan.jitter)
        self.skipped.append(batches.skipped)
        return batches

    def validation_batches(self, start, stop, again=False):
        """Generate the batches of validation images ``start`` to ``stop - 1``.

        With ``again`` the first of them are decoded for the next time, while training goes on: that wait for
        images would be all processes'.
        """
        plan = self._plan
        if isinstance(self._val_set, synthetic.SyntheticImages):
            yield from synthetic.validation_batches(plan.insize, plan.seed, start, stop, self._val_batchsize)
            return
        yield from self._read_ahead.pop((start, stop), None) or self._read(start, stop)
        if again and not self._read_ahead:
            self._read_ahead[start, stop] = self._read(start, stop)

    def _read(self, start, stop):
        self.skipped.append([])
        return validation_batches(self._pool, self._val_set, self._plan.insize, start, stop,
                                  self._val_batchsize, self._on_bad_image, self.skipped[-1])
