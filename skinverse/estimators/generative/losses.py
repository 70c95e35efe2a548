"""What the generative model is trained with: evidence bounds, one number per image."""

from __future__ import annotations

import torch
from torch import Tensor

from skinverse.estimators.generative.model import GenerativeModel

# Draws of the latent variables in an evidence bound that is reported.
_N_DRAWS = 16


def mean_loss(model: GenerativeModel, x: Tensor) -> Tensor:
    """Negative evidence bound per value, ``(-E_q log N(x; G(z), s^2 I) + KL(q || N(0, I))) / n_values``.

    The standard deviation ``s`` is one for all pixels and learned too, and ``q`` is drawn from once.
    """
    mu, log_variance = model.encode(x)
    z = _draw(mu, log_variance)
    error = (x - model.mean(z)).square().flatten(1)
    log_likelihood = -0.5 * error.sum(1) * (-2 * model.log_std).exp() - error.shape[1] * model.log_std
    return (kl_divergence(mu, log_variance) - log_likelihood) / error.shape[1]


def covariance_loss(model: GenerativeModel, x: Tensor) -> Tensor:
    """``-log N(x + noise; G(z), Sigma(z)) / n_values`` with encoder and mean held.

    The noise is as strong as the floor of the standard deviations. Without noise and floor the likelihood of
    a background that never varies would be infinite.
    """
    with torch.no_grad():
        z = _draw(*model.encode(x))
        noisy, mean = x + model.floor * torch.randn_like(x), model.mean(z)
    return -model.gaussian_around(mean, z).log_prob(noisy) / x[0].numel()


@torch.no_grad()
def evidence_bound(model: GenerativeModel, x: Tensor) -> Tensor:
    """``E_q log N(x; G(z), Sigma(z)) - KL(q || N(0, I)) <= log p(x)``, (n,)."""
    mu, log_variance = model.encode(x)
    rng, total = torch.Generator().manual_seed(0), torch.zeros_like(x[:, 0, 0, 0])
    for _ in range(_N_DRAWS):
        noise = torch.randn(1, model.n_latent, generator=rng).to(x)  # the same for all images
        total += model.gaussian(mu + (0.5 * log_variance).exp() * noise).log_prob(x)
    return total / _N_DRAWS - kl_divergence(mu, log_variance)


def kl_divergence(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of ``N(mu, diag v)`` from ``N(0, I)``, (n,)."""
    return 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(1)


def _draw(mu: Tensor, log_variance: Tensor) -> Tensor:
    """``z ~ N(mu, diag v)``, differentiable by both."""
    return mu + (0.5 * log_variance).exp() * torch.randn_like(mu)
