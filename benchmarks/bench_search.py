"""GridSearchCV with an operator of 64 MiB: time against the fits alone, copies of it; import time."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pylops
import torch
from _record import write
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from skinverse import Tikhonov

SEED, N_PIXELS, N_DATA = 0, 4096, 2048  # float64: 64 MiB
LAMS, CV = np.logspace(-3, 2, 8), KFold(3)


def fits_alone(model: Tikhonov, images: np.ndarray, data: np.ndarray) -> float:
    """The search's 24 fits and scores in a plain loop on one shared operator."""
    start = time.perf_counter()
    for lam in LAMS:
        for train, test in CV.split(images):
            fitted = clone(model).set_params(lam=lam).fit(images[train], data[train])
            fitted.score(images[test], data[test])
    return time.perf_counter() - start


def search(model: Tikhonov, images: np.ndarray, data: np.ndarray, n_jobs: int) -> float:
    start = time.perf_counter()
    GridSearchCV(model, {"lam": LAMS}, cv=CV, n_jobs=n_jobs, refit=False, error_score="raise").fit(
        images, data
    )
    return time.perf_counter() - start


def largest_size(folder: Path, stop: threading.Event, found: list[int]) -> None:
    """What the workers are handed through memory maps, in bytes, at its largest."""
    while not stop.wait(0.05):
        sizes = [p.stat().st_size for p in folder.rglob("*.pkl") if p.exists()]
        found[0] = max(found[0], sum(sizes))


def peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def import_seconds() -> float:
    code = "import time; t = time.perf_counter(); import skinverse; print(time.perf_counter() - t)"
    runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    return statistics.median(runs)


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    operator = pylops.MatrixMult(rng.normal(size=(N_DATA, N_PIXELS)) / np.sqrt(N_DATA))
    images = rng.normal(size=(12, N_PIXELS))
    data = images @ operator.A.T
    model = Tikhonov(operator, max_steps=100)
    fits_alone(model, images, data)
    before, alone = peak_rss(), fits_alone(model, images, data)
    one_process = search(model, images, data, n_jobs=1)
    growth = peak_rss() - before
    with tempfile.TemporaryDirectory() as folder, joblib.parallel_config("loky", temp_folder=folder):
        stop, found = threading.Event(), [0]
        watch = threading.Thread(target=largest_size, args=(Path(folder), stop, found))
        watch.start()
        first = search(model, images, data, n_jobs=2)  # starts the workers, which import torch
        two_processes = search(model, images, data, n_jobs=2)
        stop.set()
        watch.join()
    start = time.perf_counter()
    for _ in range(100):
        clone(model)
    figures = {
        "operator_mib": operator.A.nbytes / 2**20,
        "fits_alone_s": alone,
        "search_one_process_s": one_process,
        "search_two_processes_s": two_processes,
        "search_two_processes_with_their_start_s": first,
        "ratio_one_process": one_process / alone,
        "ratio_two_processes_with_their_start": first / alone,
        "ratio_two_processes_running_already": two_processes / alone,
        "rss_growth_one_process_mib": growth,
        "memory_maps_two_processes_mib": found[0] / 2**20,
        "clone_ms": 10 * (time.perf_counter() - start),
        "import_s": import_seconds(),
    }
    write("search", figures, seeds=[SEED])


if __name__ == "__main__":
    main()
