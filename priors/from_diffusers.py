"""Pipelines of Hugging Face diffusers: the denoising network of each, in pixels or in the latent space of its autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.priors.schedule import Schedule, ScheduledPrior
from invdiff.priors.weights_io import one_line

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token", "torch_dtype", "variant")


class DiffusersPrior(ScheduledPrior):
    """A pixel network of diffusers; ``condition`` holds the tensors (1, ...) of a prompt, which the call may replace.

    ``prior(x, sigma, encoder_hidden_states=c)`` takes an embedding ``c`` (B, ...) of your own, differentiably.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, condition: dict[str, Tensor], **about: Any) -> None:
        super().__init__(net, schedule, **about)
        self.condition = nn.ParameterDict(condition)

    def raw(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        given = {name: c.expand(len(x_t), *c.shape[1:]) for name, c in self.condition.items()} | kwargs
        return self.net(x_t, timestep=t, **given).sample


class LatentDenoiser(DiffusersPrior):
    """A prior of latents ``z`` (B, channels, h, w), near mean 0 and spread 1, with the autoencoder they come from."""

    def __init__(
        self, net: nn.Module, schedule: Schedule, condition: dict[str, Tensor], vae: Any, **about: Any
    ) -> None:
        super().__init__(net, schedule, condition, pixels=(0.0, 1.0), mean=0.0, std=1.0, **about)
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.get("shift_factor") or 0.0)

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images (B, 3, H, W) in [0, 1]: ``z = scale (E(2x - 1) - shift)``, with the mean of a Gaussian ``E``."""
        code = self.vae.encode((2 * x - 1).to(self.vae.dtype))
        latents = code.latents if hasattr(code, "latents") else code.latent_dist.mode()
        return ((latents - self.shift) * self.scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Images in [0, 1], not clipped, of latents: ``x = (D(z / scale + shift) + 1) / 2``."""
        return ((self.vae.decode((z / self.scale + self.shift).to(self.vae.dtype)).sample + 1) / 2).to(z.dtype)


class FluxDenoiser(LatentDenoiser):
    """FLUX: the transformer sees each 2x2 patch of latents as one token, with its place, and times in [0, 1]."""

    def raw(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        h, w = x_t.shape[-2] // 2, x_t.shape[-1] // 2
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(h)), torch.arange(float(w))).to(x_t)
        words = kwargs.get("encoder_hidden_states", self.condition["encoder_hidden_states"]).shape[1]
        tokens = nn.functional.pixel_unshuffle(x_t, 2).flatten(2).mT
        out = super().raw(tokens, t / 1000, img_ids=places, txt_ids=x_t.new_zeros(words, 3), **kwargs)
        return nn.functional.pixel_shuffle(out.mT.unflatten(2, (h, w)), 2)


def load(name: str, *, prompt: str = "", guidance: float = 3.5, **options: Any) -> DiffusersPrior:
    """A prior from a folder written by ``save_pretrained``, or from a name on the Hugging Face hub (downloaded once).

    Pixels: DDPM, DDIM, variance-exploding score SDE. Latents (:class:`LatentDenoiser`): LDM, Stable Diffusion 1 and 2,
    Stable Diffusion 3 and FLUX, conditioned on ``prompt`` without classifier-free guidance; ``guidance`` is the number that
    FLUX's distilled network is told. ``options`` are those of ``DiffusionPipeline.from_pretrained``: ``torch_dtype``, or
    ``text_encoder_3=None, tokenizer_3=None`` for Stable Diffusion 3 without its largest text encoder.

    ``ImportError`` without the extra, ``ValueError`` for what is damaged or another kind of pipeline, ``ConnectionError``
    for a name that is neither on this machine nor to be downloaded.
    """
    pipe = _open(name, options)
    parts: dict[str, Any] = pipe.components
    net: Any = parts.get("unet") or parts.get("transformer")
    vae = parts.get("vae") or parts.get("vqvae")
    kind = type(net).__name__
    if kind not in NETWORKS:
        raise ValueError(
            f"{name}: a prior is made of {', '.join(NETWORKS)}; this pipeline has none of them, but {kind}"
        )
    channels, multiple = net.config.in_channels, net.config.get("patch_size", 1)
    if "block_out_channels" in net.config:
        multiple = 2 ** (len(net.config.block_out_channels) - 1)
        if net.config.out_channels not in (channels, 2 * channels) or net.config.get("addition_embed_type"):
            raise ValueError(
                f"{name}: its network needs more than a noisy image and a prompt (inpainting, upscaling, SDXL)"
            )
    schedule = _schedule(name, parts["scheduler"])
    with torch.no_grad():
        condition = NETWORKS[kind](pipe, prompt, guidance)
    if kind == "FluxTransformer2DModel":
        return FluxDenoiser(net, schedule, condition, vae, channels=channels // 4, multiple=2)
    if vae is not None:
        return LatentDenoiser(net, schedule, condition, vae, channels=channels, multiple=multiple)
    pixels = (0.0, 1.0) if schedule.path == "ve" else (-1.0, 1.0)
    return DiffusersPrior(net, schedule, condition, channels=channels, multiple=multiple, pixels=pixels)


# What each kind of network is told besides the noisy image and the time: a function of pipeline, prompt and guidance.


def _nothing(pipe: Any, prompt: str, guidance: float) -> dict[str, Tensor]:
    return {}


def _stable_diffusion(pipe: Any, prompt: str, guidance: float) -> dict[str, Tensor]:
    words, _ = pipe.encode_prompt(prompt, None, 1, False)
    return {"encoder_hidden_states": words}


def _stable_diffusion_3(pipe: Any, prompt: str, guidance: float) -> dict[str, Tensor]:
    words, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": words, "pooled_projections": pooled}


def _flux(pipe: Any, prompt: str, guidance: float) -> dict[str, Tensor]:
    words, pooled, _ = pipe.encode_prompt(prompt, None)
    told = {"guidance": torch.tensor([guidance])} if pipe.transformer.config.guidance_embeds else {}
    return {"encoder_hidden_states": words, "pooled_projections": pooled, **told}


NETWORKS = {
    "UNet2DModel": _nothing,
    "UNet2DConditionModel": _stable_diffusion,
    "SD3Transformer2DModel": _stable_diffusion_3,
    "FluxTransformer2DModel": _flux,
}


def _schedule(name: str, scheduler: Any) -> Schedule:
    """What the network was trained on; the steps a scheduler takes to sample from it do not matter here."""
    if hasattr(scheduler, "alphas_cumprod"):
        return Schedule.discrete(scheduler.alphas_cumprod, scheduler.config.get("prediction_type", "epsilon"))
    kind = type(scheduler).__name__
    if kind.startswith("FlowMatch"):
        return Schedule.flow(scheduler.config.num_train_timesteps)
    if kind == "ScoreSdeVeScheduler":
        return Schedule("ve", "score", (scheduler.config.sigma_min, scheduler.config.sigma_max))
    raise ValueError(
        f"{name}: its scheduler is neither of DDPM's family, nor flow matching, nor ScoreSdeVe; got {kind}"
    )


def _open(name: str, options: dict[str, Any]) -> Any:
    """A pipeline, from a folder or the hub, whose network and autoencoder are complete."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f'diffusers:{name} needs an extra: pip install "invdiff[diffusers]" ({error})') from error
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.count("/") != 1):
        raise ValueError(f"no pipeline at {name}: there is no such folder, and names on the hub are OWNER/NAME")
    hub = {key: value for key, value in options.items() if key in HUB}
    models: dict[str, Any] = {}
    try:
        index = diffusers.DiffusionPipeline.load_config(name, **hub)
        for part in index.keys() & {"unet", "transformer", "vae", "vqvae"}:
            cls = getattr(diffusers, index[part][1])
            models[part], report = cls.from_pretrained(name, subfolder=part, output_loading_info=True, **hub)
            if report["missing_keys"]:  # which diffusers fills with random numbers
                raise ValueError(f"the weights of its {part} lack {min(report['missing_keys'])}")
        return diffusers.DiffusionPipeline.from_pretrained(name, **models, **options)
    except Exception as error:  # libraries below raise whatever they like for damaged files
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise ConnectionError(
                f"{name} is no folder here and could not be downloaded ({one_line(error)}); get it from "
                f'https://huggingface.co/{name} and give its folder: priors.load("diffusers:FOLDER")'
            ) from error
        raise ValueError(f"{name} is not a readable pipeline of diffusers: {one_line(error)}") from error
