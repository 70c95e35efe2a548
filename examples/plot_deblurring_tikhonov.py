"""
Deblurring: Tikhonov regularisation and its parameter
=====================================================

A small weight amplifies the noise, and a large one blurs. There are three ways to choose it: look at the
results of all weights, let ``GridSearchCV`` maximise the PSNR on known images, or use the noise level
(the discrepancy principle), which needs no true image at all.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skinverse import Tikhonov
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay

images, data, A = make_problem("deblurring", n_samples=8, size=64, noise=0.05, random_state=0)
noise_std = 0.05 * np.abs(data).mean()
lams = np.logspace(-4, 0, 13)
search = GridSearchCV(Tikhonov(A), {"lam": lams}, cv=4, error_score="raise").fit(images, data)

# %%
# The discrepancy principle chooses a weight for each image.
by_noise = Tikhonov(A, lam="discrepancy", noise=noise_std).fit()
X_hat, info = by_noise.predict(data, return_info=True)

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.semilogx(lams, search.cv_results_["mean_test_score"], marker="o", label="grid search")
axes.axhline(by_noise.score(images, data), color="C1", label="discrepancy principle")
axes.plot(info.lam, np.full(len(info.lam), axes.get_ylim()[0]), "C1|", markersize=12)
axes.set(xlabel="lam", ylabel="mean PSNR (dB)")
axes.legend()

# %%
# The discrepancy principle is known to smooth a little too much, and it does so here.
reconstructions = {
    "lam too small": Tikhonov(A, lam=1e-4).fit().predict(data[:2]),
    "grid search": search.predict(data[:2]),
    "discrepancy": X_hat[:2],
}
ReconstructionDisplay.from_predictions(images[:2], reconstructions, Y_meas=data[:2], errors=False)
