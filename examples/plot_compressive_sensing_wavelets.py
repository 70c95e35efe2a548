"""
Compressive sensing: wavelets, with and without momentum
========================================================

Random measurements, a third as many as there are pixels, determine an image that has few wavelet
coefficients. Iterative soft thresholding (ISTA) finds it. With momentum (FISTA) it needs far fewer steps
for the same image.
"""

# %%
import numpy as np

from skinverse import Tikhonov, WaveletRecon
from skinverse.datasets import load_photographs
from skinverse.displays import ConvergenceDisplay, ReconstructionDisplay
from skinverse.operators import structurally_random

photographs = load_photographs(64, subset="test")[:2]
A = structurally_random((64, 64), 64 * 64 // 3, random_state=0)
data = np.stack([A @ x.ravel() for x in photographs.astype(float)])
data += 0.01 * np.random.default_rng(0).normal(size=data.shape)

# %%
reconstructions = {
    "Tikhonov": Tikhonov(A, lam=1e-2).fit().predict(data),
    "Haar": WaveletRecon(A, lam=0.01, wavelet_order=1).fit().predict(data),
    "Daubechies 4": WaveletRecon(A, lam=0.01).fit().predict(data),
}
ReconstructionDisplay.from_predictions(photographs, reconstructions, data_range=1.0)

# %%
# Both solvers have the same minimiser, and momentum reaches it earlier.
display = ConvergenceDisplay.from_estimator(
    WaveletRecon(A, lam=0.01, solver="fista").fit(), photographs, data, name="FISTA"
)
ConvergenceDisplay.from_estimator(
    WaveletRecon(A, lam=0.01, solver="ista").fit(), photographs, data, name="ISTA", ax=display.ax_
)
