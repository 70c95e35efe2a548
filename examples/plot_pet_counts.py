"""
PET: an image of few counts
===========================

A scanner has counted 100 000 events. Most of them come from the patient, weakened by the tissue that they
pass; a fifth are random coincidences. :class:`~skinverse.MLEM` and its fast form with ordered subsets (OSEM)
stop before they fit the noise. Total variation needs no stop, and neither does an energy that was learned
from images of other patients.
"""

# %%
# The activity is that of a chest, with the ring of the heart and lesions. The tissue attenuates the photons,
# and the lungs do so less; pixels are 6 mm wide. No patient is like another one.
import numpy as np
import pylops

from skinverse import MLEM, AdversarialRegularizer, TotalVariationRecon, Trainer
from skinverse.displays import ReconstructionDisplay
from skinverse.noise import Poisson
from skinverse.operators import parallel_beam

size = 64
v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]


def disc(column, row, width, height):
    """Pixels within an ellipse."""
    return ((u - column) / width) ** 2 + ((v - row) / height) ** 2 < 1


def chest(rng):
    """Activity, and attenuation per mm, of a patient."""
    scale, shift = rng.uniform(0.85, 1.15, 4), rng.uniform(-0.08, 0.08, 2)
    column, row = 0.15 + shift[0], 0.1 + shift[1]
    body, heart = disc(0, 0, 0.9, 0.65 * scale[0]), disc(column, row, 0.24 * scale[1], 0.22 * scale[1])
    left, right = (disc(side, -0.05, 0.28 * scale[2], 0.42 * scale[2]) for side in (-0.42, 0.42))
    lungs = (left | right) & ~heart & body
    hot = heart & ~disc(column, row, 0.13 * scale[3], 0.12 * scale[3])
    for lesion in rng.uniform(-0.6, 0.6, (3, 2)):
        hot |= disc(*lesion, 0.07, 0.07) & body
    return np.select([hot, lungs, body], [4.0, 0.3, 1.0], 0.0), np.select([lungs, body], [0.003, 0.0096], 0.0)


activity, attenuation = chest(np.random.default_rng(0))

# %%
# Along each line of response, the attenuation factor is the share of the photons that arrive. The scanner is
# then a composition: project, and multiply by these factors.
angles = np.linspace(0, np.pi, 64, endpoint=False)
project = parallel_beam((size, size), angles, 91)
factors = np.exp(-6.0 * (project @ attenuation))
A = pylops.Diagonal(factors) @ project

# %%
# Random coincidences are a background: they are expected everywhere, and belong to no place of the image.
randoms = np.full(A.dimsd, 20_000 / np.prod(A.dimsd))
noise = Poisson(background=randoms)


def measured(images, seed):
    """Images whose photons are 80 000 counts on average, and such counts."""
    clean = np.stack([A @ x for x in images])
    scale = 80_000 / clean.sum((1, 2), keepdims=True)
    return scale * images, noise.sample(scale * clean, random_state=seed)


X_true, Y_meas = measured(activity[None], seed=0)
print(f"{Y_meas.sum():.0f} counts, {Y_meas.mean():.1f} in a line of response")

# %%
# With early stopping, the iterations end when the image explains the counts as well as the true one would.
# OSEM gets there in fewer passes through the data. A hundred iterations fit the noise. Total variation
# chooses its weight from the counts. The learned energy has seen four other patients in the same scanner:
# the best weight for them is taken. It is not convex, and ``fit`` warns that small changes of the data may
# lead to another minimum; ``energy="convex_ridge"`` has one only, with rounder edges.
others = measured(np.stack([chest(np.random.default_rng(k))[0] for k in range(1, 5)]), seed=1)
learned = AdversarialRegularizer(A, noise=noise, trainer=Trainer(n_steps=100, validation_fraction=0.0))
methods = {
    "MLEM, 100": MLEM(A, noise=noise, max_steps=100).fit(),
    "MLEM, stopped": MLEM(A, noise=noise, early_stopping=True).fit(),
    "OSEM, stopped": MLEM(A, noise=noise, n_subsets=8, early_stopping=True).fit(),
    "TV": TotalVariationRecon(A, noise=noise).fit(),
    "learned": learned.fit(*others),
}
X_hat = {}
for name, method in methods.items():
    X_hat[name], info = method.predict(Y_meas, return_info=True)
    print(f"{name:15s}{info['n_steps'][0]:5d} steps")
ReconstructionDisplay.from_predictions(X_true, X_hat, Y_meas=Y_meas, errors=False, cmap="inferno")
