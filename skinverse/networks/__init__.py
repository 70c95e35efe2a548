"""Networks, image -> image: denoisers, equivariant ones, and ones that are 1-Lipschitz by construction."""

from skinverse.networks._base import prepared as prepared
from skinverse.networks._denoisers import DnCNN, GradientStepCNN, UNet
from skinverse.networks._factory import lipschitz_constant as lipschitz_constant
from skinverse.networks._factory import make_network
from skinverse.networks._groups import GroupConv, LiftConv, ProjectConv
from skinverse.networks._local import LocalCNN
from skinverse.networks._orthogonal import AOLConv2d, LipschitzCNN, OrthogonalConv2d, SmoothMaxMin

__all__ = [
    "AOLConv2d",
    "DnCNN",
    "GradientStepCNN",
    "GroupConv",
    "LiftConv",
    "LipschitzCNN",
    "LocalCNN",
    "OrthogonalConv2d",
    "ProjectConv",
    "SmoothMaxMin",
    "UNet",
    "make_network",
]
