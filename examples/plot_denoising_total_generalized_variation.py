"""
Denoising: slopes without stairs
================================

Total variation turns a slope into stairs. Total generalised variation does not penalise slopes, and keeps the
edges.
"""

# %%
# The picture has edges, slopes and a curve, and noise is added to it.
import matplotlib.pyplot as plt
import numpy as np

from skinverse import TotalGeneralizedVariationRecon, TotalVariationRecon
from skinverse.displays import ReconstructionDisplay

v, u = np.mgrid[0:1:96j, 0:1:96j]
picture = np.where(u + v < 1, 0.8 * u, 0.3 + 0.5 * v) + 0.4 * ((u - 0.6) ** 2 + (v - 0.4) ** 2 < 0.04) * (
    1 - u
)
X_true = picture[None]
Y_meas = X_true + 0.08 * np.random.default_rng(0).normal(size=X_true.shape)

# %%
# Without an operator the problem is denoising. The noise level chooses the amount of regularisation in
# both methods.
X_hat = {
    "TV": TotalVariationRecon(lam="discrepancy", noise=0.08).fit().predict(Y_meas),
    "TGV": TotalGeneralizedVariationRecon(lam="discrepancy", noise=0.08).fit().predict(Y_meas),
}
ReconstructionDisplay.from_predictions(X_true, X_hat, Y_meas=Y_meas)

# %%
# One row of the picture shows the difference.
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(X_true[0, 30], "k", linewidth=1, label="truth")
for name, x in X_hat.items():
    axes.plot(x[0, 30], label=name)
axes.set(xlabel="column", ylabel="value in row 30")
axes.legend()
