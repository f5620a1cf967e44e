"""Nonlinear operators: phase retrieval, saturation, gamma and quantisation, nonlinear blur.

They have ``A`` and ``A_vjp`` (gradient), and no adjoint. Two of them are flat in places, where the true gradient is
zero and would leave a solver stuck; their gradient is that of a slope that goes on (``surrogate_gradient``).
"""

from __future__ import annotations

import math

import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators.base import Nonlinear
from invdiff.operators.blur import Blur
from invdiff.operators.noise import as_noise


class PhaseRetrieval(Nonlinear):
    """``y = |F P x| + noise``: amplitudes of the Fourier transform of the image padded with zeros.

    ``F`` is orthonormal, so that ``|y| = |x|`` without noise; frequency zero is at the centre of ``y``. Images
    (B, C, H, W) give (B, C, ceil(oversampling * H), ceil(oversampling * W)). Turning the image by 180 degrees or
    changing its sign leaves ``y`` as it is, and shifting it within the padding too: reconstructions are up to that.

    Args:
        image_shape: (C, H, W), which ``y`` alone does not tell.
        oversampling: side of the padded image over that of the image, at least 1; at 2 or more ``y`` determines
            almost every image up to the above. What the code of the DPS paper calls ``oversample=2.0`` is 1.5 here.
        noise: level (standard deviation, unit of the amplitudes) or a noise model.

    Raises:
        ValueError: oversampling under 1, or an image of another shape.

    Source: J. R. Fienup, "Phase retrieval algorithms: a comparison", Applied Optics 21 (1982).
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        oversampling: float = 2.0,
        noise: float | Tensor | dinv.NoiseModel | None = None,
    ) -> None:
        if len(image_shape) != 3:
            raise ValueError(f"image_shape is (C, H, W), got {image_shape}")
        if not oversampling >= 1:
            raise ValueError(f"oversampling is the padded side over the image's, at least 1, got {oversampling}")
        super().__init__(noise_model=as_noise(noise))
        self.img_size = tuple(image_shape)
        self.padded = [math.ceil(oversampling * n) for n in image_shape[1:]]

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if tuple(x.shape[1:]) != self.img_size:
            raise ValueError(f"this operator measures images of shape (B, *{self.img_size}), got {tuple(x.shape)}")
        return torch.fft.fftshift(torch.fft.fft2(x, self.padded, norm="ortho"), (-2, -1)).abs()


class Saturation(Nonlinear):
    """``y = clip(gain x, 0, 1) + noise``: an overexposed picture, to be restored to its full range (HDR).

    The gradient is ``gain`` everywhere, also where the picture clips. So a saturated estimate of a pixel that was
    measured dark is pulled down, while one of a saturated measurement is left alone, since there both are 1.

    Args:
        gain: exposure, above 0; pixels of ``x`` over ``1 / gain`` saturate.
        noise: level (standard deviation) or a noise model; it is added after clipping.

    Raises:
        ValueError: gain not above 0.
    """

    surrogate_gradient = True

    def __init__(self, gain: float = 2.0, noise: float | Tensor | dinv.NoiseModel | None = None) -> None:
        if not gain > 0:
            raise ValueError(f"gain is an exposure above 0, got {gain}")
        super().__init__(noise_model=as_noise(noise))
        self.gain = gain

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        exposed = self.gain * x
        return _straight_through(exposed.clamp(0, 1), exposed)


class GammaQuantisation(Nonlinear):
    """``y = round(L g(clip(x, 0, 1))) / L + noise``, ``L = 2^bits - 1``: linear light as a camera stores it.

    ``g`` is the :func:`camera_response`. Rounding and clipping are straight-through: the gradient is that of ``g``
    alone, continued beyond [0, 1], because that of a staircase is zero or infinite.

    Args:
        gamma: exponent, at least 1 (1: no curve).
        bits: 1 to 16.
        noise: level (standard deviation) or a noise model; it is added after rounding.

    Raises:
        ValueError: gamma under 1 or bits out of range.

    Source: Y. Bengio et al., "Estimating or propagating gradients through stochastic neurons" (2013): straight-through.
    """

    surrogate_gradient = True

    def __init__(
        self, gamma: float = 2.2, bits: int = 8, noise: float | Tensor | dinv.NoiseModel | None = None
    ) -> None:
        _check_gamma(gamma)
        if not 1 <= bits <= 16:
            raise ValueError(f"bits is between 1 and 16, got {bits}")
        super().__init__(noise_model=as_noise(noise))
        self.gamma, self.levels = gamma, 2**bits - 1

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        curve = camera_response(x, self.gamma)
        return _straight_through((curve.clamp(0, 1) * self.levels).round() / self.levels, curve)


class NonlinearBlur(Nonlinear):
    """``y = g(k * g^-1(x)) + noise``: blur happens to light, and ``x`` and ``y`` are pictures, gamma encoded.

    ``g`` is the :func:`camera_response`. Bright points spread further than in a blur of the picture itself, as the
    lamps of a night shot do. Deterministic, and smooth everywhere. The nonlinear blur of the DPS paper is another
    one: a neural network, trained on pairs of sharp and blurred video frames, whose blur is drawn at random.

    Args:
        kernel: (h, w), or (B, C, h, w), as for :class:`~invdiff.operators.Blur`; the image is mirrored at its border.
        gamma: exponent of the camera's curve, at least 1 (1: a linear blur).
        noise: level (standard deviation, unit of the image) or a noise model.

    Raises:
        ValueError: gamma under 1, or what ``Blur`` raises.

    Source: S. Nah et al., "Deep multi-scale convolutional neural network for dynamic scene deblurring", CVPR (2017):
    the camera model.
    """

    def __init__(
        self,
        kernel: Tensor,
        gamma: float = 2.2,
        noise: float | Tensor | dinv.NoiseModel | None = None,
    ) -> None:
        _check_gamma(gamma)
        super().__init__(noise_model=as_noise(noise))
        self.blur, self.gamma = Blur(kernel, boundary="reflect"), gamma

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return camera_response(self.blur.A(inverse_camera_response(x, self.gamma)), self.gamma)


_TOE = 0.002  # light at which the curve turns from straight to power law; the slope at 0 is then about that of sRGB


def camera_response(light: Tensor, gamma: float = 2.2) -> Tensor:
    """``g(u) = ((u + t)^(1/gamma) - t^(1/gamma)) / ((1 + t)^(1/gamma) - t^(1/gamma))``, ``t = 0.002``, odd about 0.

    A gamma curve from (0, 0) to (1, 1) with a finite slope at 0, as in sRGB, where that of ``u^(1/gamma)`` is infinite.
    """
    low, high = _TOE ** (1 / gamma), (1 + _TOE) ** (1 / gamma)
    sign = 1 - 2 * (light < 0).to(light)  # 1 at zero, so that the slope there is not lost
    return sign * ((sign * light + _TOE) ** (1 / gamma) - low) / (high - low)


def inverse_camera_response(picture: Tensor, gamma: float = 2.2) -> Tensor:
    """Light of a picture value: the inverse of :func:`camera_response`."""
    low, high = _TOE ** (1 / gamma), (1 + _TOE) ** (1 / gamma)
    sign = 1 - 2 * (picture < 0).to(picture)
    return sign * ((sign * picture * (high - low) + low) ** gamma - _TOE)


def _check_gamma(gamma: float) -> None:
    if not gamma >= 1:
        raise ValueError(f"gamma is an exponent of at least 1, got {gamma}")


def _straight_through(value: Tensor, slope: Tensor) -> Tensor:
    """``value`` with the gradient of ``slope``."""
    return slope + (value - slope).detach()
