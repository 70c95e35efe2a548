"""Training, module -> trained module: the one place that knows skorch and accelerate."""

from skinverse.training._cache import TrainingCache
from skinverse.training._checkpoint import Checkpoint
from skinverse.training._loop import run
from skinverse.training._patches import crop, random_patches
from skinverse.training._phase import Loss, Phase, Score
from skinverse.training._processes import Alone, Processes
from skinverse.training._stateful import Stateful
from skinverse.training._trainer import Trainer

__all__ = [
    "Alone",
    "Checkpoint",
    "Loss",
    "Phase",
    "Processes",
    "Score",
    "Stateful",
    "Trainer",
    "TrainingCache",
    "crop",
    "random_patches",
    "run",
]
