"""Learned energies, image -> number: torch modules with weights, and what is proven about them."""

from skinverse.energies._base import Energy, ModuleEnergy
from skinverse.energies._base import WeightedEnergy as WeightedEnergy
from skinverse.energies._convex import ConvexEnergy
from skinverse.energies._factory import make_energy
from skinverse.energies._network import GradientStepEnergy, NetworkEnergy, REDEnergy
from skinverse.energies._ridge import RidgeEnergy
from skinverse.energies._smooth import SmoothEnergy

__all__ = [
    "ConvexEnergy",
    "Energy",
    "GradientStepEnergy",
    "ModuleEnergy",
    "NetworkEnergy",
    "REDEnergy",
    "RidgeEnergy",
    "SmoothEnergy",
    "make_energy",
]
