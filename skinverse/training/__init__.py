"""Training, module -> trained module: the one place that knows skorch."""

from skinverse.training._cache import TrainingCache
from skinverse.training._checkpoint import Checkpoint
from skinverse.training._loop import run
from skinverse.training._patches import crop, random_patches
from skinverse.training._phase import Loss, Phase, Score, Stateful
from skinverse.training._trainer import Trainer

__all__ = [
    "Checkpoint",
    "Loss",
    "Phase",
    "Score",
    "Stateful",
    "Trainer",
    "TrainingCache",
    "crop",
    "random_patches",
    "run",
]
