"""
MRI and CT: the analytic inverses
=================================

:class:`~skinverse.FilteredBackProjection` inverts the Radon transform by a formula, and
:class:`~skinverse.ZeroFilled` inverts sampled Fourier data. Neither of them iterates. They give the first
image of any scan. Where the data are few, these images have artefacts, which the other methods have to
remove.
"""

# %%
# In this MRI problem four coils measure a part of the frequencies. The others count as zero, which causes
# blur and aliasing.
from skinverse import FilteredBackProjection, TotalVariationRecon, ZeroFilled
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay

images, data, A = make_problem("mri", n_samples=2, size=96, noise=0.05, random_state=0)
zero_filled = ZeroFilled(A).fit().predict(data)
total_variation = TotalVariationRecon(A, lam=3e-3).fit().predict(data)
ReconstructionDisplay.from_predictions(images, {"zero-filled": zero_filled, "TV": total_variation})

# %%
# In CT, the window trades noise against sharpness, from the ramp filter to the Hann window.
images, data, A = make_problem("ct", n_samples=1, size=96, noise=0.05, random_state=1)
filters = ["ramp", "cosine", "hann"]
windows = {name: FilteredBackProjection(A, filter=name).fit().predict(data) for name in filters}
ReconstructionDisplay.from_predictions(images, windows, Y_meas=data)

# %%
# These are the scores of the three windows, in dB.
for name in filters:
    print(f"{name:8s}{FilteredBackProjection(A, filter=name).fit().score(images, data):6.2f}")
