"""The Fourier series of every torsion that a SchNet carries beside its network, as force fields do.

    E = sum over torsions and n = 1 .. N of a_n sin(n phi) + b_n cos(n phi)

It is the real part of sum (b_n - i a_n) z^n with z = cos(phi) + i sin(phi), so Horner's rule needs the sine and cosine
of one turn only; straight angles, where ops.torsions lets |z| fall to 0, take it smoothly to 0.  csrc/torsion_math.hpp
has the same for native code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GRID = 96  # points of a turn on which densities are blurred; planes have wells of 6 degrees
LEAST_DENSITY = 1e-6  # of the largest: what lies higher than 14 kT0 is not told apart


def torsion_series(angles: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Energies [..., torsions] in kT0, and their derivatives [..., torsions, 2] by sine and cosine.

    Args:
        angles: (sin, cos) as [..., torsions, 2]; the energies are differentiable by them and by the coefficients.
        coefficients: (a_n, b_n) as [..., torsions, N, 2].
    """
    sine, cosine = angles.unbind(-1)
    real = imaginary = real_slope = imaginary_slope = torch.zeros_like(sine)
    for a, b in [*zip(*(part.unbind(-1) for part in coefficients.flip(-2).unbind(-1))), (0.0, 0.0)]:
        real_slope, imaginary_slope = (real_slope * cosine - imaginary_slope * sine + real,
                                       real_slope * sine + imaginary_slope * cosine + imaginary)
        real, imaginary = real * cosine - imaginary * sine + b, real * sine + imaginary * cosine - a
    return real, torch.stack([-imaginary_slope, real_slope], -1)


def blurred_series(coefficients: Tensor, variance: Tensor) -> Tensor:
    """Series [R, torsions, N, 2] of the densities exp(-E), each turned by Gaussian noise of variance [R, torsions].

    A barrier of n wells loses exp(-n^2 variance / 2) of itself, but a well narrower than the noise gets as wide as
    that.  What is above 14 kT0, or needs more than N harmonics, is taken to fade with the harmonics.
    """
    n, kind = coefficients.shape[-2], {"dtype": coefficients.dtype, "device": coefficients.device}
    orders = torch.arange(1, GRID // 2, **kind)
    phase = 2 * math.pi / GRID * torch.arange(GRID, **kind)[:, None] * orders
    waves = torch.cat([phase.sin(), phase.cos()], 1)  # [GRID, 2 orders]
    low = torch.cat([phase[:, :n].sin(), phase[:, :n].cos()], 1)
    energy = coefficients.mT.flatten(1) @ low.T
    density = torch.exp(energy.amin(1, keepdim=True) - energy)
    mean, modes = density.mean(1, keepdim=True), density @ waves * (2 / GRID)

    def series(density: Tensor) -> Tensor:
        return (density.clamp_min(LEAST_DENSITY).log() @ low * (-2 / GRID)).unflatten(-1, (2, n)).mT

    left = torch.exp(-0.5 * variance[..., None] * orders**2)
    missing = coefficients - series(mean + modes @ waves.T)  # so that no noise leaves the series as it is
    return series(mean + (modes * left.repeat(1, 1, 2)) @ waves.T) + left[..., :n, None] * missing
