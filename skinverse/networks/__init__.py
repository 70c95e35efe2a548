"""Networks, image -> image: smooth convolutional ones and ones that are 1-Lipschitz by construction."""

from skinverse.networks._convolutional import DnCNN, LocalCNN
from skinverse.networks._orthogonal import LipschitzCNN, OrthogonalConv2d, SmoothMaxMin

__all__ = ["DnCNN", "LipschitzCNN", "LocalCNN", "OrthogonalConv2d", "SmoothMaxMin"]
