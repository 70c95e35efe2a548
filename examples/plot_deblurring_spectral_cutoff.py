"""
Deblurring: singular values and the noise
=========================================

The singular values of a blur decay quickly, and beyond the first few the data are mostly noise. Truncated
singular value decomposition keeps the singular values above a threshold, and so shows which part of an
image can be recovered at all.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

from skinverse import SpectralCutoff
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay

images, data, A = make_problem("deblurring", n_samples=2, size=32, noise=0.02, random_state=0)
noise_std = 0.02 * np.abs(data).mean()
model = SpectralCutoff(A, lam="discrepancy", noise=noise_std).fit()
X_hat, info = model.predict(data, return_info=True)

# %%
# The decomposition is an attribute of the fitted estimator: singular values and singular images.
figure, axes = plt.subplots(1, 4, figsize=(11, 2.6), layout="constrained", width_ratios=[1.8, 1, 1, 1])
axes[0].semilogy(model.singular_values_)
axes[0].axvline(info.n_components[0], color="C1", linestyle="--", label="kept by the noise level")
axes[0].set(xlabel="index", ylabel="singular value")
axes[0].legend()
for ax, i in zip(axes[1:], (0, 20, 200), strict=True):
    ax.imshow(model.components_[i], cmap="gray")
    ax.set_title(f"singular image {i}")
    ax.set_axis_off()

# %%
reconstructions = {
    f"lam={lam:g}": SpectralCutoff(A, lam=lam).fit().predict(data) for lam in (0.1, 1e-2, 1e-4)
}
ReconstructionDisplay.from_predictions(
    images, reconstructions | {"discrepancy": X_hat}, Y_meas=data, errors=False
)
