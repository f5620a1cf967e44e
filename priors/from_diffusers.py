"""Pipelines of Hugging Face diffusers: the denoising network of each, in pixels or in the latent space of its autoencoder."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

from invdiff.priors.condition import Labelled, Rows, Told, per_image
from invdiff.priors.latent import LatentPrior
from invdiff.priors.schedule import Schedule, ScheduledPrior
from invdiff.priors.weights_io import check_label, one_line

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token", "torch_dtype", "variant")


class DiffusersPrior(ScheduledPrior):
    """A network of diffusers; keywords of the call, such as ``encoder_hidden_states``, go to it."""

    def raw(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        return self.net(x_t, timestep=t, **kwargs).sample


class FluxPrior(DiffusersPrior):
    """FLUX: the transformer sees each 2x2 patch of latents as one token, with its place, and times in [0, 1]."""

    def raw(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        h, w = x_t.shape[-2] // 2, x_t.shape[-1] // 2
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(h)), torch.arange(float(w))).to(x_t)
        words = kwargs["encoder_hidden_states"].shape[1]
        tokens = nn.functional.pixel_unshuffle(x_t, 2).flatten(2).mT
        out = super().raw(tokens, t / 1000, img_ids=places, txt_ids=x_t.new_zeros(words, 3), **kwargs)
        return nn.functional.pixel_shuffle(out.mT.unflatten(2, (h, w)), 2)


class Prompted(Told):
    """A prior of what prompts describe: ``condition`` is a list of B of them, ``prompt`` stands in for none.

    ``encode`` makes the tensors (1, ...) of a prompt that the network is given, once for each prompt; the text encoders in it
    stay where they are when the prior moves. For Stable Diffusion 1 and 2, which are given nothing else, ``condition`` may
    also be the embedding (B, words, width), differentiably. ``ValueError`` for anything else.
    """

    def __init__(self, prior: DiffusersPrior, encode: Callable[[str], dict[str, Tensor]], prompt: str) -> None:
        super().__init__(prior)
        self.encode, self.prompt = encode, prompt
        self.known: dict[str, dict[str, Tensor]] = {}
        self.embeds = set(self._encoded(prompt, None)) == {"encoder_hidden_states"}

    def tell(self, condition: Rows | None, x: Tensor) -> dict[str, Tensor]:
        rows = per_image(self.prompt if condition is None else condition, len(x))
        dtype = next(self.prior.net.parameters()).dtype
        if isinstance(rows, list) and all(isinstance(row, str) for row in rows):
            told = [self._encoded(row, x.device) for row in rows]
            return {name: torch.cat([each[name] for each in told]).to(dtype) for name in told[0]}
        if isinstance(rows, Tensor) and rows.ndim == 3 and self.embeds:
            return {"encoder_hidden_states": rows.to(x.device, dtype)}
        what = f"a tensor of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else repr(rows)
        also = ", or their embedding (B, words, width)" if self.embeds else ""
        raise ValueError(f"this prior is told prompts, one for all images or one an image{also}; got {what}")

    def _encoded(self, prompt: str, device: torch.device | None) -> dict[str, Tensor]:
        if prompt not in self.known:
            with torch.no_grad():
                self.known[prompt] = self.encode(prompt)
        self.known[prompt] = {name: tensor.to(device) for name, tensor in self.known[prompt].items()}
        return self.known[prompt]


class Autoencoder(nn.Module):
    """An autoencoder of diffusers between images (B, 3, H, W) in [0, 1] and latents near mean 0 and spread 1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.get("shift_factor") or 0.0)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the two networks of the autoencoder, whose own methods ``encode`` and ``decode`` are no calls of a module."""
        for part in (self.vae.encoder, self.vae.decoder):
            part.compile(*args, **{"dynamic": True, **kwargs})

    def encode(self, x: Tensor) -> Tensor:
        """``z = scale (E(2x - 1) - shift)``, with the mean of a Gaussian ``E``."""
        code = self.vae.encode((2 * x - 1).to(self.vae.dtype))
        latents = code.latents if hasattr(code, "latents") else code.latent_dist.mode()
        return ((latents - self.shift) * self.scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """``x = (D(z / scale + shift) + 1) / 2``, not clipped."""
        return ((self.vae.decode((z / self.scale + self.shift).to(self.vae.dtype)).sample + 1) / 2).to(z.dtype)


def load(
    name: str, *, prompt: str = "", label: int | None = None, guidance: float = 3.5, **options: Any
) -> Denoiser | LatentPrior:
    """A prior from a folder written by ``save_pretrained``, or from a name on the Hugging Face hub (downloaded once).

    Pixels: DDPM, DDIM, variance-exploding score SDE. Latents, as a :class:`~invdiff.priors.LatentPrior` with the pipeline's
    autoencoder: LDM, Stable Diffusion 1 to 3 and FLUX. The latter three take prompts as their ``condition``
    (:class:`Prompted`) and ``prompt`` where there is none, without classifier-free guidance; networks conditioned on classes
    take labels, and ``label`` where there is none. ``guidance`` is the number that FLUX's distilled network is told.
    ``options`` are those of ``DiffusionPipeline.from_pretrained``: ``torch_dtype``, or
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
    classes = net.config.get("num_class_embeds") or 0
    channels, multiple = net.config.in_channels, net.config.get("patch_size", 1)
    if "block_out_channels" in net.config:
        multiple = 2 ** (len(net.config.block_out_channels) - 1)
        more = net.config.get("addition_embed_type") or net.config.get("class_embed_type")
        more = more or (classes and NETWORKS[kind] is not None)
        if net.config.out_channels not in (channels, 2 * channels) or more:
            raise ValueError(
                f"{name}: its network needs more than a noisy image and a prompt (inpainting, upscaling, SDXL)"
            )
    check_label(label, classes, name)
    schedule = _schedule(name, parts["scheduler"])
    pixels = (0.0, 1.0) if schedule.path == "ve" else (-1.0, 1.0)
    about: dict[str, Any] = {"pixels": pixels} if vae is None else {"pixels": (0.0, 1.0), "mean": 0.0, "std": 1.0}
    inner: DiffusersPrior
    if kind == "FluxTransformer2DModel":
        channels //= 4
        inner = FluxPrior(net, schedule, channels=channels, multiple=2, **about)
    else:
        inner = DiffusersPrior(net, schedule, channels=channels, multiple=multiple, **about)
    encode = NETWORKS[kind]
    prior: Denoiser = inner
    if encode is not None:
        prior = Prompted(inner, partial(encode, pipe, guidance), prompt)
    elif classes:
        prior = Labelled(inner, classes, label)
    if vae is None:
        return prior
    code = Autoencoder(vae)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    latent = LatentPrior(prior, code.encode, code.decode, channels=channels, factor=factor)
    latent.autoencoder = code  # to move with the prior
    return latent


# What each kind of network is told besides the noisy image and the time: a function of pipeline, guidance and prompt.


def _stable_diffusion(pipe: Any, guidance: float, prompt: str) -> dict[str, Tensor]:
    words, _ = pipe.encode_prompt(prompt, pipe.text_encoder.device, 1, False)
    return {"encoder_hidden_states": words}


def _stable_diffusion_3(pipe: Any, guidance: float, prompt: str) -> dict[str, Tensor]:
    device = pipe.text_encoder.device
    words, _, pooled, _ = pipe.encode_prompt(prompt, None, None, device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": words, "pooled_projections": pooled}


def _flux(pipe: Any, guidance: float, prompt: str) -> dict[str, Tensor]:
    words, pooled, _ = pipe.encode_prompt(prompt, None, pipe.text_encoder.device)
    told = {"guidance": torch.tensor([guidance])} if pipe.transformer.config.guidance_embeds else {}
    return {"encoder_hidden_states": words, "pooled_projections": pooled, **told}


NETWORKS: dict[str, Callable[[Any, float, str], dict[str, Tensor]] | None] = {
    "UNet2DModel": None,
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
    if not os.path.isdir(name) and (Path(name).is_absolute() or name.count("/") != 1):
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
        if isinstance(error, OSError) and not os.path.isdir(name):
            raise ConnectionError(
                f"{name} is no folder here and could not be downloaded ({one_line(error)}); get it from "
                f'https://huggingface.co/{name} and give its folder: priors.load("diffusers:FOLDER")'
            ) from error
        raise ValueError(f"{name} is not a readable pipeline of diffusers: {one_line(error)}") from error
