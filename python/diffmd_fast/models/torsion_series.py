"""The Fourier series of every torsion that a SchNet carries beside its network, as force fields do.

    E = sum over torsions and n = 1 .. N of a_n sin(n phi) + b_n cos(n phi)

It is the real part of sum (b_n - i a_n) z^n with z = cos(phi) + i sin(phi), so Horner's rule needs the sine and cosine
of one turn only; straight angles, where ops.torsions lets |z| fall to 0, take it smoothly to 0.  csrc/torsion_math.hpp
has the same for native code.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
