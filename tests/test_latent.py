"""Latent priors, with a linear autoencoder and a Gaussian prior: then the posterior of the image is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invdiff import operators, priors, solve
from invdiff.operators import Linear
from invdiff.priors import Gaussian, LatentPrior, covariance
from invdiff.priors.weights_io import save_weights
from invdiff.samplers import Renoise
from invdiff.solvers import DPS

FACTOR = 2
SIZE = (1, 3, 4)  # of a latent; an image is (1, 6, 8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encode(x: Tensor) -> Tensor:
    """Averages of 2x2 pixels, from [0, 1] to a latent unit of its own."""
    return (F.avg_pool2d(x, FACTOR) - 0.5) / 0.2


def decode(z: Tensor) -> Tensor:
    return 0.5 + 0.2 * z.repeat_interleave(FACTOR, -2).repeat_interleave(FACTOR, -1)


def gaussian() -> Gaussian:
    return Gaussian(
        0.1, covariance.Diagonal(0.5 + torch.rand(SIZE, generator=torch.Generator().manual_seed(0)).double())
    )


def latent(denoiser: Any = None, **kwargs: Any) -> LatentPrior:
    return LatentPrior(denoiser or gaussian(), encode, decode, channels=1, factor=FACTOR, **kwargs)


class Blocks(Linear):
    """``y + mask / 2 = mask decode(z)``: the same problem written as a linear operator of the latent."""

    def __init__(self, mask: Tensor, noise: float) -> None:
        super().__init__(noise)
        self.mask = mask

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.mask * (decode(x) - 0.5)

    def A_adjoint(self, y: Tensor, *args: object, **kwargs: object) -> Tensor:
        return 0.2 * FACTOR**2 * F.avg_pool2d(self.mask * y, FACTOR)


MASK = operators.random_mask((6, 8), 0.6, seed=1).double()
NOISE = 0.1


def measurement(batch: int) -> Tensor:
    return operators.Inpainting(MASK, noise=NOISE).measure(decode(gaussian().sample(batch)), seed=0)


def test_images_are_drawn_from_the_posterior_of_the_latents() -> None:
    """DPS, which is near and not exact: means within a part of the posterior's spread, which they share, pixel by pixel."""
    y = measurement(2)
    result = solve(y, operators.Inpainting(MASK, noise=NOISE), latent(), "dps", samples=64, steps=60)
    assert result.samples.shape == (64, 2, 1, 6, 8) and type(result.solver).__name__ == "DPS" and result.nfe == 60
    exact = gaussian().posterior(y - MASK / 2, Blocks(MASK, NOISE))
    mean, std = decode(exact.mean), decode(exact.std[None]) - 0.5
    bias = ((result.x - mean) / std).square().mean().sqrt()
    ratio = result.std.square().mean().sqrt() / std.square().mean().sqrt()
    assert float(bias) < 0.25 and 0.7 < float(ratio) < 1.0, (bias, ratio)  # measured: 0.13 and 0.83
    assert float((result.x - mean).norm()) < 0.1 * float((decode(gaussian().mean[None]) - mean).norm())
    assert torch.equal(result.samples[..., ::2, ::2], result.samples[..., 1::2, 1::2])  # what the decoder can show
    assert 0.5 < float(result.residual.mean()) < 1.1


def test_it_is_dps_on_the_latents() -> None:
    """The same numbers as with the operator ``A(decode(z))`` written by hand."""
    y = measurement(2)
    through = solve(y, operators.Inpainting(MASK, noise=NOISE), latent(), "dps", samples=3, steps=8)
    by_hand = operators.Decoded(operators.Inpainting(MASK, noise=NOISE), decode, SIZE)
    plain = solve(y, by_hand, gaussian(), "dps", samples=3, steps=8)
    torch.testing.assert_close(through.samples, decode(plain.samples))
    torch.testing.assert_close(through.residual, plain.residual)


@pytest.mark.parametrize("name", ["dps", "reddiff"])
def test_rows_are_independent_and_masks_are_their_own(name: str) -> None:
    masks = torch.stack([operators.random_mask((1, 6, 8), 0.6, seed=i)[None] for i in range(3)]).double()
    A = operators.Inpainting(masks, noise=torch.tensor([0.1, 0.05, 0.1]))
    y = A.measure(decode(gaussian().sample(3)), seed=0)
    whole = solve(y, A, latent(), name, samples=2, steps=5).samples
    alone = solve(y[:1], operators.Inpainting(masks[:1], noise=0.1), latent(), name, samples=2, steps=5).samples
    chunks = solve(y, A, latent(), name, samples=2, steps=5, batch_size=2).samples
    torch.testing.assert_close(whole[:, :1], alone)
    torch.testing.assert_close(whole, chunks)


def test_odd_sizes_are_extended_and_cut() -> None:
    prior, x = latent(Gaussian(0.0, covariance.Diagonal(torch.ones(1, 4, 5)))), 0.5 + 0.1 * randn(2, 1, 7, 9)
    assert prior.latent_shape((1, 7, 9)) == (1, 4, 5) and prior.encode(x).shape == (2, 1, 4, 5)
    assert prior.project(x).shape == x.shape
    result = solve(x, operators.Denoising(0.1), prior, samples=2, steps=3)
    assert result.x.shape == x.shape


def test_projection() -> None:
    """Onto what the decoder can show, here orthogonal; twice is once."""
    x = 0.5 + 0.1 * randn(2, 1, 6, 8)
    once = latent().project(x)
    torch.testing.assert_close(latent().project(once), once)
    assert float(((x - once) * once).sum((1, 2, 3)).abs().max()) < 1e-12
    assert latent().project(x.float()).dtype == torch.float32


@pytest.mark.parametrize("size", [(24, 30), (21, 17), (8, 40)])
def test_tiles_are_those_of_the_whole(size: tuple[int, int]) -> None:
    seen: list[tuple[int, ...]] = []

    def blurred(x: Tensor) -> Tensor:
        """Sees one pixel around each, as the convolutions of a decoder."""
        seen.append(tuple(x.shape[-2:]))
        return F.avg_pool2d(x, 3, 1, 1)

    def make(tile: int | None) -> LatentPrior:
        return LatentPrior(
            gaussian(),
            lambda x: encode(blurred(x)),
            lambda z: blurred(decode(z)),
            channels=1,
            factor=2,
            tile=tile,
            overlap=8 if tile else None,
        )

    x = randn(2, 1, *size)
    whole, tiled = make(None), make(16)
    torch.testing.assert_close(tiled.encode(x), whole.encode(x))
    z = whole.encode(x)
    seen.clear()
    torch.testing.assert_close(tiled.decode(z), whole.decode(z))
    assert all(max(shape) <= 16 for shape in seen[:-1])


def test_tiles_can_be_changed_and_stay_checked() -> None:
    """A tile that is no multiple of the factor gave an image of another shape; one equal to its overlap, a division by zero."""
    prior, x = latent(), randn(1, 1, 40, 40)
    assert (prior.tile, prior.overlap) == (None, None)
    for tile, quarter in ((2, 0), (4, 2), (6, 2), (16, 4), (18, 4), (24, 6), (64, 16)):
        prior.tile = tile
        assert (prior.tile, prior.overlap) == (tile, quarter) and prior.project(x).shape == x.shape
    prior.overlap = 32
    assert (prior.tile, prior.overlap) == (64, 32)
    for tile, overlap in ((33, None), (64, 64), (64, 33), (16, 3), (0, None), (-8, 0), (16.5, None), ("16", None), (None, 8)):
        with pytest.raises(ValueError, match="multiples of the factor 2|at least 1, an overlap from 0 to half|an overlap is of tiles"):
            prior.set_tiles(tile, overlap)  # type: ignore[arg-type]
        assert (prior.tile, prior.overlap) == (64, 32)  # as before
    prior.tile = None
    assert (prior.tile, prior.overlap) == (None, None)


@pytest.mark.parametrize("source", ["ships", "trained", "diffusers", "there"])
def test_load_takes_tiles_for_every_prior_of_latents(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of: Any = {"ships": "mnist-latent", "trained": tmp_path / "mine.safetensors", "diffusers": "diffusers:FOLDER", "there": latent()}[source]
    if source == "trained":
        save_weights(priors.load("mnist-latent"), of)  # type: ignore[arg-type]
    if source == "diffusers":  # what is loaded matters not here
        monkeypatch.setattr("invdiff.priors.from_diffusers.load", lambda name: latent())
    prior = priors.load(of, tile=32)
    assert isinstance(prior, LatentPrior) and (prior.tile, prior.overlap) == (32, 8)
    assert priors.load(of, tile=32, overlap=16).overlap == 16
    with pytest.raises(ValueError, match="multiples of the factor"):
        priors.load(of, tile=33)


def test_load_refuses_tiles_for_priors_of_images() -> None:
    for options in ({"tile": 32}, {"overlap": 8}):
        with pytest.raises(TypeError, match=r"which mnist is not: priors.Patched\(prior, size, overlap\) tiles others"):
            priors.load("mnist", **options)


def test_a_denoiser_that_does_not_say_its_spread_is_of_unit_spread() -> None:
    prior = latent(lambda z, sigma: z / (1 + sigma**2))
    assert (prior.denoiser.mean, prior.denoiser.std) == (0.0, 1.0)
    assert latent().denoiser.std == gaussian().std
    assert len(list(LatentPrior(gaussian(), nn.Conv2d(1, 1, 1), decode).parameters())) == 2  # moved by .to(device)


def test_what_a_latent_prior_cannot_do_is_said() -> None:
    y, A = measurement(1), operators.Inpainting(MASK, noise=NOISE)
    for name in ("diffpir", "ddrm", "pigdm", "ddnm", "mcg"):
        with pytest.raises(
            ValueError, match="needs .* With a latent prior the operator acts behind a decoder"
        ) as error:
            solve(y, A, latent(), name)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="no denoiser of images; give it to solve"):
        latent()(y, 0.1)
    with pytest.raises(ValueError, match="multiples of the factor 2, got 15 and 8"):
        latent(tile=15, overlap=8)
    with pytest.raises(ValueError, match="an overlap from 0 to half"):
        latent(tile=8, overlap=6)
    with pytest.raises(ValueError, match="at least 1, got 0 and 8"):
        LatentPrior(gaussian(), encode, decode, channels=0)


def test_conditions_reach_the_latent_denoiser() -> None:
    def conditional(z: Tensor, sigma: float, condition: Tensor) -> Tensor:
        return gaussian()(z, sigma) + condition.view(-1, 1, 1, 1)

    y, A = measurement(2), operators.Inpainting(MASK, noise=NOISE)
    plain = solve(y, A, latent(), "dps", steps=3, samples=1).samples
    told = solve(
        y,
        A,
        latent(priors.Prior(conditional, mean=gaussian().mean, std=gaussian().std)),
        "dps",
        steps=3,
        samples=1,
        condition=[0, 1],
    ).samples
    assert float((plain - told)[:, 1].abs().max()) > 0.05


def test_a_prior_of_other_images_is_refused_before_any_evaluation() -> None:
    """Shapes that broadcast would hide it: a colour picture would come back gray."""

    def never(z: Tensor, sigma: float) -> Tensor:
        raise AssertionError("the denoiser was called")

    def pool(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)

    def gray(z: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(z[:, :1], scale_factor=2)

    latent = LatentPrior(never, pool, gray, channels=1, factor=2)
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\), the operator takes \(3, 8, 8\)"):
        solve(torch.zeros(1, 3, 8, 8), lambda x: x, latent, "dps", noise=0.1)


def test_auto_takes_dps_with_renewed_noise_for_latents() -> None:
    """Of linear operators, too: behind a decoder no proximal step is at hand."""
    y = measurement(1)
    result = solve(y, operators.Inpainting(MASK, noise=NOISE), latent(), steps=2, samples=1)
    assert "a prior of latents" in result.reason and result.solver == DPS(steps=2, sampler=Renoise(eta=1.0), weight=3.0, residual=1.0)
