"""Photographs cut from larger scenes and blurred: what each border costs, and how far into the image.

Total variation under "zero", "reflect" and "valid", with the weight that is best for "valid", and with the
best one of each border. The measure is the PSNR of what lies at least so many pixels within the data.
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

SIZE, WIDTHS, TRUNCATE, NOISE, SEED = 64, (2.0, 3.0), 3.0, 0.0005, 0
N_SCENES = 2  # of each photograph
BORDERS = ("zero", "reflect", "valid")
LAMS = (1e-5, 1e-3, 1e-1)
MARGINS = (0, 2, 4, 6, 8, 12, 16)
TARGETS = {"target_gain": 15.0}


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
    inner = {f"margin_{m}": (slice(None), slice(m, SIZE - m), slice(m, SIZE - m)) for m in MARGINS}
    return {name: scores("psnr", psnr(images[part], x[part], data_range=1.0)) for name, part in inner.items()}


def compare(width: float) -> dict[str, Any]:
    """All borders and weights for a blur of one width."""
    rng = np.random.default_rng(SEED)
    reach = 2 * int(TRUNCATE * width + 0.5)
    truth = gaussian_blur((SIZE + reach,) * 2, width, truncate=TRUNCATE, boundary="valid")
    whole = scenes(SIZE + reach, rng)
    clean = as_torch(truth)(torch.from_numpy(whole)).numpy()
    data, images = clean + NOISE * rng.standard_normal(clean.shape), truth.crop_to_data(whole)

    found: dict[str, dict[float, dict[str, Any]]] = {border: {} for border in BORDERS}
    seconds: dict[str, dict[float, float]] = {border: {} for border in BORDERS}
    for border in BORDERS:
        blur = gaussian_blur((SIZE, SIZE), width, truncate=TRUNCATE, boundary=border)
        A = truth if border == "valid" else blur
        for lam in LAMS:
            start = time.perf_counter()
            x = A.crop_to_data(TotalVariationRecon(A, lam=lam).fit().predict(data))
            seconds[border][lam] = time.perf_counter() - start
            found[border][lam] = judged(images, x)
    best = {
        border: max(LAMS, key=lambda lam, by_lam=by_lam: by_lam[lam]["margin_0"]["psnr"])
        for border, by_lam in found.items()
    }
    return {
        "best_lam": best,
        "same_lam": against_zero({border: found[border][best["valid"]] for border in BORDERS}),
        "own_lam": against_zero({border: found[border][best[border]] for border in BORDERS}),
        "seconds": seconds,
    }


def against_zero(found: dict[str, Any]) -> dict[str, Any]:
    gains = {margin: gain(found["valid"][margin], zero) for margin, zero in found["zero"].items()}
    return found | {"gain_of_valid_over_zero": gains}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of reconstructions with a border that the data contradict
    write("borders", {f"width_{width:g}": compare(width) for width in WIDTHS} | TARGETS, seeds=[SEED])


if __name__ == "__main__":
    main()
