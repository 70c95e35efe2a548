"""
Deblurring with every method
============================

Each method of the package reconstructs the same blurred, noisy photographs. A search finds the weight
``lam`` of a classical method, or the number of steps where steps regularise; a learned method finds its
own. Four photographs are few to learn from: the example shows how to call the methods, and not how good
they are.
"""

# %%
import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

import skinverse
from skinverse import Trainer
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay
from skinverse.estimators import BaseReconstructor
from skinverse.metrics import psnr, ssim

X_train, Y_train, A = make_problem("deblurring", n_samples=4, size=32, noise=0.05, random_state=0)
X_test, Y_test, _ = make_problem("deblurring", n_samples=2, size=32, noise=0.05, random_state=1)

# %%
# The methods are those of the public list, so that a new one appears here by itself. (Model adaptation has an
# example of its own, since it takes another method to another operator.)
public = [getattr(skinverse, name) for name in skinverse.__all__ if name != "ModelAdaptation"]
methods = [c(A) for c in public if isinstance(c, type) and issubclass(c, BaseReconstructor)]

trainer = Trainer(max_epochs=60, lr=2e-3, final_lr=2e-4, max_grad_norm=1.0, validation_fraction=0.0)
# Bilevel learning reconstructs all images in every step: fewer epochs have to do.
few = Trainer(max_epochs=8, lr=1e-2, final_lr=1e-2, validation_fraction=0.0)


def tuned(method):
    """The method, trained for a moment, or with the best of three weights or numbers of steps."""
    known = method.get_params(deep=False)
    if "trainer" in known:
        chosen = few if "hypergradient" in known else trainer
        trainers = dict.fromkeys({"trainer", "pretrainer"} & known.keys(), chosen)
        return method.set_params(**trainers).fit(X_train, Y_train)
    grids = {"lam": [1e-3, 1e-2, 1e-1], "max_steps": [2, 5, 10]}
    grid = next(({name: values} for name, values in grids.items() if name in known), {})
    return GridSearchCV(method, grid, cv=2, error_score="raise").fit(X_train, Y_train)


# %%
# The searches and trainings have not seen the photographs of the test.
reconstructions = {}
print(f"{'method':32s}{'PSNR':>8s}{'SSIM':>8s}")
for method in methods:
    name = type(method).__name__.removesuffix("Recon")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weights far from the best one may take longer
        try:
            reconstructions[name] = tuned(method).predict(Y_test)
        except TypeError:  # two formulas invert other operators: projections, sampled Fourier transforms
            print(f"{name:32s}     not for this operator")
            continue
    x = reconstructions[name]
    print(f"{name:32s}{psnr(X_test, x).mean():8.2f}{ssim(X_test, x).mean():8.3f}")

# %%
ReconstructionDisplay.from_predictions(X_test, reconstructions, Y_meas=Y_test, errors=False)
