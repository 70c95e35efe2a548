"""
Microscopy: from a TIFF stack to a TIFF stack
=============================================

A camera counts photons with noise of its own, and adds a constant. The point spread function has been
measured. Richardson-Lucy deconvolution and total variation take this noise as it is.
"""

# %%
# A simulated file takes the place of that of a microscope. Its truth, the specimen, serves for the scores
# alone.
import tempfile
from pathlib import Path

import tifffile

from skinverse import RichardsonLucy, TotalVariationRecon
from skinverse.datasets import make_microscopy_file
from skinverse.displays import ReconstructionDisplay
from skinverse.io import read_tiff
from skinverse.noise import PoissonGaussian
from skinverse.operators import convolution

folder = Path(tempfile.mkdtemp())
specimen, psf = make_microscopy_file(
    folder / "cells.tif", (6, 56, 56), gain=2.0, std=3.0, offset=100.0, random_state=0
)

# %%
# The specimen goes on beyond the borders of the stack. The operator's images are therefore larger than its
# data, by the size of the point spread function minus one.
stack = read_tiff(folder / "cells.tif")
dims = [n + k - 1 for n, k in zip(stack.image.shape, psf.shape, strict=True)]
A = convolution(psf, dims, boundary="valid")
camera = PoissonGaussian(gain=2.0, std=3.0, offset=100.0)  # from its data sheet

# %%
# Early stopping ends the iterations when the image explains the counts as well as the true one would. Total
# variation can be had in the same iteration, with a given weight, or on its own, where it chooses its weight
# from the counts.
Y_meas = stack.image[None]
methods = {
    "Richardson-Lucy": RichardsonLucy(A, noise=camera, early_stopping=True),
    "with TV": RichardsonLucy(A, noise=camera, lam=2e-3),
    "TV": TotalVariationRecon(A, noise=camera),
}
X_hat = {name: A.crop_to_data(method.fit().predict(Y_meas)) for name, method in methods.items()}

# %%
# The middle slices, of what lies on the data.
X_true = A.crop_to_data(specimen[None])
ReconstructionDisplay.from_predictions(X_true, X_hat, Y_meas=Y_meas, cmap="inferno")

# %%
# The result goes back into a file, with the voxel sizes of the measured one.
z, y, x = stack.spacing
tifffile.imwrite(
    folder / "deconvolved.tif",
    X_hat["TV"][0].astype("float32"),
    imagej=True,
    resolution=(1 / x, 1 / y),
    metadata={"axes": "ZYX", "spacing": z, "unit": "um"},
)
print(read_tiff(folder / "deconvolved.tif").spacing)
