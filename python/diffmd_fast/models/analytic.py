"""Energies with known answers: what samplers, integrators and reports are tested against.

All are exact densities p = exp(-E), E in kT0, positions [replicas, atoms, 3] nm.  ``noise_level`` is 0: they are
not blurred, and asking for a blurred one is an error (Harmonic apart, whose blurred density is known too).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import check_integer, check_number, check_tensor, require
from .energy import Energy


class ExactEnergy(Energy):
    """An energy that is a formula; ``temperature`` in K says what one kT0 is."""

    def __init__(self, n_atoms: int, temperature: float):
        super().__init__()
        self.n_atoms = check_integer(n_atoms, "n_atoms", minimum=1)
        self.temperature = check_number(temperature, "temperature", above=0, unit="K")

    def _refuse_noise(self, noise_level: Tensor | None) -> None:
        require(noise_level is None or not bool((noise_level != 0).any()), "noise_level",
                f"0 ({type(self).__name__} is known without noise only)", noise_level)


class Harmonic(ExactEnergy):
    """Independent wells: E = 1/2 sum_i k_i |x_i - c_i|^2.

    Blurred by noise sigma it stays harmonic, with variance 1/k + sigma^2 in place of 1/k.

    Args:
        n_atoms: number of atoms.
        stiffness: k in 1/nm^2, a number or one per atom [atoms].  Give either this or ``standard_deviation``.
        standard_deviation: 1/sqrt(k) in nm, of each coordinate; a number or one per atom [atoms].
        centre: c [atoms, 3] nm; the origin by default.
        temperature: T0 in K.

    Raises:
        InputError: a value out of range or of the wrong shape.
    """

    def __init__(self, n_atoms: int, stiffness: float | Tensor | None = None,
                 standard_deviation: float | Tensor | None = None, centre: Tensor | None = None,
                 temperature: float = 300.0):
        super().__init__(n_atoms, temperature)
        require((stiffness is None) != (standard_deviation is None), "stiffness",
                "either stiffness or standard_deviation", "neither" if stiffness is None else "both")
        if stiffness is not None:
            variance = 1 / self._per_atom("stiffness", stiffness)
        else:
            variance = self._per_atom("standard_deviation", standard_deviation) ** 2
        if centre is None:
            centre = torch.zeros(self.n_atoms, 3, dtype=torch.float64)
        check_tensor(centre, "centre", (self.n_atoms, 3))
        self.register_buffer("centre", centre.detach().to(torch.float64))
        self.register_buffer("variance", variance)  # [atoms] nm^2: the exact variance of each coordinate

    def _per_atom(self, name: str, value: float | Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            value = torch.tensor(check_number(value, name, above=0), dtype=torch.float64)
        require(value.shape in ((), (self.n_atoms,)), name, f"a number or shape [{self.n_atoms}]",
                f"shape {list(value.shape)}")
        value = value.detach().to(torch.float64)
        require(bool((torch.isfinite(value) & (value > 0)).all()), name, "finite values above 0", value.tolist())
        return value.expand(self.n_atoms).clone()

    @property
    def stiffness(self) -> Tensor:
        """k [atoms] in 1/nm^2."""
        return 1 / self.variance

    def forward(self, positions: Tensor, noise_level: Tensor | None = None) -> Tensor:
        squares = ((positions - self.centre.to(positions.dtype)) ** 2).sum(-1)
        variance = self.variance.to(positions.dtype)
        if noise_level is not None:
            variance = variance + noise_level[:, None] ** 2
        return 0.5 * (squares / variance).sum(-1)


class DoubleWell(ExactEnergy):
    """One particle: E = h ((x/a)^2 - 1)^2 + k/2 (y^2 + z^2); minima at x = +-a, barrier of height h between.

    Args:
        barrier: h in kT0.
        half_distance: a in nm.
        stiffness: k in 1/nm^2; y and z have variance 1/k.
        temperature: T0 in K.

    Raises:
        InputError: a value that is not above 0.
    """

    def __init__(self, barrier: float = 4.0, half_distance: float = 0.1, stiffness: float = 400.0,
                 temperature: float = 300.0):
        super().__init__(1, temperature)
        self.barrier = check_number(barrier, "barrier", above=0, unit="kT")
        self.half_distance = check_number(half_distance, "half_distance", above=0, unit="nm")
        self.stiffness = check_number(stiffness, "stiffness", above=0, unit="1/nm^2")

    @property
    def well_stiffness(self) -> float:
        """d^2E/dx^2 at a minimum: 8 h / a^2, in 1/nm^2.  At the barrier it is minus half of that."""
        return 8 * self.barrier / self.half_distance**2

    def forward(self, positions: Tensor, noise_level: Tensor | None = None) -> Tensor:
        self._refuse_noise(noise_level)
        x, y, z = positions[:, 0].unbind(-1)
        return self.barrier * ((x / self.half_distance) ** 2 - 1) ** 2 + 0.5 * self.stiffness * (y**2 + z**2)

    def marginal(self, x: Tensor) -> Tensor:
        """Normalized density of x, in 1/nm, at the given x (nm), of any shape.

        The integral of exp(-h (u^2 - 1)^2) over u = x/a is taken by the trapezoidal rule, which converges
        exponentially for a function that is smooth and vanishes at both ends: to rounding here.
        """
        end = math.sqrt(1 + math.sqrt(60 / self.barrier))  # exp(-60) is below rounding
        u = torch.linspace(-end, end, 4001, dtype=torch.float64, device=x.device)
        integral = torch.exp(-self.barrier * (u**2 - 1) ** 2).sum() * (u[1] - u[0]) * self.half_distance
        return torch.exp(-self.barrier * ((x / self.half_distance) ** 2 - 1) ** 2) / integral.to(x.dtype)


class MullerBrown(ExactEnergy):
    """One particle on the surface of Muller and Brown, Theor. Chim. Acta 53, 75 (1979), harmonic in z.

    V(X, Y) = sum_n A_n exp(a_n (X - X_n)^2 + b_n (X - X_n)(Y - Y_n) + c_n (Y - Y_n)^2) with the four terms of the
    paper; E = energy_scale V(x/length_scale, y/length_scale) + k/2 z^2.  V has minima -146.700 at (-0.558, 1.442),
    -108.167 at (0.623, 0.028), -80.768 at (-0.050, 0.467); the highest saddle between them is -40.665 at
    (-0.822, 0.624).

    Args:
        length_scale: nm of one unit of X and Y.
        energy_scale: kT0 of one unit of V; 0.1 makes the highest barrier 10.6 kT0 from the deepest minimum.
        stiffness: k in 1/nm^2.
        temperature: T0 in K.

    Raises:
        InputError: a value that is not above 0.
    """

    #        A_n     a_n    b_n    c_n   X_n   Y_n
    TERMS = ((-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
             (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
             (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
             (15.0, 0.7, 0.6, 0.7, -1.0, 1.0))

    def __init__(self, length_scale: float = 0.1, energy_scale: float = 0.1, stiffness: float = 400.0,
                 temperature: float = 300.0):
        super().__init__(1, temperature)
        self.length_scale = check_number(length_scale, "length_scale", above=0, unit="nm")
        self.energy_scale = check_number(energy_scale, "energy_scale", above=0, unit="kT")
        self.stiffness = check_number(stiffness, "stiffness", above=0, unit="1/nm^2")
        self.register_buffer("terms", torch.tensor(self.TERMS, dtype=torch.float64))

    def forward(self, positions: Tensor, noise_level: Tensor | None = None) -> Tensor:
        self._refuse_noise(noise_level)
        height, a, b, c, x0, y0 = self.terms.to(positions.dtype).unbind(-1)
        x = positions[:, 0, 0, None] / self.length_scale - x0  # [replicas, terms]
        y = positions[:, 0, 1, None] / self.length_scale - y0
        surface = (height * torch.exp(a * x**2 + b * x * y + c * y**2)).sum(-1)
        return self.energy_scale * surface + 0.5 * self.stiffness * positions[:, 0, 2] ** 2


class LennardJonesCluster(ExactEnergy):
    """Identical particles that hold together, E = 2 sum_{i<j} [q^12 - 2 q^6] + 1/2 sum_i |x_i - mean|^2 / d^2.

    q = d/r_ij.  A pair is 2 kT0 deep at the distance d, so T* = 0.5.  E does not change when the cluster is moved:
    the density is that of the positions around their mean.

    Args:
        n_atoms: number of particles, at least 2.
        length: d in nm.
        temperature: T0 in K.

    Raises:
        InputError: a value out of range.
    """

    def __init__(self, n_atoms: int = 13, length: float = 1.0, temperature: float = 300.0):
        super().__init__(check_integer(n_atoms, "n_atoms", minimum=2), temperature)
        self.length = check_number(length, "length", above=0, unit="nm")
        self.register_buffer("pairs", torch.triu_indices(n_atoms, n_atoms, offset=1))

    def forward(self, positions: Tensor, noise_level: Tensor | None = None) -> Tensor:
        self._refuse_noise(noise_level)
        x = positions / self.length
        q6 = 1 / ((x[:, self.pairs[0]] - x[:, self.pairs[1]]) ** 2).sum(-1) ** 3
        trap = ((x - x.mean(1, keepdim=True)) ** 2).sum((1, 2))
        return 2 * (q6 * (q6 - 2)).sum(-1) + 0.5 * trap
