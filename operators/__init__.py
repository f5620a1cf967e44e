"""Forward operators: what an instrument does to an image.

Every operator is a deepinv ``Physics`` that works on batches (B, C, H, W) in float32 and float64: ``A.A(x)``,
``A.A_adjoint(y)``, ``A.A_dagger(y)``, ``A.prox_l2(z, y, gamma)``, ``A.A_vjp(x, v)``, ``A.noise_model``, and ``A.measure(x, seed)``.

======================  =========  ============  =========  =========================================
operator                SVD        closed prox   adjoint    image sizes
======================  =========  ============  =========  =========================================
``Denoising``           yes        yes           yes        any
``Inpainting``          yes        yes           yes        the mask's
``Decolorize``          yes        yes           yes        any, three channels
``CompressedSensing``   yes        yes           yes        the one given
``Blur``, circular      yes        yes           yes        any
``Blur``, valid         no         no (CG)       yes        any
``Blur``, reflect       no         no (CG)       yes        any
``Downsampling``        yes        yes           yes        multiples of the factor
``from_callable``       no         no            nonlinear  any, or the one given
======================  =========  ============  =========  =========================================

``check(A)`` measures whether an operator, ours or yours, keeps the laws that solvers rely on.
"""

from invdiff.operators.base import Linear, Nonlinear, Spectral, conjugate_gradient
from invdiff.operators.blur import (
    Blur,
    disk_kernel,
    gaussian_kernel,
    kernel_from_image,
    motion_kernel,
    parse_kernel,
)
from invdiff.operators.downsampling import Downsampling
from invdiff.operators.masks import Inpainting, box_mask, line_mask, mask_from_image, random_mask
from invdiff.operators.noise import Gaussian, Noise, Poisson, PoissonGaussian, as_noise
from invdiff.operators.simple import CompressedSensing, Decolorize, Denoising, FromCallable, from_callable

__all__ = [
    "Blur",
    "CompressedSensing",
    "Decolorize",
    "Denoising",
    "Downsampling",
    "FromCallable",
    "Gaussian",
    "Inpainting",
    "Linear",
    "Noise",
    "Nonlinear",
    "Poisson",
    "PoissonGaussian",
    "Spectral",
    "as_noise",
    "box_mask",
    "conjugate_gradient",
    "disk_kernel",
    "from_callable",
    "gaussian_kernel",
    "kernel_from_image",
    "line_mask",
    "mask_from_image",
    "motion_kernel",
    "parse_kernel",
    "random_mask",
]
