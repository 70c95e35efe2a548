# The public list: type checkers read it, and the package imports each name from here on first use.
# The common tests, the API pages, the benchmarks and the gallery run over every estimator named here.
from . import datasets as datasets
from . import displays as displays
from . import functionals as functionals
from . import metrics as metrics
from . import networks as networks
from . import operators as operators
from . import solvers as solvers
from ._versions import show_versions as show_versions
from .estimators._adaptation import ModelAdaptation as ModelAdaptation
from .estimators._adversarial import AdversarialRegularizer as AdversarialRegularizer
from .estimators._analytic import FilteredBackProjection as FilteredBackProjection
from .estimators._analytic import SpectralCutoff as SpectralCutoff
from .estimators._analytic import Tikhonov as Tikhonov
from .estimators._bilevel import BilevelRegularizer as BilevelRegularizer
from .estimators._direct import DirectInversion as DirectInversion
from .estimators._equilibrium import DeepEquilibriumRecon as DeepEquilibriumRecon
from .estimators._generative import GenerativeCovariancePrior as GenerativeCovariancePrior
from .estimators._iterative import Kaczmarz as Kaczmarz
from .estimators._iterative import Landweber as Landweber
from .estimators._postprocessing import PostProcessor as PostProcessor
from .estimators._regressor import ReconstructionRegressor as ReconstructionRegressor
from .estimators._sparse_coding import LISTA as LISTA
from .estimators._unrolled import LearnedGradientDescent as LearnedGradientDescent
from .estimators._unrolled import LearnedPrimalDual as LearnedPrimalDual
from .estimators._variational import TotalGeneralizedVariationRecon as TotalGeneralizedVariationRecon
from .estimators._variational import TotalVariationRecon as TotalVariationRecon
from .estimators._variational import WaveletRecon as WaveletRecon
from .estimators._variational_network import VariationalNetwork as VariationalNetwork
from .persistence import load as load
from .training import Trainer as Trainer

__version__: str
