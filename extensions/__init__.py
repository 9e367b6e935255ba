"""Chainer trainer extensions."""

import lib  # noqa: F401  (makes Chainer importable)

from extensions.averaged_statistics import AveragedStatistics
from extensions.checkpointing import Checkpointing
from extensions.finite_means import FiniteMeans
from extensions.heartbeat import Heartbeat
from extensions.iteration_times import IterationTimes
from extensions.job_log import JobLog
from extensions.plots import Plots
from extensions.recipe_schedule import RecipeSchedule
from extensions.skipped_images import SkippedImages
from extensions.tensorboard import TensorBoard
from extensions.triggers import CheckpointDue, EpochEnd, RunEnd
from extensions.validation import Validation

__all__ = ['AveragedStatistics', 'CheckpointDue', 'Checkpointing', 'EpochEnd', 'FiniteMeans', 'Heartbeat',
           'IterationTimes', 'JobLog', 'Plots', 'RecipeSchedule', 'RunEnd', 'SkippedImages', 'TensorBoard',
           'Validation']
