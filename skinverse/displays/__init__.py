"""Pictures of reconstructions and of how a method converges, in scikit-learn's Display style."""

from skinverse.displays._convergence import ConvergenceDisplay
from skinverse.displays._covariance import CovarianceDisplay
from skinverse.displays._reconstruction import ReconstructionDisplay

__all__ = ["ConvergenceDisplay", "CovarianceDisplay", "ReconstructionDisplay"]
