"""
CT: a learned critic as regularizer
===================================

A critic learns to tell true images from filtered back-projections, then regularizes the reconstruction. It is
trained here for half a minute, on small patches; the benchmarks train it longer.
"""

# %%
# Pieces of photographs as objects: they have texture, which total variation knows nothing of.
import matplotlib.pyplot as plt
import numpy as np

from skinverse import AdversarialRegularizer, FilteredBackProjection, TotalVariationRecon, Trainer
from skinverse.datasets import load_photographs, make_problem
from skinverse.displays import ReconstructionDisplay
from skinverse.metrics import psnr

photographs = load_photographs(64, n_patches=44, random_state=0)
images, data, A = make_problem("ct", noise=0.02, random_state=0, images=photographs)
X_train, X_test, Y_train, Y_test = images[:40], images[40:], data[:40], data[40:]

# %%
# Training: ``fit`` takes images first and measurements second. Both sets happen to be pairs here, so the
# weights that reconstruct held-out images best are kept, and the weight of the critic is calibrated.
trainer = Trainer(max_epochs=40, lr=1e-2, lr_decay=0.1, score_every=20)
method = AdversarialRegularizer(A, trainer=trainer, bounds=(0, 1)).fit(X_train, Y_train)
f"lam {method.lam_:.3g}, scale {method.scale_:.3g}, weakly convex with modulus {method.weak_convexity_:.3g}"

# %%
# The loss does not tell when to stop; the PSNR of held-out reconstructions does.
epochs = [epoch for epoch in method.history_ if epoch["phase"] == "adversarial"]
scored = [epoch for epoch in epochs if "valid_score" in epoch]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot([epoch["epoch"] for epoch in epochs], [epoch["train_loss"] for epoch in epochs])
left.set(xlabel="epoch", ylabel="critic's loss")
right.plot([epoch["epoch"] for epoch in scored], [epoch["valid_score"] for epoch in scored], marker="o")
right.set(xlabel="epoch", ylabel="held-out PSNR (dB)")

# %%
# Total variation gets the weight that is best on the test images themselves.
tv = max(
    (TotalVariationRecon(A, lam=lam, bounds=(0, 1)).fit() for lam in np.logspace(-2, 0, 7)),
    key=lambda tv: tv.score(X_test, Y_test),
)
fbp = FilteredBackProjection(A, filter="hann").fit()
reconstructions = {"FBP": fbp.predict(Y_test), "TV": tv.predict(Y_test), "critic": method.predict(Y_test)}
for name, x in reconstructions.items():
    print(f"{name:8s}{psnr(X_test, x, data_range=1.0).mean():6.2f} dB")
ReconstructionDisplay.from_predictions(
    X_test[:2], {k: v[:2] for k, v in reconstructions.items()}, Y_meas=Y_test[:2], data_range=1.0
)
