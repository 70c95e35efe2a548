"""
MRI and CT: the analytic inverses
=================================

:class:`~skinverse.FilteredBackProjection` is the formula that inverts the Radon transform; for sampled
Fourier data the same class is the zero-filled inverse. Neither iterates: they are the first image of any
scan, and where the data are few their artefacts are what the other methods have to remove.
"""

# %%
# MRI: four coils, part of the frequencies. What was not measured counts as zero, which blurs and aliases.
import numpy as np

from skinverse import FilteredBackProjection, TotalVariationRecon
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay

images, data, A = make_problem("mri", n_samples=2, size=96, noise=0.05, random_state=0)
zero_filled = FilteredBackProjection(A).fit().predict(data)
total_variation = TotalVariationRecon(A, lam=3e-3).fit().predict(data)
ReconstructionDisplay.from_predictions(images, {"zero-filled": zero_filled, "TV": total_variation})

# %%
# CT: the window trades noise against sharpness, from the ramp filter to the Hann window.
images, data, A = make_problem("ct", n_samples=1, size=96, noise=0.05, random_state=1)
filters = ["ramp", "cosine", "hann"]
windows = {name: FilteredBackProjection(A, filter=name).fit().predict(data) for name in filters}
ReconstructionDisplay.from_predictions(images, windows, Y_meas=data)

# %%
# The scores of the three, in dB.
(
    {name: round(FilteredBackProjection(A, filter=name).fit().score(images, data), 2) for name in filters},
    np.shape(data),
)
