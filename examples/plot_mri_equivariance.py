"""
MRI: networks that commute with turns and flips
===============================================

An object can lie in any orientation. A network that commutes with turns and flips by construction does
not have to learn each of them. It needs fewer images, and reconstructs orientations that were not in its
training.
"""

# %%
# There are six images to learn from, and a mask takes a quarter of the Fourier coefficients.
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skinverse import DeepEquilibriumRecon, Trainer
from skinverse.datasets import load_photographs, make_problem
from skinverse.displays import ReconstructionDisplay
from skinverse.metrics import psnr

photographs = load_photographs(48, n_patches=30, random_state=1)
images, data, A = make_problem("mri", noise=0.01, random_state=0, images=photographs)
X_train, X_test, Y_train, Y_test = images[:6], images[6:].real, data[:6], data[6:]

# %%
# Three networks of one width have the same training. A larger group has fewer weights. The training is
# short, and after it a few images do not quite reach their fixed points.
warnings.simplefilter("ignore", ConvergenceWarning)
pretrainer = Trainer(max_epochs=300, batch_size=6, lr=3e-3, final_lr=3e-4, validation_fraction=0.0)
trainer = Trainer(
    max_epochs=10, batch_size=6, lr=1e-3, final_lr=1e-4, max_grad_norm=1.0, validation_fraction=0.0
)
methods = {}
for network in ("dncnn", "dncnn_c4", "dncnn_d4"):
    method = DeepEquilibriumRecon(
        A,
        network=network,
        backward="jacobian_free",
        pretrainer=pretrainer,
        trainer=trainer,
        tol=1e-3,
        verbose=1,
    )
    methods[network] = method.fit(X_train.real, Y_train)

# %%
# The network commutes with turns, and the reconstruction does not: a turned object under the same mask is
# another problem.
reconstructions = {"zero-filled": np.stack([(A.H @ y.ravel()).reshape(A.dims).real for y in Y_test])}
reconstructions |= {name: method.predict(Y_test) for name, method in methods.items()}
names, quality = zip(*((name, psnr(X_test, x).mean()) for name, x in reconstructions.items()), strict=True)
weights = [sum(p.numel() for p in method.module_.network.parameters()) for method in methods.values()]
figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
axes.barh([names[0], *[f"{n}, {w} weights" for n, w in zip(names[1:], weights, strict=True)]], quality)
axes.set(xlabel="PSNR (dB)", xlim=(min(quality) - 1, None))
for name, value in zip(names, quality, strict=True):
    print(f"{name:12s} {value:.2f} dB")

# %%
ReconstructionDisplay.from_predictions(X_test[:2], {k: x[:2] for k, x in reconstructions.items()})
plt.show()
