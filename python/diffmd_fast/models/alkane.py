"""United-atom alkanes with the TraPPE force field: a real molecule whose energy, forces and statistics are exact.

Martin and Siepmann, J. Phys. Chem. B 102, 2569 (1998), one chain in vacuum, the rigid bonds made springs.  All
numbers come from a JSON file, which also carries test geometries; a file that does not reproduce them is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_integer, require
from .analytic import ExactEnergy

UNITS = {"length": "nm", "energy": "kJ/mol", "angle": "radian"}
FORMULAS = {
    "bond": "0.5*k*(r-r0)^2 for beads i,i+1",
    "angle": "0.5*k*(theta-theta0)^2 for beads i,i+1,i+2",
    "torsion": "c1*(1+cos(phi)) + c2*(1-cos(2*phi)) + c3*(1+cos(3*phi)) for beads i..i+3; trans is phi=pi",
    "lennard_jones": "4*eps*((sigma/r)^12-(sigma/r)^6) for every pair with |i-j| >= 4; "
                     "sigma_ij=(sigma_i+sigma_j)/2, eps_ij=sqrt(eps_i*eps_j)",
}
MAX_FILE_BYTES = 1 << 20
ENERGY_TOLERANCE, FORCE_TOLERANCE = 1e-9, 1e-3  # kJ/mol and kJ/mol/nm; files give forces to four decimals


class TraPPEAlkane(ExactEnergy):
    """A chain of united-atom beads: springs, angles, torsions, Lennard-Jones from the fifth bead on (FORMULAS).

    Args:
        parameters: what a parameter file holds, as read from JSON: bead types, the numbers of the four terms in
            kJ/mol, nm and radian, temperature, gas constant, and ``check``, geometries with energies and forces.

    Attributes:
        bead_types: the type of each bead, e.g. ("CH3", "CH2", "CH2", "CH3").
        bonds: ((0, 1), (1, 2), ...).
        kilojoules: kJ/mol of one kT0.

    Raises:
        InputError: a missing, unreadable or out-of-range number, formulas or units other than the ones implemented,
            or check geometries that do not come out right.
    """

    def __init__(self, parameters: Mapping[str, Any]):
        require(isinstance(parameters, Mapping), "parameters", "a mapping", type(parameters).__name__)
        n_beads = check_integer(_get(parameters, "n_beads"), "n_beads", minimum=4, maximum=1000)
        super().__init__(n_beads, _number(parameters, "temperature_K", above=0))
        self.kilojoules = _number(parameters, "gas_constant_kJ_mol_K", above=0) * self.temperature
        for name, unit in UNITS.items():
            got = _get(parameters, f"units.{name}")
            require(got == unit, f"units.{name}", repr(unit), repr(got)[:80])
        for term, formula in FORMULAS.items():
            got = _get(parameters, f"{term}.formula")
            require(got == formula, f"{term}.formula", repr(formula), repr(got)[:160])
        self.bond_stiffness = _number(parameters, "bond.k", above=0)
        self.bond_length = _number(parameters, "bond.r0", above=0)
        self.angle_stiffness = _number(parameters, "angle.k", above=0)
        self.angle = _number(parameters, "angle.theta0", above=0)
        self.torsion_coefficients = tuple(_number(parameters, f"torsion.c{i}") for i in (1, 2, 3))
        self._read_beads(parameters)
        self._check_geometries(parameters)

    def _read_beads(self, parameters: Mapping[str, Any]) -> None:
        types = _get(parameters, "bead_types")
        good = isinstance(types, list) and len(types) == self.n_atoms and all(isinstance(t, str) for t in types)
        require(good, "bead_types", f"a list of {self.n_atoms} names", repr(types)[:80])
        self.bead_types = tuple(types)
        self.bonds = tuple((i, i + 1) for i in range(self.n_atoms - 1))
        sigma, depth = (torch.tensor([_number(parameters, f"lennard_jones.{key}.{t}", above=0) for t in types],
                                     dtype=torch.float64) for key in ("sigma", "epsilon"))
        pairs = torch.triu_indices(self.n_atoms, self.n_atoms, offset=4)
        self.register_buffer("pairs", pairs)
        self.register_buffer("sigma", 0.5 * (sigma[pairs[0]] + sigma[pairs[1]]))
        self.register_buffer("depth", torch.sqrt(depth[pairs[0]] * depth[pairs[1]]))

    def _check_geometries(self, parameters: Mapping[str, Any]) -> None:
        """Refuse numbers that do not reproduce the energies and forces that came with them."""
        positions = _array(parameters, "check.positions", (None, self.n_atoms, 3))
        terms = _array(parameters, "check.energy_terms", (len(positions), 4))
        forces = _array(parameters, "check.forces", (len(positions), self.n_atoms, 3))
        error = (self.energy_terms(positions) - terms).abs().max().item()
        require(error <= ENERGY_TOLERANCE, "check.energy_terms", "the energies of the check geometries",
                f"energies {error:.3g} kJ/mol off (was a number changed?)")
        error = (self.score(positions) * self.kilojoules - forces).abs().max().item()
        require(error <= FORCE_TOLERANCE, "check.forces", "the forces at the check geometries",
                f"forces {error:.3g} kJ/mol/nm off (was a number changed?)")

    @classmethod
    def from_file(cls, path: str | Path) -> TraPPEAlkane:
        """Read a parameter file (JSON).  Any defect is one InputError that begins with ``path``."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES + 1)
            require(len(text) <= MAX_FILE_BYTES, "size", f"at most {MAX_FILE_BYTES} bytes", "more")
            parameters = json.loads(text)
            return cls(parameters)
        except OSError as error:
            raise InputError(f"path: expected a readable file, got {path} ({error.strerror or error})") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"path: expected a JSON file of TraPPE parameters, got {path} ({reason})") from None
        except InputError as error:
            raise InputError(f"path: expected a JSON file of TraPPE parameters, got {path} with {error}") from None

    @classmethod
    def butane(cls) -> TraPPEAlkane:
        """The four-bead chain, 300 K, from the parameter file inside the package."""
        with resources.as_file(resources.files(__package__) / "data" / "butane_ua_parameters.json") as path:
            return cls.from_file(path)

    def energy_terms(self, positions: Tensor) -> Tensor:
        """Bonds, angles, torsions, Lennard-Jones [replicas, 4] in kJ/mol; positions [replicas, atoms, 3] nm."""
        self.check_positions(positions)
        steps = positions[:, 1:] - positions[:, :-1]
        stretch = torch.linalg.vector_norm(steps, dim=-1) - self.bond_length
        normals = torch.linalg.cross(steps[:, :-1], steps[:, 1:], dim=-1)
        areas = torch.linalg.vector_norm(normals, dim=-1)
        bend = torch.atan2(areas, -(steps[:, :-1] * steps[:, 1:]).sum(-1)) - self.angle
        # the floor only keeps 0/0 away from straight angles; it is far below any area that is not zero
        products = (areas[:, :-1] * areas[:, 1:]).clamp_min(1e-30)
        cosine = (normals[:, :-1] * normals[:, 1:]).sum(-1) / products
        apart = positions[:, self.pairs[0]] - positions[:, self.pairs[1]]
        q6 = (self.sigma.to(positions.dtype) ** 2 / (apart**2).sum(-1)) ** 3
        return torch.stack([0.5 * self.bond_stiffness * (stretch**2).sum(-1),
                            0.5 * self.angle_stiffness * (bend**2).sum(-1),
                            self.torsion_energy(cosine).sum(-1),
                            4 * (self.depth.to(positions.dtype) * q6 * (q6 - 1)).sum(-1)], dim=-1)

    def torsion_energy(self, cosine: Tensor) -> Tensor:
        """kJ/mol of one torsion from the cosine of its angle; cos 2f = 2c^2 - 1 and cos 3f = 4c^3 - 3c."""
        c1, c2, c3 = self.torsion_coefficients
        return c1 * (1 + cosine) + 2 * c2 * (1 - cosine**2) + c3 * (1 + cosine * (4 * cosine**2 - 3))

    def forward(self, positions: Tensor, noise_level: Tensor | None = None) -> Tensor:
        self._refuse_noise(noise_level)
        return self.energy_terms(positions).sum(-1) / self.kilojoules

    def sample(self, n_frames: int, seed: int) -> Tensor:
        """Independent exact frames [n_frames, 4, 3] in nm, float64, centred and randomly turned; four beads only.

        Bonds, angles and the torsion of four beads are independent: p(r) ~ r^2 exp(-U/kT), p(theta) ~ sin(theta)
        exp(-U/kT), p(f) ~ exp(-U/kT).  Each is drawn by rejection, so exactly (bonds longer than ten standard
        deviations above r0, a share below 1e-22, are left out).

        Raises:
            InputError: ``n_frames`` or ``seed`` out of range; ``model`` for a longer chain, which Lennard-Jones terms
                correlate: it needs Monte Carlo.
        """
        require(self.n_atoms == 4, "model", "a chain of 4 beads (longer ones need Monte Carlo)",
                f"{self.n_atoms} beads")
        n_frames = check_integer(n_frames, "n_frames", minimum=0)
        generator = torch.Generator().manual_seed(check_integer(seed, "seed", minimum=0, maximum=2**63 - 1))
        b1, b2, b3 = (_draw(self._propose_bonds, n_frames, generator) for _ in range(3))
        a1, a2 = (_draw(self._propose_angles, n_frames, generator) for _ in range(2))
        f = _draw(self._propose_torsions, n_frames, generator)
        zero = torch.zeros_like(f)
        a = b1[:, None] * torch.stack([torch.sin(a1), zero, torch.cos(a1)], -1)
        b, c = torch.zeros_like(a), torch.stack([zero, zero, b2], -1)
        d = c + b3[:, None] * torch.stack([torch.sin(a2) * torch.cos(f), torch.sin(a2) * torch.sin(f),
                                           -torch.cos(a2)], -1)
        chain = torch.stack([a, b, c, d], 1) @ _random_rotations(n_frames, generator)
        return chain - chain.mean(1, keepdim=True)

    def _propose_bonds(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        width = math.sqrt(self.kilojoules / self.bond_stiffness)
        longest = self.bond_length + 10 * width
        r = self.bond_length + width * torch.randn(n, generator=generator, dtype=torch.float64)
        return r, torch.where((r > 0) & (r < longest), (r / longest) ** 2, 0.0)

    def _propose_angles(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        width = math.sqrt(self.kilojoules / self.angle_stiffness)
        angle = self.angle + width * torch.randn(n, generator=generator, dtype=torch.float64)
        return angle, torch.where((angle > 0) & (angle < math.pi), torch.sin(angle), 0.0)

    def _propose_torsions(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        f = math.pi * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        return f, torch.exp((self._lowest_torsion_energy() - self.torsion_energy(torch.cos(f))) / self.kilojoules)

    def _lowest_torsion_energy(self) -> float:
        """The least value over cos f in [-1, 1]: at an end, or where 12 c3 c^2 - 4 c2 c + c1 - 3 c3 = 0."""
        c1, c2, c3 = self.torsion_coefficients
        points = [-1.0, 1.0]
        discriminant = (4 * c2) ** 2 - 48 * c3 * (c1 - 3 * c3)
        if c3 != 0 and discriminant >= 0:
            points += [(4 * c2 + sign * math.sqrt(discriminant)) / (24 * c3) for sign in (-1, 1)]
        elif c3 == 0 and c2 != 0:
            points.append(c1 / (4 * c2))
        inside = torch.tensor([c for c in points if -1 <= c <= 1], dtype=torch.float64)
        return self.torsion_energy(inside).min().item()


def _draw(propose: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], n: int,
          generator: torch.Generator) -> Tensor:
    """n values by rejection; ``propose`` gives candidates and the probability of keeping each."""
    kept = torch.zeros(0, dtype=torch.float64)
    while len(kept) < n:
        candidates, probability = propose(2 * (n - len(kept)) + 64, generator)
        accepted = torch.rand(len(candidates), generator=generator, dtype=torch.float64) < probability
        kept = torch.cat([kept, candidates[accepted]])
    return kept[:n]


def _random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """Uniform rotation matrices [n, 3, 3], from uniform unit quaternions."""
    q = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    w, x, y, z = (q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)).unbind(-1)
    return torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
                        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
                        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1).view(n, 3, 3)


def _get(parameters: Mapping[str, Any], where: str) -> Any:
    """The value at a dotted path."""
    value: Any = parameters
    for key in where.split("."):
        require(isinstance(value, Mapping) and key in value, where, "a value", "nothing")
        value = value[key]
    return value


def _number(parameters: Mapping[str, Any], where: str, above: float | None = None) -> float:
    """A finite JSON number; strings that look like one, and true, are not numbers here."""
    value = _get(parameters, where)
    wanted = "a finite number" + ("" if above is None else f" above {above:g}")
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    require(good and (above is None or value > above), where, wanted, repr(value)[:80])
    return float(value)


def _array(parameters: Mapping[str, Any], where: str, shape: tuple[int | None, ...]) -> Tensor:
    """Nested lists of numbers as float64; None in ``shape`` is any length of at least 1."""
    value = _get(parameters, where)
    wanted = "[" + ", ".join("any" if s is None else str(s) for s in shape) + "] finite numbers"
    try:
        array = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{where}: expected {wanted}, got {repr(value)[:80]}") from None
    fits = array.dim() == len(shape) and all(s in (None, n) and n > 0 for s, n in zip(shape, array.shape))
    require(fits and bool(torch.isfinite(array).all()), where, wanted, f"shape {list(array.shape)}")
    return array
