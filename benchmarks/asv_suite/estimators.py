"""Times of every public estimator on small problems."""

from __future__ import annotations

import inspect
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning

import skinverse
from skinverse.datasets import make_problem
from skinverse.estimators import BaseReconstructor


def estimator_names() -> list[str]:
    things = {name: getattr(skinverse, name) for name in skinverse.__all__ if name != "ModelAdaptation"}
    return [name for name, t in things.items() if inspect.isclass(t) and issubclass(t, BaseReconstructor)]


class Estimator:
    """Eight images; a new method is timed as soon as it is in the public list."""

    params = (estimator_names(), ["ct", "mri"])
    param_names = ("estimator", "problem")
    timeout = 300

    def setup(self, name: str, problem: str) -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore", ConvergenceWarning)
        self.images, self.data, operator = make_problem(
            problem, n_samples=8, size=32, noise=0.05, random_state=0
        )
        estimator = getattr(skinverse, name)(operator)
        if "trainer" in estimator.get_params():
            estimator.set_params(trainer=skinverse.Trainer(max_epochs=1))
        self.estimator = estimator.fit(self.images, self.data)

    def time_fit(self, name: str, problem: str) -> None:
        self.estimator.fit(self.images, self.data)

    def time_predict(self, name: str, problem: str) -> None:
        self.estimator.predict(self.data)
