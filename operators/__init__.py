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
``MRI``                 yes        yes           yes        the mask's, two channels
``MultiCoilMRI``        no         no (CG)       yes        the mask's, two channels
``Tomography``          no         no (CG)       yes        the square one given
``PhaseRetrieval``      no         no            nonlinear  the one given
``Saturation``          no         no            nonlinear  any
``GammaQuantisation``   no         no            nonlinear  any
``NonlinearBlur``       no         no            nonlinear  any
``from_callable``       no         no            nonlinear  any, or the one given
``Decoded``             no         no            nonlinear  latents of the size given
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
from invdiff.operators.conformance import Report, check
from invdiff.operators.downsampling import Downsampling
from invdiff.operators.masks import Inpainting, box_mask, line_mask, mask_from_image, random_mask
from invdiff.operators.mri import (
    MRI,
    MultiCoilMRI,
    equispaced_mask,
    poisson_disc_mask,
    radial_mask,
    random_lines_mask,
)
from invdiff.operators.noise import Gaussian, Noise, Poisson, PoissonGaussian, as_noise
from invdiff.operators.nonlinear import GammaQuantisation, NonlinearBlur, PhaseRetrieval, Saturation
from invdiff.operators.simple import CompressedSensing, Decoded, Decolorize, Denoising, FromCallable, from_callable
from invdiff.operators.tomography import Tomography

__all__ = [
    "MRI",
    "Blur",
    "CompressedSensing",
    "Decoded",
    "Decolorize",
    "Denoising",
    "Downsampling",
    "FromCallable",
    "GammaQuantisation",
    "Gaussian",
    "Inpainting",
    "Linear",
    "MultiCoilMRI",
    "Noise",
    "Nonlinear",
    "NonlinearBlur",
    "PhaseRetrieval",
    "Poisson",
    "PoissonGaussian",
    "Report",
    "Saturation",
    "Spectral",
    "Tomography",
    "as_noise",
    "box_mask",
    "check",
    "conjugate_gradient",
    "disk_kernel",
    "equispaced_mask",
    "from_callable",
    "gaussian_kernel",
    "kernel_from_image",
    "line_mask",
    "mask_from_image",
    "motion_kernel",
    "parse_kernel",
    "poisson_disc_mask",
    "radial_mask",
    "random_lines_mask",
    "random_mask",
]
