"""``compile`` of priors made of others reaches the networks in them; torch.compile's counter stands for its slow back end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoints import vae
from torch import Tensor, nn

from invdiff import priors
from invdiff.priors.autoencoder import Autoencoder, AutoencoderConfig, latent_prior
from invdiff.priors.condition import Labelled
from invdiff.priors.schedule import Schedule, ScheduledPrior


def net(channels: int = 1) -> priors.DenoisingUNet:
    return priors.DenoisingUNet(channels=channels, widths=(8, 8), blocks=1).requires_grad_(False)


class Inner(nn.Module):
    """A network of another library: an image and a time, or a level an image, and maybe a class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.layer(x) / (1 + t.to(x).view(-1, 1, 1, 1))


class Conditional(priors.DenoisingUNet):
    def forward(self, x: Tensor, sigma: float | Tensor, condition: Any = None, **kwargs: Any) -> Tensor:
        return super().forward(x, sigma)


def scheduled() -> ScheduledPrior:
    return ScheduledPrior(Inner(), Schedule("ve", "score", (0.01, 50.0)), 1)


WRAPPED: dict[str, tuple[Callable[[], Any], int]] = {  # and the number of networks in it
    "Prior": (lambda: priors.Prior(net()), 1),
    "Patched": (lambda: priors.Patched(net(), 16, 4), 1),
    "Slices": (lambda: priors.Slices(net()), 1),
    "Product": (lambda: priors.Product([net(), net()], [0.5, 0.5]), 2),
    "ClassifierFree": (lambda: priors.ClassifierFree(Conditional(channels=1, widths=(8, 8), blocks=1).requires_grad_(False), 2.0), 1),
    "KarrasPrior": (lambda: priors.KarrasPrior(Inner()), 1),
    "ScheduledPrior": (scheduled, 1),
    "Labelled": (lambda: Labelled(scheduled(), 10, 3), 1),
}


def test_a_copy_of_a_compiled_network_has_its_own_weights() -> None:
    from torch._dynamo.testing import CompileCounter

    first, x = net(), torch.rand(1, 1, 16, 16)
    torch.nn.init.ones_(first.head.bias)  # type: ignore[arg-type]
    first.compile(backend=CompileCounter())
    second = copy.deepcopy(first)
    torch.nn.init.zeros_(second.head.bias)  # type: ignore[arg-type]
    assert not torch.equal(first(x, 0.3), second(x, 0.3)) and torch.equal(second(x, 0.3), net_of(second)(x, 0.3))


def net_of(other: priors.DenoisingUNet) -> priors.DenoisingUNet:
    found = net()
    found.load_state_dict(other.state_dict())
    return found


def test_functions_beside_a_network_are_left_as_they_are() -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    product = priors.Product([net(), lambda x, s: x], [0.5, 0.5])
    product.compile(backend=counter)
    product(torch.rand(1, 1, 16, 16), 0.3)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", WRAPPED)
def test_compile_reaches_the_networks_and_not_the_levels(name: str) -> None:
    from torch._dynamo.testing import CompileCounter  # takes a second to import

    torch._dynamo.reset()
    make, networks = WRAPPED[name]
    torch.manual_seed(0)
    prior, counter = make().eval(), CompileCounter()
    shapes = [(2, 1, 2, 16, 16), (2, 1, 3, 20, 24)] if name == "Slices" else [(2, 1, 16, 16), (3, 1, 20, 24)]
    more = {"condition": torch.tensor([3, 3, 3])} if name == "ClassifierFree" else {}
    calls = [(torch.rand(shape), sigma, {k: v[: shape[0]] for k, v in more.items()}) for shape in shapes for sigma in (0.05, 0.3, 2.0, 7.0)]
    wanted = [prior(x, sigma, **told) for x, sigma, told in calls]
    prior.compile(backend=counter)
    for (x, sigma, told), out in zip(calls, wanted):
        torch.testing.assert_close(prior(x, sigma, **told), out, rtol=0, atol=2e-2)
    assert networks <= counter.frame_count <= 2 * networks, f"{counter.frame_count} graphs"


def test_compile_reaches_denoiser_and_autoencoder_of_a_latent_prior() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    prior = latent_prior(net(4), Autoencoder(AutoencoderConfig(channels=1, widths=(8, 8), blocks=1)).requires_grad_(False))
    x, counter = torch.rand(1, 1, 16, 16), CompileCounter()
    z = prior.encode(x)
    wanted = (z, prior.decode(z), prior.denoiser(z, 0.3))
    prior.compile(backend=counter)
    for i, call in enumerate((lambda: prior.encode(x), lambda: prior.decode(z), lambda: prior.denoiser(z, 0.3))):
        torch.testing.assert_close(call(), wanted[i], rtol=0, atol=2e-2)
        assert counter.frame_count == i + 1


def test_compile_reaches_the_networks_of_an_autoencoder_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    from torch._dynamo.testing import CompileCounter

    from invdiff.priors.from_diffusers import Autoencoder

    torch._dynamo.reset()
    code, counter, x = Autoencoder(vae()), CompileCounter(), torch.rand(1, 3, 16, 16)
    z = code.encode(x)
    code.compile(backend=counter)
    torch.testing.assert_close(code.encode(x), z)
    half = counter.frame_count
    code.decode(z)
    assert 0 < half < counter.frame_count


def test_functions_are_not_compiled() -> None:
    with pytest.raises(TypeError, match=r"no module to compile; give it torch.compile\(function\)"):
        priors.as_prior(lambda x, sigma: x / (1 + sigma**2)).compile()
