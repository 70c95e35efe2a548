"""
PET: an image of few counts
===========================

A scanner has counted 100 000 events. Most of them come from the patient, weakened by the tissue that they
pass; a fifth are random coincidences. :class:`~skinverse.MLEM` and its fast form with ordered subsets (OSEM)
stop before they fit the noise. Total variation needs no stop.
"""

# %%
# The activity is that of a chest, with the ring of the heart and two lesions. The tissue attenuates the
# photons, and the lungs do so less; pixels are 4 mm wide.
import numpy as np
import pylops

from skinverse import MLEM, TotalVariationRecon
from skinverse.displays import ReconstructionDisplay
from skinverse.noise import Poisson
from skinverse.operators import parallel_beam

size = 96
v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]


def disc(column, row, width, height):
    """Pixels within an ellipse."""
    return ((u - column) / width) ** 2 + ((v - row) / height) ** 2 < 1


body, heart = disc(0, 0, 0.9, 0.65), disc(0.15, 0.1, 0.24, 0.22)
lungs = (disc(-0.42, -0.05, 0.28, 0.42) | disc(0.42, -0.05, 0.28, 0.42)) & ~heart
hot = (heart & ~disc(0.15, 0.1, 0.13, 0.12)) | disc(-0.45, 0.05, 0.07, 0.07) | disc(-0.6, -0.4, 0.06, 0.06)
activity = np.select([hot, lungs, body], [4.0, 0.3, 1.0], 0.0)
attenuation = np.select([lungs, body], [0.003, 0.0096], 0.0)  # per mm

# %%
# Along each line of response, the attenuation factor is the share of the photons that arrive. The scanner is
# then a composition: project, and multiply by these factors.
angles = np.linspace(0, np.pi, 96, endpoint=False)
project = parallel_beam((size, size), angles, 137)
factors = np.exp(-4.0 * (project @ attenuation))
A = pylops.Diagonal(factors) @ project

# %%
# Random coincidences are a background: they are expected everywhere, and belong to no place of the image.
activity *= 80_000 / (A @ activity).sum()
randoms = np.full(A.dimsd, 20_000 / np.prod(A.dimsd))
noise = Poisson(background=randoms)
X_true, Y_meas = activity[None], noise.sample((A @ activity)[None], random_state=0)
print(f"{Y_meas.sum():.0f} counts, {Y_meas.mean():.1f} in a line of response")

# %%
# With early stopping, the iterations end when the image explains the counts as well as the true one would.
# OSEM gets there in fewer passes through the data. A hundred iterations fit the noise. Total variation
# chooses its weight from the counts.
methods = {
    "MLEM, 100": MLEM(A, noise=noise, max_steps=100),
    "MLEM, stopped": MLEM(A, noise=noise, early_stopping=True),
    "OSEM, stopped": MLEM(A, noise=noise, n_subsets=8, early_stopping=True),
    "TV": TotalVariationRecon(A, noise=noise),
}
X_hat = {}
for name, method in methods.items():
    X_hat[name], info = method.fit().predict(Y_meas, return_info=True)
    print(f"{name:15s}{info['n_steps'][0]:5d} steps")
ReconstructionDisplay.from_predictions(X_true, X_hat, Y_meas=Y_meas, errors=False, cmap="inferno")
