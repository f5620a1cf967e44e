"""The denoising network, and the wrapper for any denoiser."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from deepinv.models import Denoiser, MedianFilter
from small_network import randn, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from invdiff import priors
from invdiff.priors import DenoisingUNet, Gaussian, NetworkConfig, as_prior, network

# Network


def test_images_of_a_batch_do_not_mix(net: DenoisingUNet, precision: Any) -> None:
    x, sigma = 0.5 + randn(3, 3, 24, 20), torch.tensor([0.05, 0.4, 3.0])
    together = net(x, sigma)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], float(sigma[i])), together[i : i + 1], **precision)
    assert float((net(x, 0.4) - together)[0].abs().max()) > 10 * precision["atol"]  # the noise level does matter


def test_odd_sizes_are_padded_by_reflection(net: DenoisingUNet, precision: Any) -> None:
    x = 0.5 + randn(2, 3, 37, 31)
    out = net(x, 0.3)
    assert out.shape == x.shape
    padded = F.pad(x, (0, 1, 0, 3), mode="reflect")
    torch.testing.assert_close(out, net(padded, 0.3)[..., :37, :31], **precision)
    assert net(x[..., :1, :2], 0.3).shape == (2, 3, 1, 2)  # too small to reflect


def test_a_pixel_depends_on_its_neighbourhood_only(net: DenoisingUNet, precision: Any) -> None:
    x = 0.5 + randn(1, 3, 96, 96)
    whole, part = net(x, 0.3), net(x[..., 16:80, 16:80], 0.3)
    torch.testing.assert_close(part[..., 28:36, 28:36], whole[..., 44:52, 44:52], **precision)


def test_gray_images_are_their_three_equal_channels(net: DenoisingUNet) -> None:
    x = 0.5 + randn(2, 1, 16, 12)
    out = net(x, 0.3)
    assert out.shape == x.shape
    torch.testing.assert_close(out, net(x.expand(-1, 3, -1, -1), 0.3).mean(1, keepdim=True), rtol=0, atol=1e-6)
    for channels, wrong in ((3, 2), (1, 3), (2, 1)):
        with pytest.raises(ValueError, match=rf"\(B, {channels}, H, W\)"):
            tiny(0, channels)(torch.zeros(1, wrong, 8, 8), 0.1)
    with pytest.raises(ValueError, match="batch axis"):
        net(x[0], 0.1)


def test_preconditioning_beyond_the_trained_range(net: DenoisingUNet, precision: Any) -> None:
    n = randn(1, 3, 16, 16)
    x = 0.2 + 0.1 * n
    torch.testing.assert_close(net(x, 1e-6), x, rtol=0, atol=1e-5)
    fresh = DenoisingUNet(NetworkConfig(widths=(8, 16), blocks=1, patch=2))  # its last layer is zero: F = 0
    torch.testing.assert_close(fresh(0.5 + 1e3 * n, 1e3), torch.full_like(n, 0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(fresh(x, 0.25), 0.5 + (x - 0.5) / 2)
    # Pure noise looks the same at every level past the range, as long as the network is told the same level.
    torch.testing.assert_close(net(0.5 + 1e3 * n, 1e3), net(0.5 + 1e4 * n, 1e4), rtol=0, atol=precision["atol"] + 1e-3)


def test_network_is_differentiable_and_keeps_float64(net: DenoisingUNet) -> None:
    double = tiny(seed=0).double()
    x = (0.5 + randn(1, 3, 8, 8).double()).requires_grad_()
    out = double(x, 0.3)
    assert out.dtype == torch.float64
    direction = randn(1, 3, 8, 8, seed=1).double()
    (grad,) = torch.autograd.grad((out * direction).sum(), x)
    step = randn(1, 3, 8, 8, seed=2).double()
    numeric = ((double(x + 1e-5 * step, 0.3) - double(x - 1e-5 * step, 0.3)) * direction).sum() / 2e-5
    torch.testing.assert_close((grad * step).sum(), numeric, rtol=1e-6, atol=0)
    torch.testing.assert_close(net(x.detach().float(), 0.3).double(), out.detach(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_round_less_than_the_noise(dtype: torch.dtype, net: DenoisingUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network removes is of the order of sigma, and so is its rounding; the image itself keeps its digits."""
    monkeypatch.setattr(network, "has_bf16", lambda device: False)
    rounded = tiny(seed=0).to(dtype)
    n, x0 = randn(1, 3, 16, 16), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for sigma in (0.0, 0.002, 0.02, 0.2, 2.0, 20.0):
        x = x0 + sigma * n
        out, double = rounded(x, sigma), rounded(x.double(), sigma)
        assert out.dtype == torch.float32 and double.dtype == torch.float64 and rounded(x.to(dtype), sigma).dtype == dtype
        assert float((out - net(x, sigma)).square().mean().sqrt()) <= 0.02 * sigma + 1e-7, sigma
        assert float((double - net(x, sigma)).square().mean().sqrt()) <= 0.02 * sigma + 1e-7, sigma


def test_compiled_once_for_many_sizes_and_every_level(net: DenoisingUNet) -> None:
    """torch.compile's own counter in place of its slow back end: one graph for each way to treat a size, whatever the level."""
    from torch._dynamo.testing import CompileCounter  # takes a second to import

    counter, compiled = CompileCounter(), tiny(seed=0)
    compiled.compile(backend=counter)
    for shape in ((1, 3, 16, 16), (4, 3, 24, 20), (3, 1, 37, 31)):
        x = 0.5 + randn(*shape)
        for sigma in (0.05, 0.31, 2.0, torch.full(shape[:1], 0.4)):
            torch.testing.assert_close(compiled(x, sigma), net(x, sigma), rtol=0, atol=1e-2)
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs"
    assert all(torch.equal(a, b) for a, b in zip(compiled.state_dict().values(), net.state_dict().values()))


# Any denoiser as a prior


class Shrink(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self.gain * x / (1 + sigma**2)


def test_functions_and_modules_become_priors() -> None:
    x, level = randn(2, 3, 4, 4), torch.full((2,), 0.5)
    for prior in (as_prior(lambda x, sigma: 2 * x / (1 + sigma**2)), as_prior(Shrink()), as_prior(Shrink().forward)):
        assert isinstance(prior, Denoiser)
        assert (prior.mean, prior.std, prior.sigma_min, prior.sigma_max) == (0.5, 0.25, 0.002, 20.0)
        for sigma in (0.5, level, level[:1], level[0]):  # (B,) would not broadcast against (B, C, H, W)
            torch.testing.assert_close(prior(x, sigma), 1.6 * x)
        assert as_prior(prior) is prior
    assert len(list(as_prior(Shrink()).parameters())) == 1  # so that .to(device) reaches them


def test_a_level_an_image_is_handed_on() -> None:
    seen: list[Any] = []

    def record(x: Tensor, sigma: float | Tensor) -> Tensor:
        seen.append(sigma)
        return x

    level = torch.tensor([0.1, 0.2])
    as_prior(record)(randn(2, 1, 4, 4), level)
    assert seen[0] is level


def test_metadata_of_the_denoiser_is_kept(net: DenoisingUNet) -> None:
    module = Shrink()
    module.mean, module.sigma_max = 0.0, 80.0  # type: ignore[assignment]
    module.std = module.forward  # type: ignore[assignment]  # a method of that name is no number
    prior = as_prior(module)
    assert (prior.mean, prior.std, prior.sigma_min, prior.sigma_max) == (0.0, 0.25, 0.002, 80.0)
    gaussian = Gaussian(0.5, torch.ones(1, 2, 2))
    for complete in (net, gaussian):
        assert as_prior(complete) is complete
    x = randn(1, 3, 8, 8)
    median = MedianFilter(kernel_size=3)
    assert torch.equal(as_prior(median)(x, 0.1), median(x, 0.1))


def test_load_takes_what_is_a_prior_already(net: DenoisingUNet) -> None:
    latent = priors.load("mnist-latent")
    assert priors.load(net) is net and priors.load(latent) is latent
    for denoiser in (Shrink(), lambda x, sigma: 2 * x / (1 + sigma**2)):
        torch.testing.assert_close(priors.load(denoiser)(torch.ones(2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 1.6))
    with pytest.raises(TypeError, match="a prior that is there takes none"):
        priors.load(net, label=3)
    for wrong in (None, 3, Shrink):
        with pytest.raises(TypeError, match=r"called as prior\(x, sigma\)"):
            priors.load(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 0.5, torch.zeros(3), "natural", Shrink])
def test_not_a_denoiser(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"called as prior\(x, sigma\)"):
        as_prior(wrong)


def test_import_adds_little_to_that_of_deepinv() -> None:
    code = (
        "import sys, deepinv.models, deepinv.physics; before = set(sys.modules); import invdiff.priors; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = {name for name in run.stdout.split() if not name.startswith("_")}
    assert added <= {"invdiff", "yaml", "PIL"}


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_images_are_floats_and_noise_levels_are_levels(sigma: float) -> None:
    net = DenoisingUNet(widths=(8, 8), blocks=1)
    with pytest.raises(ValueError, match="0 or more and finite"):
        net(torch.zeros(1, 3, 8, 8), sigma)
    with pytest.raises(TypeError, match=r"images are floats in \[0, 1\], got torch.uint8; x.float\(\) / 255"):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0.1)


LEVELS = [-0.1, float("nan"), float("inf"), 1e300, torch.tensor(-0.1), torch.tensor([0.1, -0.2]), torch.tensor([0.1, float("nan")]), torch.ones(3)]


@pytest.mark.parametrize("sigma", LEVELS, ids=str)
def test_noise_levels_that_are_none(sigma: float | torch.Tensor) -> None:
    net, x = DenoisingUNet(channels=1, widths=(8,), blocks=1), torch.rand(2, 1, 8, 8)
    for prior in (net, priors.KarrasPrior(lambda x, s: x)):
        with pytest.raises(ValueError, match="one for all images or one for each of 2"):
            prior(x, sigma)
    with pytest.raises(ValueError, match="images of shape"):
        net(x[:, :, :0], 0.1)


def test_a_prior_of_gray_images_says_so_of_colour() -> None:
    with pytest.raises(ValueError, match="gray images"):
        DenoisingUNet(channels=1, widths=(8,), blocks=1)(torch.zeros(1, 3, 8, 8), 0.1)
    with pytest.raises(ValueError, match=r"x\[None\]"):
        DenoisingUNet(channels=1, widths=(8,), blocks=1)(torch.zeros(1, 8, 8), 0.1)


def test_empty_batches() -> None:
    for prior in (DenoisingUNet(channels=1, widths=(8,), blocks=1), priors.as_prior(lambda x, s: x)):
        assert prior(torch.zeros(0, 1, 8, 8), torch.zeros(0)).shape == (0, 1, 8, 8)
