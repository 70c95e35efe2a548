"""
CT: a learned energy as regulariser
===================================

An energy is trained as a critic, which tells true images from filtered back-projections. It then
regularises the reconstruction. Here it is trained for less than a minute on small patches; the benchmarks
train it longer.
"""

# %%
# The objects are pieces of photographs. They have texture, which total variation does not model.
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
# ``fit`` takes images first and measurements second. The two sets are pairs here. Therefore the weights that
# reconstruct held-out images best are kept, and ``lam`` is calibrated.
trainer = Trainer(max_epochs=40, lr=1e-2, final_lr=1e-3, score_every=20)
method = AdversarialRegularizer(A, trainer=trainer, bounds=(0, 1), verbose=1).fit(X_train, Y_train)
print(f"lam {method.lam_:.3g}, scale {method.scale_:.3g}, weakly convex: {method.weak_convexity_:.3g}")

# %%
# The loss does not show when to stop; the PSNR of held-out reconstructions does.
epochs = [epoch for epoch in method.history_ if epoch["phase"] == "adversarial"]
scored = [epoch for epoch in epochs if "valid_score" in epoch]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot([epoch["epoch"] for epoch in epochs], [epoch["train_loss"] for epoch in epochs])
left.set(xlabel="epoch", ylabel="loss")
right.plot([epoch["epoch"] for epoch in scored], [epoch["valid_score"] for epoch in scored], marker="o")
right.set(xlabel="epoch", ylabel="held-out PSNR (dB)")

# %%
# Total variation gets the weight that is best on the test images themselves.
tv = max(
    (TotalVariationRecon(A, lam=lam, bounds=(0, 1), max_steps=4000).fit() for lam in np.logspace(-1.5, 0, 7)),
    key=lambda tv: tv.score(X_test, Y_test),
)
fbp = FilteredBackProjection(A, filter="hann").fit()
reconstructions = {
    "FBP": fbp.predict(Y_test),
    "TV": tv.predict(Y_test),
    "learned energy": method.predict(Y_test),
}
for name, x in reconstructions.items():
    print(f"{name:16s}{psnr(X_test, x, data_range=1.0).mean():6.2f} dB")
ReconstructionDisplay.from_predictions(
    X_test[:2], {k: v[:2] for k, v in reconstructions.items()}, Y_meas=Y_test[:2], data_range=1.0
)
