"""Priors: what images look like before any measurement, as denoisers ``prior(x, sigma) = E[x0 | x0 + sigma n = x]``."""

from invdiff.priors.analytic import Gaussian, GaussianMixture, GaussianPosterior, MixturePosterior
from invdiff.priors.covariance import Covariance, Dense, Diagonal, LowRank, Stationary
from invdiff.priors.from_modules import AzulaPrior, KarrasPrior
from invdiff.priors.network import DenoisingUNet, NetworkConfig
from invdiff.priors.recipe import Recipe
from invdiff.priors.registry import card, load, names
from invdiff.priors.training import train
from invdiff.priors.wrap import Prior, as_prior

__all__ = [
    "AzulaPrior",
    "Covariance",
    "DenoisingUNet",
    "Dense",
    "Diagonal",
    "Gaussian",
    "GaussianMixture",
    "GaussianPosterior",
    "KarrasPrior",
    "LowRank",
    "MixturePosterior",
    "NetworkConfig",
    "Prior",
    "Recipe",
    "Stationary",
    "as_prior",
    "card",
    "load",
    "names",
    "train",
]
