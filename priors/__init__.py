"""Priors: what images look like before any measurement, as denoisers ``prior(x, sigma) = E[x0 | x0 + sigma n = x]``."""

from invdiff.priors.analytic import Gaussian, GaussianMixture, GaussianPosterior, MixturePosterior
from invdiff.priors.cards import describe
from invdiff.priors.compose import Product
from invdiff.priors.condition import ClassifierFree, cfg_plus_plus
from invdiff.priors.covariance import Covariance, Dense, Diagonal, LowRank, Stationary
from invdiff.priors.data import from_hounsfield, to_hounsfield
from invdiff.priors.from_modules import AzulaPrior, KarrasPrior
from invdiff.priors.latent import LatentPrior
from invdiff.priors.network import DenoisingUNet, NetworkConfig
from invdiff.priors.patches import Patched, Slices
from invdiff.priors.recipe import Recipe
from invdiff.priors.registry import card, load, names
from invdiff.priors.sampling import sample
from invdiff.priors.training import train
from invdiff.priors.wrap import Prior, as_prior

__all__ = [
    "AzulaPrior",
    "ClassifierFree",
    "Covariance",
    "DenoisingUNet",
    "Dense",
    "Diagonal",
    "Gaussian",
    "GaussianMixture",
    "GaussianPosterior",
    "KarrasPrior",
    "LatentPrior",
    "LowRank",
    "MixturePosterior",
    "NetworkConfig",
    "Patched",
    "Prior",
    "Product",
    "Recipe",
    "Slices",
    "Stationary",
    "as_prior",
    "card",
    "cfg_plus_plus",
    "describe",
    "from_hounsfield",
    "load",
    "names",
    "sample",
    "to_hounsfield",
    "train",
]
