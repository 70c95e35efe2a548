"""Phantoms, photographs, complete problems, and simulated files of laboratories."""

from skinverse.datasets._laboratories import (
    make_data_exchange_file,
    make_fastmri_file,
    make_microscopy_file,
)
from skinverse.datasets._phantoms import make_ellipses, shepp_logan
from skinverse.datasets._photographs import load_photographs
from skinverse.datasets._problems import Problem, make_problem

__all__ = [
    "Problem",
    "load_photographs",
    "make_data_exchange_file",
    "make_ellipses",
    "make_fastmri_file",
    "make_microscopy_file",
    "make_problem",
    "shepp_logan",
]
