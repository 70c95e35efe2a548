"""Images on disk against images in memory: seconds and peak memory of a training and of a reconstruction.

Two sparse files of 10 GB hold 10 240 images of 512 x 512 pixels and their noisy data; some of the rows have
been written, the others are zero. A training makes one pass through them. The control holds 512 pairs in
memory. Each run is a process of its own, whose largest resident memory is told by the system.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _record import write

from skinverse import PostProcessor, Tikhonov, Trainer

SIDE, N_STORED, N_HELD, N_WRITTEN, SEED = 512, 10240, 512, 256, 0
NOISE, BATCH_SIZE, N_STEPS_HELD = 0.1, 8, 192
TARGETS = {"target_peak_gb": 1.5, "target_relative_time": 1.1}


def stored(folder: Path, n: int) -> tuple[np.memmap, np.memmap]:
    """The two files, opened for reading."""
    shape = (n, SIDE, SIDE)
    names = folder / "images", folder / "data"
    return tuple(np.memmap(name, np.float32, "r", shape=shape) for name in names)  # type: ignore[return-value]


def make(folder: Path, n: int) -> None:
    """Two sparse files of which every so many rows are written."""
    rng = np.random.default_rng(SEED)
    images, data = (
        np.memmap(folder / k, np.float32, "w+", shape=(n, SIDE, SIDE)) for k in ("images", "data")
    )
    for i in range(0, n, n // N_WRITTEN):
        images[i] = np.kron(rng.random((8, 8), dtype=np.float32), np.ones((SIDE // 8, SIDE // 8), np.float32))
        data[i] = images[i] + NOISE * rng.standard_normal((SIDE, SIDE), dtype=np.float32)


def train(folder: Path, n: int, *, held: bool) -> dict[str, float]:
    """One pass of a denoising network through the pairs; seconds of a step without what comes before."""
    images, data = stored(folder, n)
    if held:
        images, data = np.array(images), np.array(data)
    n_epochs = max(1, N_STEPS_HELD * BATCH_SIZE // n)
    trainer = Trainer(max_epochs=n_epochs, batch_size=BATCH_SIZE, validation_fraction=0.0)
    start = time.perf_counter()
    method = PostProcessor(network="dncnn", patch_size=64, trainer=trainer).fit(images, data)
    seconds = time.perf_counter() - start
    training = sum(epoch["dur"] for epoch in method.history_)
    return {"seconds": seconds, "seconds_per_step": training / (n_epochs * n / BATCH_SIZE)}


def reconstruct(folder: Path, n: int, *, held: bool) -> dict[str, float]:
    """Tikhonov reconstructions of all data, written to a third file."""
    _, data = stored(folder, n)
    out = np.memmap(folder / "out", np.float32, "w+", shape=data.shape)
    method = Tikhonov(lam=0.1).fit()
    start = time.perf_counter()
    if held:
        data = np.array(data)
        start = time.perf_counter()
        out = method.predict(data)
    else:
        method.predict(data, out=out)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "seconds_per_image": seconds / n}


def measured(work: str, n: int, *, held: bool) -> dict[str, float]:
    """What a process of its own finds, with its largest memory."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        make(Path(folder), n)
        command = [sys.executable, __file__, work, folder, str(n), str(int(held))]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def alone(work: str, folder: str, n: str, held: str) -> None:
    """The work of one process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {"train": train, "reconstruct": reconstruct}[work](Path(folder), int(n), held=bool(int(held)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found | {"peak_gb": peak}))


def main() -> None:
    """Measure, print and record."""
    figures = {}
    for work, of in (("train", "seconds_per_step"), ("reconstruct", "seconds_per_image")):
        held, disk = measured(work, N_HELD, held=True), measured(work, N_STORED, held=False)
        figures[work] = {"in_memory": held, "on_disk": disk, "relative_time": disk[of] / held[of]}
        print(work, json.dumps(figures[work], indent=1), flush=True)
        write("large", figures | TARGETS, seeds=[SEED], finished=work == "reconstruct")


if __name__ == "__main__":
    alone(*sys.argv[1:]) if len(sys.argv) > 1 else main()
