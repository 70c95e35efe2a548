"""
MRI: from a file of k-space to an image
=======================================

A file of fastMRI's layout holds what four coils measured of each slice: a quarter of the columns of k-space.
It does not hold the coils' sensitivities; those come from the same data.
"""

# %%
# A simulated file takes the place of a downloaded one. Its truth serves for the scores alone.
import tempfile
from pathlib import Path

import numpy as np

from skinverse import TotalVariationRecon, WaveletRecon, ZeroFilled
from skinverse.datasets import make_fastmri_file
from skinverse.displays import ReconstructionDisplay
from skinverse.io import read_fastmri
from skinverse.operators import estimate_coil_maps, fourier_sampling

path = Path(tempfile.mkdtemp()) / "head.h5"
X_true, _ = make_fastmri_file(path, random_state=0)

# %%
# The reader gives one slice. The ten columns around the zero frequency were measured without gaps: they
# calibrate the coils. So small a centre asks for a small kernel.
scan = read_fastmri(path, slices=slice(0, 1))
coil_maps = estimate_coil_maps(scan.kspace[0], n_calibration=10, kernel_size=4, centred=scan.centred)
A = fourier_sampling(scan.mask, coil_maps, centred=scan.centred)

# %%
# Missing columns alias the zero-filled image. Total variation chooses its weight from the data, and for
# wavelets it is given. The phantom is constant between edges, which is what total variation expects; a real
# head is not. Estimated maps leave the image's phase unknown, hence the moduli.
methods = {
    "zero-filled": ZeroFilled(A),
    "wavelets": WaveletRecon(A, lam=3e-3),
    "TV": TotalVariationRecon(A),
}
X_hat = {name: np.abs(method.fit().predict(scan.kspace)) for name, method in methods.items()}
ReconstructionDisplay.from_predictions(np.abs(X_true[:1]), X_hat)
