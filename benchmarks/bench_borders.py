"""Photographs cut from larger scenes and blurred: what each border costs, and how far into the image.

Total variation under "zero", "reflect" and "valid", with the weight that is best for "valid" and with the best
weight of each border. The measure is the PSNR of what lies at least so many pixels within the data.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
from _record import gain, scores, write
from skimage.data import camera, coins

from skinverse import TotalVariationRecon
from skinverse.metrics import psnr
from skinverse.operators import as_torch, gaussian_blur

SIZE, WIDTH, TRUNCATE, NOISE, SEED = 64, 2.0, 3.0, 0.0005, 0
N_SCENES = 2  # of each photograph
BORDERS = ("zero", "reflect", "valid")
LAMS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
MARGINS = (0, 2, 4, 6, 8, 12, 16)
TARGETS = {"target_gain": 15.0, "target_margin": 4}


def scenes(side: int, rng: np.random.Generator) -> np.ndarray:
    """Squares of photographs, in their own resolution."""
    found = []
    for photograph in (camera() / 255, coins() / 255):
        for _ in range(N_SCENES):
            i, j = (int(rng.integers(n - side)) for n in photograph.shape)
            found.append(photograph[i : i + side, j : j + side])
    return np.stack(found)


def judged(images: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    """The scores at each distance from the edge of the data."""
    ends = {f"margin_{m}": slice(m, SIZE - m) for m in MARGINS}
    return {
        name: scores("psnr", psnr(images[:, end, end], x[:, end, end], data_range=1.0))
        for name, end in ends.items()
    }


def mean(found: dict[str, Any]) -> float:
    return float(found["margin_0"]["psnr"])


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of reconstructions with a border that the data contradict
    rng = np.random.default_rng(SEED)
    reach = 2 * int(TRUNCATE * WIDTH + 0.5)
    operators = {
        border: gaussian_blur(
            (SIZE + reach * (border == "valid"),) * 2, WIDTH, truncate=TRUNCATE, boundary=border
        )
        for border in BORDERS
    }
    truth = operators["valid"]
    whole = scenes(SIZE + reach, rng)
    clean = as_torch(truth)(torch.from_numpy(whole)).numpy()
    data = clean + NOISE * rng.standard_normal(clean.shape)
    images = truth.crop_to_data(whole)

    found: dict[str, dict[float, dict[str, Any]]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for border, A in operators.items():
        found[border], seconds[border] = {}, {}
        for lam in LAMS:
            start = time.perf_counter()
            x = TotalVariationRecon(A, lam=lam).fit().predict(data)
            seconds[border][str(lam)] = time.perf_counter() - start
            found[border][lam] = judged(images, A.crop_to_data(x))
    best = {border: max(LAMS, key=lambda lam: mean(by_lam[lam])) for border, by_lam in found.items()}
    same = {border: by_lam[best["valid"]] for border, by_lam in found.items()}
    own = {border: by_lam[best[border]] for border, by_lam in found.items()}
    figures = {
        "best_lam": best,
        "same_lam": same,
        "own_lam": own,
        "gain_of_valid_over_zero_same_lam": {
            m: gain(same["valid"][m], same["zero"][m]) for m in same["zero"]
        },
        "gain_of_valid_over_zero_own_lam": {m: gain(own["valid"][m], own["zero"][m]) for m in own["zero"]},
        "seconds": seconds,
    }
    write("borders", figures | TARGETS, seeds=[SEED])


if __name__ == "__main__":
    main()
