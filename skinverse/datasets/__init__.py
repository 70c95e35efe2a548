"""Phantoms, photographs and complete problems: a seed gives images, data and operator."""

from skinverse.datasets._phantoms import make_ellipses, shepp_logan
from skinverse.datasets._photographs import load_photographs
from skinverse.datasets._problems import Problem, make_problem

__all__ = ["Problem", "load_photographs", "make_ellipses", "make_problem", "shepp_logan"]
