"""
CT: Landweber against Kaczmarz, and when to stop
================================================

Both methods descend on the data misfit from a black image. The image appears first and the noise later:
the PSNR rises and then slowly falls again (semi-convergence), so the number of steps regularises.
Kaczmarz uses a few projection angles at a time and needs a fraction of the sweeps.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

from skinverse import Kaczmarz, Landweber
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay

images, data, A = make_problem("ct", n_samples=2, size=64, noise=0.05, random_state=0)
steps = [1, 2, 4, 8, 16, 32, 64, 128]
scores = {
    "Landweber": [Landweber(A, max_steps=k).fit().score(images, data) for k in steps],
    "Kaczmarz": [Kaczmarz(A, max_steps=k, relaxation=0.3).fit().score(images, data) for k in steps],
}
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, values in scores.items():
    axes.semilogx(steps, values, marker="o", label=name)
axes.set(xlabel="sweeps through the data", ylabel="mean PSNR (dB)")
axes.legend()

# %%
# Where the noise level is known, the iteration of each image stops by itself.
noise_std = 0.05 * np.abs(data).mean()
reconstructions, sweeps = {}, {}
for method in (Landweber(A, max_steps=500), Kaczmarz(A, max_steps=100, relaxation=0.3)):
    name = type(method).__name__
    stopped = method.set_params(noise=noise_std).fit()
    reconstructions[name], info = stopped.predict(data, return_info=True)
    sweeps[name] = info.n_steps
ReconstructionDisplay.from_predictions(images, reconstructions, Y_meas=data)

# %%
# These are the numbers of sweeps of the two images.
print({name: numbers.tolist() for name, numbers in sweeps.items()})
