"""Times of every public estimator on small problems."""

from __future__ import annotations

import inspect
import math
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning

import skinverse
from skinverse.datasets import make_problem
from skinverse.estimators import BaseReconstructor

# Every training is one epoch, the same one for all methods, whatever they would choose themselves.
ONE_EPOCH = skinverse.Trainer(
    max_epochs=1,
    batch_size=8,
    lr=1e-3,
    final_lr=1e-3,
    max_grad_norm=math.inf,
    validation_fraction=0.1,
    score_every=1,
)
# Each of these formulas inverts one kind of operator only.
NOT_FOR = {("FilteredBackProjection", "mri"), ("ZeroFilled", "ct")}


def estimator_names() -> list[str]:
    things = {name: getattr(skinverse, name) for name in skinverse.__all__ if name != "ModelAdaptation"}
    return [name for name, t in things.items() if inspect.isclass(t) and issubclass(t, BaseReconstructor)]


class Estimator:
    """Eight images; a new method is timed as soon as it is in the public list."""

    params = (estimator_names(), ["ct", "mri"])
    param_names = ("estimator", "problem")
    timeout = 300

    def setup(self, name: str, problem: str) -> None:
        if (name, problem) in NOT_FOR:
            raise NotImplementedError  # asv leaves the combination out
        torch.set_num_threads(1)
        warnings.simplefilter("ignore", ConvergenceWarning)
        self.images, self.data, operator = make_problem(
            problem, n_samples=8, size=32, noise=0.05, random_state=0
        )
        estimator = getattr(skinverse, name)(operator)
        trainers = {"trainer", "pretrainer"} & estimator.get_params(deep=False).keys()
        estimator.set_params(**dict.fromkeys(trainers, ONE_EPOCH))
        self.estimator = estimator.fit(self.images, self.data)

    def time_fit(self, name: str, problem: str) -> None:
        self.estimator.fit(self.images, self.data)

    def time_predict(self, name: str, problem: str) -> None:
        self.estimator.predict(self.data)
