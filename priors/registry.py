"""The priors that ship: ``weights/NAME.safetensors``, its model card ``NAME.md``, and the checksums of all."""

from __future__ import annotations

import hashlib
from pathlib import Path

from invdiff.priors.network import DenoisingUNet
from invdiff.priors.weights_io import load_weights

WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Names of the priors that ship."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def card(name: str) -> str:
    """The model card of a prior that ships: data, terms, training and measured quality."""
    if name not in names():
        raise ValueError(_unknown(name))
    return (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")


def load(name_or_path: str | Path) -> DenoisingUNet:
    """Load a prior that ships by its name, or a ``.safetensors`` file written by ``invdiff train`` by its path.

    Raises ``ValueError`` for an unknown name, and for a file that is missing, damaged or of something else.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in names():
        path = WEIGHTS / f"{name}.safetensors"
        if hashlib.sha256(path.read_bytes()).hexdigest() != _checksums().get(path.name):
            raise ValueError(
                f"the weights of {name!r} do not match their SHA-256 in {WEIGHTS / 'SHA256SUMS'}: corrupt install, "
                "reinstall invdiff or train the prior again"
            )
    elif path.suffix != ".safetensors":
        raise ValueError(_unknown(name))
    elif not path.is_file():
        raise ValueError(f"no weights at {path.absolute()}: there is no such file")
    return load_weights(path)


def _checksums() -> dict[str, str]:
    """File name to SHA-256, from lines ``<digest>  <name>`` as sha256sum writes them."""
    path = WEIGHTS / "SHA256SUMS"
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    return {name.lstrip("*"): digest for digest, name in (line.split(maxsplit=1) for line in lines if line)}


def _unknown(name: str) -> str:
    return (
        f"unknown prior {name!r}; priors that ship: {', '.join(names()) or 'none'}. "
        "For weights of your own give the path of a .safetensors file"
    )
