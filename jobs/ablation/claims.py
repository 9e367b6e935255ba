"""What can be tested: the paper's claims, ways to train, comparisons of them, and sets of all that."""

import dataclasses

# How a number is taken from a run: its name in the report. ``jobs.ablation.verdicts.value`` computes it.
MEASURES = {
    'final': 'accuracy at the end',
    'mean': 'accuracy, mean over the epochs',
    'loss': 'training loss of the last epoch',
    'start': 'training loss of the first epoch',
    'warmup': 'training loss up to β_center',
    'after': 'training loss in the β_period after β_center',
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the paper says."""

    number: int
    title: str
    paper: str


CLAIMS = (
    Claim(1, 'Large minibatches are difficult',
          'Under the linear rule with Goyal\'s recipe, the start and the final accuracy suffer as the '
          'minibatch grows ("the primary challenge is the optimization difficulty at the start of training", '
          'section 2).'),
    Claim(2, 'RMSprop warm-up',
          'Starting with RMSprop overcomes the difficulty; a sudden switch to SGD "severely impacts '
          'training"; a linear transition has "a similar problem"; sigmoid performs similarly to the one '
          'like an ELU (A.1). That the printed formula and the continuous one differ little is not a claim '
          'of the paper, but the question that its misprint raises.'),
    Claim(3, 'Slow start',
          'A longer initial phase at a lower rate helps further over the difficulty at the start (section 2, '
          'A.2).'),
    Claim(4, 'Batch normalization without moving averages',
          'With large minibatches moving averages become inaccurate; the last minibatch\'s statistics, '
          'averaged over the workers, are better (section 2).'),
    Claim(5, 'Half-precision communication',
          'The effect of exchanging gradients in half precision on the final accuracy is "relatively small" '
          '(section 3).'),
    Claim(6, 'All of it together',
          'With all techniques the extreme minibatch reaches an accuracy comparable to that of small '
          'minibatches (section 4).'),
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A rate that runs decide: the one of highest accuracy at the end, of equals the lowest.

    ``seed`` is one that does not count. ``of`` names the set whose runs decide, if it is another.
    """

    eta_scales: tuple
    seed: int
    of: str = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name (str): As the command line has it.
        what (str): For the report.
        options (str): Added to those that all arms of the set share.
        eta_scale (float or Choice): Factor on the linear rule's rate.
        seeds (tuple or None): Seeds to run, if not the set's.
    """

    name: str
    what: str
    options: str
    eta_scale: object
    seeds: tuple = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A statement about two arms: the measure of ``arm`` is ... than that of ``reference``.

    ``expected``: ``higher`` or ``lower`` (at all), ``equal`` (the difference is below the margin) or
    ``holds`` (not lower by the margin or more).
    """

    arm: str
    expected: str
    reference: str
    measure: str


@dataclasses.dataclass(frozen=True)
class Set:
    """Runs of one size, and what they are to show; all of it is decided before they are made.

    Attributes:
        name (str): As the command line has it.
        what (str): For the report.
        options (str): Of ``train_imagenet.py``, shared by all arms.
        stages (tuple): Tuples of ``Arm``; a stage's arms are run seed by seed, the stages one after another.
        comparisons (dict): By the number of a claim, tuples of ``Comparison``; the first is the main one.
        margins (dict): By measure, the smallest difference that matters.
        seeds (tuple): Seeds to run.
        explored (tuple): Seeds that were looked at when the set was designed; they do not count.
        transition (tuple): Names of the arms whose training loss is drawn around the transition.
    """

    name: str
    what: str
    options: str
    stages: tuple
    comparisons: dict
    margins: dict
    seeds: tuple = (0, 1, 2)
    explored: tuple = ()
    transition: tuple = ()

    @property
    def arms(self):
        """All arms in the order of the stages, by name."""
        return {arm.name: arm for stage in self.stages for arm in stage}

    def command(self, arm, eta_scale, seed):
        """The options of a run after ``TRAIN VAL``, as one shell line."""
        return f'{self.options} --eta-scale {eta_scale:g} {arm.options} --seed {seed}'

    def claim_arms(self, number):
        """Names of the arms that a claim compares, in the order of the stages."""
        used = {name for comparison in self.comparisons.get(number, ())
                for name in (comparison.arm, comparison.reference)}
        return [name for name in self.arms if name in used]
