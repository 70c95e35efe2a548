# The public list: type checkers read it, and the package imports each name from here on first use.
# The common tests, the API pages, the benchmarks and the gallery run over every estimator named here.
from . import datasets as datasets
from . import displays as displays
from . import energies as energies
from . import functionals as functionals
from . import io as io
from . import metrics as metrics
from . import networks as networks
from . import noise as noise
from . import operators as operators
from . import preprocessing as preprocessing
from . import solvers as solvers
from . import testing as testing
from ._measurements import Measurements as Measurements
from ._versions import show_versions as show_versions
from .estimators._regressor import ReconstructionRegressor as ReconstructionRegressor
from .estimators.adaptation.model_adaptation import ModelAdaptation as ModelAdaptation
from .estimators.classical.analytic import FilteredBackProjection as FilteredBackProjection
from .estimators.classical.analytic import ZeroFilled as ZeroFilled
from .estimators.classical.expectation_maximisation import MLEM as MLEM
from .estimators.classical.expectation_maximisation import RichardsonLucy as RichardsonLucy
from .estimators.classical.iterative import Kaczmarz as Kaczmarz
from .estimators.classical.iterative import Landweber as Landweber
from .estimators.classical.spectral_cutoff import SpectralCutoff as SpectralCutoff
from .estimators.classical.tikhonov import Tikhonov as Tikhonov
from .estimators.classical.variational import TotalGeneralizedVariationRecon as TotalGeneralizedVariationRecon
from .estimators.classical.variational import TotalVariationRecon as TotalVariationRecon
from .estimators.classical.variational import WaveletRecon as WaveletRecon
from .estimators.equilibrium.deep_equilibrium import DeepEquilibriumRecon as DeepEquilibriumRecon
from .estimators.generative.covariance_prior import GenerativeCovariancePrior as GenerativeCovariancePrior
from .estimators.regularizers.adversarial import AdversarialRegularizer as AdversarialRegularizer
from .estimators.regularizers.bilevel import BilevelRegularizer as BilevelRegularizer
from .estimators.supervised.direct_inversion import DirectInversion as DirectInversion
from .estimators.supervised.post_processor import PostProcessor as PostProcessor
from .estimators.unrolled.gradient_descent import LearnedGradientDescent as LearnedGradientDescent
from .estimators.unrolled.lista import LISTA as LISTA
from .estimators.unrolled.primal_dual import LearnedPrimalDual as LearnedPrimalDual
from .estimators.unrolled.variational_network import VariationalNetwork as VariationalNetwork
from .persistence import load as load
from .training import Trainer as Trainer

__version__: str
