"""Priors: what images look like before any measurement, as denoisers ``prior(x, sigma) = E[x0 | x0 + sigma n = x]``."""

from invdiff.priors.analytic import Gaussian, GaussianMixture, GaussianPosterior, MixturePosterior
from invdiff.priors.cards import describe
from invdiff.priors.covariance import Covariance, Dense, Diagonal, LowRank, Stationary
from invdiff.priors.data import from_hounsfield, to_hounsfield
from invdiff.priors.network import DenoisingUNet, NetworkConfig
from invdiff.priors.recipe import Recipe
from invdiff.priors.registry import card, load, names
from invdiff.priors.sampling import sample
from invdiff.priors.training import train
from invdiff.priors.wrap import Prior, as_prior

__all__ = [
    "Covariance",
    "DenoisingUNet",
    "Dense",
    "Diagonal",
    "Gaussian",
    "GaussianMixture",
    "GaussianPosterior",
    "LowRank",
    "MixturePosterior",
    "NetworkConfig",
    "Prior",
    "Recipe",
    "Stationary",
    "as_prior",
    "card",
    "describe",
    "from_hounsfield",
    "load",
    "names",
    "sample",
    "to_hounsfield",
    "train",
]
