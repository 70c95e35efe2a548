"""Counts: total variation under Poisson against Gaussian noise, and Richardson-Lucy against scikit-image.

Total variation: one photograph of 256 x 256 pixels behind a blur of two pixels, 20 counts on average. The
seconds are those until the objective is within 1e-3 of its minimum, which a long run finds.
Richardson-Lucy: seconds of one step for one image, and for a batch of 16.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _record import write
from skimage.data import camera
from skimage.restoration import richardson_lucy
from skimage.transform import resize

from skinverse import RichardsonLucy, TotalVariationRecon
from skinverse.noise import Gaussian, Poisson
from skinverse.operators import gaussian_blur

SIZE, WIDTH, MEAN_COUNTS, SEED = 256, 2.0, 20.0, 0
# Weights of total variation of about the best PSNR, in units of the negative log-likelihood.
LAM, ACCURACY = 0.15, 1e-3
STEPS, LONG = [round(20 * 1.15**k) for k in range(30)], 4000
N_STEPS, N_BATCH = 20, 16
TARGETS = {"target_ratio_of_times": 2.0, "target_one_image": 1.0, "target_batch": 5.0}


def total_variation(noise: Any, data: np.ndarray, A: Any) -> dict[str, Any]:
    """Steps and seconds until the objective is within the accuracy, image by image of a batch of one."""

    def run(n: int) -> tuple[float, float]:
        method = TotalVariationRecon(A, noise=noise, lam=LAM, bounds=(0, None), tol=0.0, max_steps=n).fit()
        start = time.perf_counter()
        _, info = method.predict(data, return_info=True)
        return float(info.objective[0]), time.perf_counter() - start

    least = run(LONG)[0]
    for n in STEPS:
        value, seconds = run(n)
        if value <= (1 + ACCURACY) * least:
            return {"n_steps": n, "seconds": seconds, "excess": value / least - 1}
    return {"n_steps": None, "seconds": None, "excess": value / least - 1}


def richardson(A: Any, image: np.ndarray, psf: np.ndarray) -> dict[str, Any]:
    """Seconds of a step of ours and of scikit-image's, of one image and of a batch."""
    batch = np.repeat(image[None], N_BATCH, 0)
    method = RichardsonLucy(A, max_steps=N_STEPS).fit()
    ours, ours_of_batch = (per_step(lambda y=y: method.predict(y)) for y in (batch[:1], batch))
    theirs = per_step(lambda: richardson_lucy(image, psf, num_iter=N_STEPS, clip=False))
    return {
        "seconds_per_step": {"one": ours, "batch": ours_of_batch, "scikit_image": theirs},
        "one_image_against_scikit_image": ours / theirs,
        "batch_faster_than_scikit_image": N_BATCH * theirs / ours_of_batch,
    }


def per_step(run: Callable[[], Any]) -> float:
    """The least of three runs."""
    run()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / N_STEPS


def main() -> None:
    """Measure, print and record."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    photograph = resize(camera() / 255, (SIZE, SIZE), anti_aliasing=True).astype(np.float32)
    A = gaussian_blur((SIZE, SIZE), WIDTH)
    clean = (A @ photograph) * MEAN_COUNTS / photograph.mean()
    counts = Poisson().sample(clean[None], SEED).astype(np.float32)
    of_counts = total_variation(Poisson(), counts, A)
    of_squares = total_variation(Gaussian(float(np.sqrt(MEAN_COUNTS))), counts, A)
    radius = int(4 * WIDTH + 0.5)
    profile = np.exp(-0.5 * (np.arange(-radius, radius + 1) / WIDTH) ** 2)
    psf = (np.outer(profile, profile) / profile.sum() ** 2).astype(np.float32)
    results = {
        "total_variation": {"poisson": of_counts, "gaussian": of_squares},
        "richardson_lucy": richardson(A, counts[0], psf),
    }
    if of_counts["seconds"] and of_squares["seconds"]:
        results["total_variation"]["ratio_of_times"] = of_counts["seconds"] / of_squares["seconds"]
    write("counts", results | TARGETS, seeds=[SEED])


if __name__ == "__main__":
    main()
