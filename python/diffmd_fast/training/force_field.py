"""A classical force field read off the snapshots, without forces: a score for the network to follow at small noise.

What denoising learns of a score from one frame is mostly chance where noise is small.  The energy of a classical force
field is linear in its parameters, E = sum_k theta_k f_k, so score matching finds them from all frames at once: the mean
of |grad E|^2 / 2 - lap E is least where A theta = b, A_kl = <grad f_k . grad f_l> and b_k = <lap f_k> (Hyvaerinen,
J. Mach. Learn. Res. 6, 695, 2005).  No chance is in it but that of the snapshots themselves.  Its functions are

    z, z^2, z^3             of bonds and of cosines of angles, z in standard deviations from the mean;
    sin n phi, cos n phi    of torsions and of the angles between planes, n up to 4;
    1/r, 1/r^6, 1/r^12      of atoms that are neither bonded nor bonded to one atom;

each for all atoms that elements and bonds do not tell apart.  What a molecule has beyond that (a solvent's answer to
three atoms at once) is missing in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import NonFiniteError, require
from ..io import Molecule
from ..models.topology import bonded_torsions, canonical, equivalent_atoms, planes_of
from . import coordinates

DEGREE = 3  # of z
HARMONICS = 4
POWERS = (1.0, 6.0, 12.0)
CONTACT = 0.25  # nm; powers of r are of r over this, so that their sizes are alike
RIDGE = 1e-4  # of the diagonal: functions that are nearly the same share what they explain
MOST_PARAMETERS = 2048  # of some 30 atoms: fifteen times the work of 22 atoms' 617, which take a minute of a core
AT_ONCE = 2**22  # numbers of gradients of all functions worked on together: 32 MiB
SOME = 4096  # frames at once where no more than coordinates are wanted


class ForceField(nn.Module):
    """``force_field(x)`` is the score [frames, atoms, 3] in 1/nm of frames [frames, atoms, 3] nm, in float64.

    Args:
        molecule: elements and bonds say which parameters there are.

    Attributes:
        n_parameters: of the energy.
        square: mean of |score|^2 over the frames that it was fitted to, 1/nm^2.

    Raises:
        InputError: more parameters than can be fitted in minutes.
    """

    def __init__(self, molecule: Molecule):
        super().__init__()
        self.n_atoms = molecule.n_atoms
        kinds = [number or name for number, name in zip(molecule.atomic_numbers, molecule.names)]
        types, bonds = equivalent_atoms(kinds, molecule.bonds), [list(bond) for bond in molecule.bonds]
        angles = [list(angle) for angle in molecule.angles()]
        held = {frozenset(pair) for pair in bonds} | {frozenset((a, c)) for a, _, c in angles}
        free = [[i, j] for i in range(self.n_atoms) for j in range(i + 1, self.n_atoms) if {i, j} not in held]
        self.terms = [_Term(measure, functions, width, atoms, types) for measure, functions, width, atoms in (
            (coordinates.distances, _polynomials, DEGREE, bonds), (coordinates.cosines, _polynomials, DEGREE, angles),
            (coordinates.torsions, _waves, 2 * HARMONICS, bonded_torsions(bonds) + planes_of(bonds)),
            (coordinates.distances, _powers, len(POWERS), free)) if atoms]
        self.n_parameters = sum(term.n_parameters for term in self.terms)
        require(self.n_parameters <= MOST_PARAMETERS, "force_field", f"0 for a molecule whose classical force field "
                f"has more than {MOST_PARAMETERS} parameters", f"{self.n_parameters} parameters")
        for i, term in enumerate(self.terms):
            for name in ("mean", "deviation"):
                self.register_buffer(f"{name}_{i}", torch.zeros(term.n_types, dtype=torch.float64))
        self.register_buffer("theta", torch.zeros(self.n_parameters, dtype=torch.float64))
        self.register_buffer("square", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, frames: Tensor, noise_level: float, seed: int = 0, progress: bool = False) -> None:
        """Find the parameters for frames [frames, atoms, 3] nm, with the noise (nm) at which the score is wanted.

        Raises:
            NonFiniteError: no parameters can be found, as where atoms coincide.
        """
        generator = torch.Generator().manual_seed(seed)
        noised = frames + noise_level * torch.randn(frames.shape, generator=generator)
        for i, term in enumerate(self.terms):
            mean, deviation = term.moments(noised)
            self.get_buffer(f"mean_{i}").copy_(mean)
            self.get_buffer(f"deviation_{i}").copy_(deviation)
        n = self.n_parameters
        normal, right = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        parts = noised.split(max(1, AT_ONCE // (3 * self.n_atoms * n)))
        for part in tqdm(parts, desc="fitting a force field", unit="part", disable=not progress):
            gradients, laplacians = self._functions(part.double())
            normal.addmm_(gradients, gradients.T)
            right += laplacians
        scale = normal.diagonal().rsqrt()
        matrix = scale[:, None] * normal * scale + RIDGE * torch.eye(n, dtype=torch.float64)
        theta, failed = torch.linalg.solve_ex(matrix, scale * right)
        theta *= scale
        if failed or not bool(theta.isfinite().all()):
            raise NonFiniteError("force_field: no parameters could be fitted to the snapshots (atoms in one place?); "
                                 "train with force_field=0")
        self.theta.copy_(theta)
        self.square.copy_(theta @ normal @ theta / len(frames))

    def _functions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients [parameters, atoms * 3 * frames] of all functions and sums [parameters] of their Laplacians."""
        gradients = x.new_zeros(self.n_parameters * self.n_atoms, 3 * len(x))
        laplacians, first = x.new_zeros(self.n_parameters), 0
        for i, term in enumerate(self.terms):
            q, slopes, curvatures = self._derivatives(i, x)
            rows = first + term.types[:, None] * term.width + torch.arange(term.width)  # [n, functions]
            each = torch.einsum("fnm,fnki->nmkif", slopes, q.gradients)
            places = rows[:, :, None] * self.n_atoms + term.atoms[:, None, :]
            gradients.index_add_(0, places.flatten(), each.reshape(places.numel(), -1))
            squares = q.gradients.square().sum((2, 3))
            laplacians.index_add_(0, rows.flatten(), (torch.einsum("fnm,fn->nm", curvatures, squares) + torch.einsum(
                "fnm,fn->nm", slopes, q.laplacians)).flatten())
            first += term.n_parameters
        return gradients.view(self.n_parameters, -1), laplacians

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._score(part) for part in x.double().split(SOME)])

    def _score(self, x: Tensor) -> Tensor:
        score, thetas = torch.zeros_like(x), self.theta.split([term.n_parameters for term in self.terms])
        for i, (term, theta) in enumerate(zip(self.terms, thetas)):
            q, slopes, _ = self._derivatives(i, x)
            slope = (slopes * theta.view(term.n_types, term.width)[term.types]).sum(2)
            score.index_add_(1, term.atoms.flatten(), (-slope[:, :, None, None] * q.gradients).flatten(1, 2))
        return score

    def _derivatives(self, i: int, x: Tensor) -> tuple[coordinates.Coordinates, Tensor, Tensor]:
        """Coordinates of term i, first and second derivatives [frames, n, functions] of its functions."""
        term = self.terms[i]
        q = term.measure(x, term.atoms)
        mean, deviation = (self.get_buffer(f"{name}_{i}")[term.types] for name in ("mean", "deviation"))
        return q, *term.functions(q.values, mean, deviation)


class _Term:
    """Coordinates of one kind, and which of them have the same parameters."""

    def __init__(self, measure: Any, functions: Any, width: int, atoms: list[list[int]], types: list[int]):
        self.measure, self.functions, self.width = measure, functions, width
        keys, rows = zip(*(canonical(row, types) for row in atoms))
        table = {key: k for k, key in enumerate(sorted(set(keys)))}
        self.atoms, self.types = torch.tensor(rows), torch.tensor([table[key] for key in keys])
        self.n_types, self.n_parameters = len(table), len(table) * width

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [types] of the coordinates over frames and all of one type."""
        total = torch.zeros(3, self.n_types, dtype=torch.float64)
        for part in frames.split(SOME):
            q = self.measure(part.double(), self.atoms).values
            total.index_add_(1, self.types, torch.stack([torch.ones_like(q), q, q**2]).sum(1))
        mean = total[1] / total[0]
        return mean, (total[2] / total[0] - mean**2).clamp_min(1e-12).sqrt()


def _polynomials(q: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    z, n = ((q - mean) / deviation)[..., None], torch.arange(1, DEGREE + 1, dtype=q.dtype)
    slopes = n * z ** (n - 1)
    curvatures = torch.where(n > 1, n * (n - 1) * z ** (n - 2).clamp_min(0), 0.0)
    return slopes / deviation[:, None], curvatures / deviation[:, None] ** 2


def _waves(q: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    n = torch.arange(1, HARMONICS + 1, dtype=q.dtype)
    sine, cosine = (n * q[..., None]).sin(), (n * q[..., None]).cos()
    return torch.cat([n * cosine, -n * sine], -1), torch.cat([-(n**2) * sine, -(n**2) * cosine], -1)


def _powers(q: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    r, p = q[..., None], torch.tensor(POWERS, dtype=q.dtype)
    value = (CONTACT / r) ** p
    return -p * value / r, p * (p + 1) * value / r**2
