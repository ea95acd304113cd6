"""SchNet with B-spline filters: the learned energy E(x, sigma) in kT0.

Continuous-filter convolutions follow SchNet (Schuett et al., J. Chem. Phys. 148, 241722, 2018).  What differs:
radial filters are cubic B-splines whose coefficients a small network produces from the knots, so an edge costs
four multiply-adds per feature, in training and in a run alike; sines and cosines of bonded torsions enter as node
features, so that a conformation and its mirror image are told apart; the noise level gates and shifts every block;
and springs, bends and torsion series fitted to the snapshots carry what the network would otherwise take long to learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..backend import current_backend, in_transform
from ..errors import check_integer, check_number, check_tensor, require
from ..ops.spline_conv import MAX_KNOTS
from .bonded import Stiffness, across, bend_cosines, check_bends, check_springs, harmonic
from .energy import Energy
from .folded import FoldedSchNet
from .periodic import SORT_FROM, check_box, memory_order
from .topology import bonded_torsions, canonical, check_atom_types, index_rows, planes_of, sequence_of
from .torsion_series import blurred_series, torsion_series

ALL_PAIRS_LIMIT = 64  # atoms up to which every pair is an edge; above, edges come from a list within the cutoff
MAX_HARMONICS = 12
BLUR_LEVELS = 32  # noise levels at which torsion series are blurred
TORSION_SLOPE = 400.0  # 1/nm^2, mean |grad phi|^2 of a torsion: 250 in chains of carbons, 950 of some hydrogens, planes


class SchNet(Energy):
    """A conservative energy for one molecule, or for many that share atom types.

    Args:
        n_atoms: atoms of the molecule.
        n_features: width of the node features.
        n_blocks: interaction blocks.
        cutoff: nm; filters and their first two derivatives vanish there.
        bonds: pairs (i, j).
        torsions: quadruples (a, b, c, d); None takes every bonded quadruple and, for every atom of three bonds, the
            angle between its planes (:func:`planes_of`), which bonds and angles hardly hold; ``()`` none.
        atom_types: one integer per atom; atoms of one type share their embedding.  None gives each atom its own
            (one molecule); atomic numbers give one per element (many molecules, see :meth:`for_molecule`).
        n_knots: spline intervals on [0, cutoff].
        noise_levels: (smallest, largest) sigma in nm that the model is trained for.
        torsion_fade: nm; torsions count less at noise levels above it.  Noise that bends bond angles straight takes
            the meaning from a torsion and makes its slope huge; but an energy that no longer sees torsions cannot
            tell a conformation from its mirror image.
        n_harmonics: of the Fourier series of every torsion (models/torsion_series.py), which is added to the energy
            and fades like the torsions; the trainer fits it to the snapshots before it trains the rest, and calibrates
            it after.  Without it (0) the network has to make a barrier of three wells out of one turn's sine and
            cosine, and barriers come out different with the rest of the molecule.
        torsion_slopes: 1/nm^2, the mean of |grad phi|^2 of each type of torsion (``torsion_table``): noise sigma turns
            it by the variance sigma^2 times that, which blurs its series; measured by the trainer.  None takes 400.
        springs: {"pairs": [P, 2], "mean": [P] nm, "variance": [P] nm^2} of stiff distances, or None; fitted to the
            snapshots by the trainer.
        bends: {"triples": [B, 3], "mean": [B], "variance": [B], "slope": [B] 1/nm^2} of the cosines of angles
            (a, centre, c), or None; fitted with the springs.  The slope is the mean of |grad cos|^2: noise sigma
            adds sigma^2 times that to the variance of the cosine.  At larger noise bends fade, and springs between
            the ends of such an angle appear instead.
        spread: nm^2, variance per coordinate of the atoms about the molecule's centre, or None; with it the
            energy tends to the exact Gaussian at large noise.
        temperature: T0 in K.
        box: nm, edge lengths [3] or rows of box vectors [3, 3] of a periodic box, at least two cutoffs wide, or
            None.  Only the convolutions see images: bonds, torsions, springs and bends connect the atoms as
            their positions are given, so molecules must be whole.  Positions are never wrapped, and may leave the box.

    Raises:
        InputError: an argument out of range; indices of bonds, torsions, springs or bends out of the molecule; a spread
            in a periodic box, which has no centre.
    """

    def __init__(self, n_atoms: int, n_features: int = 64, n_blocks: int = 3, cutoff: float = 1.0,
                 bonds: Sequence = (), torsions: Sequence | None = None, *, atom_types: Sequence[int] | None = None,
                 n_knots: int = 100, noise_levels: tuple[float, float] = (0.002, 0.5),
                 torsion_fade: float = 0.02, n_harmonics: int = 0, torsion_slopes: Sequence[float] | None = None,
                 springs: dict[str, Any] | None = None, bends: dict[str, Any] | None = None,
                 spread: float | None = None, temperature: float = 300.0, box: Any = None):
        super().__init__()
        self.n_atoms = check_integer(n_atoms, "n_atoms", minimum=1)
        self.n_features = check_integer(n_features, "n_features", minimum=1)
        self.n_blocks = check_integer(n_blocks, "n_blocks", minimum=1)
        self.cutoff = check_number(cutoff, "cutoff", above=0, unit="nm")
        self.n_knots = check_integer(n_knots, "n_knots", minimum=4, maximum=MAX_KNOTS - 3)
        self.temperature = check_number(temperature, "temperature", above=0, unit="K")
        levels = [check_number(level, "noise_levels", above=0, unit="nm")
                  for level in sequence_of("noise_levels", noise_levels, "(smallest, largest) in nm")]
        require(len(levels) == 2, "noise_levels", "(smallest, largest) in nm", f"{len(levels)} numbers")
        low, high = levels
        require(low <= high, "noise_levels", "(smallest, largest) in nm", f"({low:g}, {high:g})")
        self.noise_levels = (low, high)
        self.noise_level = low
        self.torsion_fade = check_number(torsion_fade, "torsion_fade", above=0, unit="nm")
        self.n_harmonics = check_integer(n_harmonics, "n_harmonics", minimum=0, maximum=MAX_HARMONICS)
        self.bonds = index_rows("bonds", bonds, 2, self.n_atoms)
        self.torsions = bonded_torsions(self.bonds) + planes_of(self.bonds) if torsions is None else index_rows(
            "torsions", torsions, 4, self.n_atoms)
        types = list(range(self.n_atoms)) if atom_types is None else check_atom_types(atom_types)
        require(len(types) == self.n_atoms, "atom_types", f"{self.n_atoms} integers", len(types))
        self.atom_types = types
        self.spread = None if spread is None else check_number(spread, "spread", above=0, unit="nm^2")
        self.springs, self.bends = check_springs(springs, self.n_atoms), check_bends(bends, self.n_atoms)
        self.box = check_box(box, self.cutoff)
        require(self.box is None or self.spread is None, "spread", "None in a periodic box, which has no centre",
                self.spread)
        self.type_table = sorted(set(types))
        self.torsion_table = sorted({canonical(q, types)[0] for q in self.torsions})
        if torsion_slopes is None:
            torsion_slopes = [TORSION_SLOPE] * len(self.torsion_table)
        self._slope_torsions(torsion_slopes)
        self.support: dict[str, Any] | None = None
        self.molecule: Any = None
        self.training_record: dict[str, Any] = {}
        self._assign()
        self._build()

    def _build(self) -> None:
        width = self.n_features
        self.embedding = nn.Parameter(torch.randn(len(self.type_table), width))
        self.torsion_weights = nn.Parameter(0.3 * torch.randn(len(self.torsion_table), 4, 2, width))
        self.noise_embedding = nn.Sequential(nn.Linear(16, width), nn.SiLU())
        series = torch.zeros(len(self.torsion_table), self.n_harmonics, 2)
        # Not a parameter: where noise is small the loss hardly feels a plane soften, and larger noise softens it.
        self.register_buffer("torsion_series", series if self.n_harmonics else None)
        # a shift of the first features, per block a gate and a shift, the same for the readout
        self.noise_heads = nn.Linear(width, (2 * self.n_blocks + 3) * width)
        nn.init.zeros_(self.noise_heads.weight)
        nn.init.zeros_(self.noise_heads.bias)
        self.blocks = nn.ModuleList(_Block(width, self._n_radial()) for _ in range(self.n_blocks))
        self.readout_in = nn.Linear(width, width)
        self.readout_out = nn.Parameter(torch.randn(width) / (10 * math.sqrt(width)))
        centres = (torch.arange(self.n_knots + 3, dtype=torch.float64) - 1) * (self.cutoff / self.n_knots)
        grid = torch.linspace(0, self.cutoff, self._n_radial(), dtype=torch.float64)
        basis = _gaussians((centres[:, None] - grid) / (grid[1] - grid[0]))
        # The last three coefficients are zero, so a filter and its first two derivatives vanish at the cutoff.
        keep = torch.ones(self.n_knots + 3, 1, dtype=torch.float64)
        keep[-3:] = 0
        self.register_buffer("radial_basis", basis.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("keep", keep.to(torch.get_default_dtype()), persistent=False)
        # self.parameters() walks all modules, which takes longer than the native call of a small molecule
        self._parameter_tables = [module._parameters for module in self.modules() if module._parameters]

    def _n_radial(self) -> int:
        return max(8, round(64 * self.cutoff)) if self.cutoff < 4 else 256

    def _assign(self) -> None:
        """Indices into the tables of atom and torsion types for the molecule at hand."""
        rank = {t: i for i, t in enumerate(self.type_table)}
        missing = sorted(set(self.atom_types) - set(rank))
        require(not missing, "atom_types", f"types the model knows ({self.type_table})", f"unknown types {missing}")
        classes = {key: i for i, key in enumerate(self.torsion_table)}
        oriented = [canonical(q, self.atom_types) for q in self.torsions]
        unknown = [key for key, _ in oriented if key not in classes]
        require(not unknown, "torsions", "quadruples of atom types the model was trained with", unknown[:3])
        as_buffer = {
            "type_index": torch.tensor([rank[t] for t in self.atom_types]),
            "torsion_index": torch.tensor([classes[key] for key, _ in oriented], dtype=torch.int64),
            "quadruples": torch.tensor([q for _, q in oriented], dtype=torch.int64).reshape(-1, 4),
            "spring_pairs": torch.tensor(self.springs["pairs"], dtype=torch.int64).reshape(-1, 2),
            "spring_mean": torch.tensor(self.springs["mean"]),
            "spring_variance": torch.tensor(self.springs["variance"]),
            "spring_across": torch.tensor(across(self.springs, self.bends), dtype=torch.bool),
            "bend_triples": torch.tensor(self.bends["triples"], dtype=torch.int64).reshape(-1, 3),
            "bend_mean": torch.tensor(self.bends["mean"]),
            "bend_variance": torch.tensor(self.bends["variance"]),
            "bend_slope": torch.tensor(self.bends["slope"]),
        }
        place = self._buffers["type_index"].device if "type_index" in self._buffers else None
        for name, value in as_buffer.items():
            self.register_buffer(name, value.to(place), persistent=False)
        self._neighbors: tuple | None = None
        self._folded: tuple | None = None
        self._workspaces: list = []

    def _slope_torsions(self, slopes: Sequence[float]) -> None:
        values = [check_number(slope, "torsion_slopes", above=0, unit="1/nm^2")
                  for slope in sequence_of("torsion_slopes", slopes, "one number for each type of torsion")]
        require(len(values) == len(self.torsion_table), "torsion_slopes", f"{len(self.torsion_table)} numbers, one for "
                "each type of torsion", len(values))
        self.torsion_slopes = values
        self.register_buffer("torsion_slope", torch.tensor(values), persistent=False)

    def set_series(self, series: Tensor, slopes: Sequence[float]) -> None:
        """Put these series [torsion types, harmonics, (sin, cos)] and slopes in the place of those there are."""
        self._slope_torsions(slopes)
        self.torsion_series.copy_(series)
        self._folded = None

    def set_stiff(self, springs: dict[str, Any] | None, bends: dict[str, Any] | None) -> None:
        """Put these springs and bends in the place of those there are."""
        self.springs, self.bends = check_springs(springs, self.n_atoms), check_bends(bends, self.n_atoms)
        self._assign()

    def for_molecule(self, atom_types: Sequence[int], bonds: Sequence = (), torsions: Sequence | None = None,
                     springs: dict[str, Any] | None = None, box: Any = None,
                     bends: dict[str, Any] | None = None) -> SchNet:
        """A model of another molecule, or of a periodic box, made of the same atom types, sharing the parameters.

        Springs, bends and box are of the new system alone.  In a box there is no pull to the centre (``spread``): it
        belongs to one molecule at large noise.

        Move or convert (``to``, ``double``) before, not after: a shared parameter would change under the other model.

        Raises:
            InputError: an atom type, or a torsion of atom types, that this model has no parameters for.
        """
        twin = SchNet.__new__(SchNet)
        nn.Module.__init__(twin)
        twin.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("_buffers", "_modules")})
        twin._modules = dict(self._modules)
        twin._buffers = dict(self._buffers)
        twin.atom_types = check_atom_types(atom_types)
        twin.n_atoms = check_integer(len(twin.atom_types), "atom_types", minimum=1)
        twin.bonds = index_rows("bonds", bonds, 2, twin.n_atoms)
        twin.torsions = bonded_torsions(twin.bonds) + planes_of(twin.bonds) if torsions is None else index_rows(
            "torsions", torsions, 4, twin.n_atoms)
        twin.springs, twin.bends = check_springs(springs, twin.n_atoms), check_bends(bends, twin.n_atoms)
        twin.box = check_box(box, twin.cutoff)
        twin.spread = self.spread if twin.box is None else None
        twin.support, twin.molecule = None, None
        twin._assign()
        return twin

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able: ``SchNet(**model.config)`` has the same shape."""
        slopes = dict(zip(self.torsion_table, self.torsion_slopes))  # a twin may have fewer types of torsions
        own = sorted({canonical(q, self.atom_types)[0] for q in self.torsions})
        return {"n_atoms": self.n_atoms, "n_features": self.n_features, "n_blocks": self.n_blocks,
                "cutoff": self.cutoff, "bonds": self.bonds, "torsions": self.torsions,
                "atom_types": self.atom_types, "n_knots": self.n_knots, "noise_levels": list(self.noise_levels),
                "torsion_fade": self.torsion_fade, "n_harmonics": self.n_harmonics,
                "torsion_slopes": [slopes[key] for key in own],
                "springs": self.springs, "bends": self.bends, "spread": self.spread,
                "temperature": self.temperature, "box": self.box}

    # ---- the energy, differentiable ----------------------------------------------------------------------

    def forward(self, positions: Tensor, noise_level: Tensor) -> Tensor:
        check_tensor(positions, "positions", ("replicas", self.n_atoms, 3), like=("the model", self.embedding))
        noise = noise_level.to(positions.dtype)
        heads = self._noise_heads(noise)
        h = self.embedding[self.type_index] + heads.first[:, None]
        series = 0.0
        if len(self.torsions):
            angles = ops.torsions(positions, self.quadruples)  # [R, T, 2]
            h = h + self._torsion_weight(noise)[:, None, None] * self._torsion_features(angles)
            if self.n_harmonics:
                series = torsion_series(angles, self._series(noise)[:, self.torsion_index])[0].sum(1)
        x, box = positions, self.box_vectors(positions)
        if self.n_atoms >= SORT_FROM:
            order = torch.cat([r * self.n_atoms + memory_order(one, self.cutoff, box) for r, one in enumerate(x)])
            x, h = (each.flatten(0, 1).index_select(0, order).view(each.shape) for each in (x, h))
        neighbors = self._pairs(x)
        for block, gate, shift in zip(self.blocks, heads.gates, heads.shifts):
            coefficients = block.coefficients(self.radial_basis) * self.keep
            messages = ops.spline_conv(block.project(h), x, coefficients, neighbors, self.cutoff, box)
            h = h + block.update(messages * (1 + gate)[:, None], shift[:, None])
        last = nn.functional.silu(self.readout_in(h) + heads.shifts[-1][:, None])
        energy = (last.sum(1) * (self.readout_out * (1 + heads.gates[-1]))).sum(-1)
        return energy + series + self._stiff_energy(positions, noise)

    def _noise_heads(self, noise: Tensor) -> _Heads:
        place = self._place(noise)
        centres = torch.linspace(0, 1, 16, dtype=noise.dtype, device=noise.device)
        features = _gaussians((place[:, None] - centres) * 15)
        first, *pairs = self.noise_heads(self.noise_embedding(features)).split(self.n_features, dim=-1)
        return _Heads(first, pairs[::2], pairs[1::2])

    def _place(self, noise: Tensor) -> Tensor:
        """0 at the smallest noise level, 1 at the largest, linear in log sigma."""
        low, high = (math.log(level) for level in self.noise_levels)
        return (torch.log(noise) - low) / max(high - low, 1e-9)

    def _series(self, noise: Tensor) -> Tensor:
        """(a_n, b_n) of each torsion type at each noise level, [R, torsion types, harmonics (or none), 2]."""
        if self.torsion_series is None:
            return noise.new_zeros(len(noise), len(self.torsion_table), 0, 2)
        # worked out at a few levels, between which log sigma is interpolated: a batch has many
        # in double: logarithms of densities of 1e-6 of the largest would cost float32 0.01 kT0
        low, high = (math.log(level) for level in self.noise_levels)
        levels = torch.exp(torch.linspace(low, high, BLUR_LEVELS, dtype=torch.float64, device=noise.device))
        slope = self.torsion_slope.double()
        blurred = blurred_series(self.torsion_series.double(), levels[:, None] ** 2 * slope).to(noise.dtype)
        place = self._place(noise).clamp(0, 1)[:, None] * (BLUR_LEVELS - 1)
        share = (1 - (place - torch.arange(BLUR_LEVELS, device=noise.device)).abs()).clamp_min(0)
        blurred = (share @ blurred.flatten(1)).view(len(noise), *blurred.shape[1:])
        return blurred * self._torsion_weight(noise)[:, None, None, None]

    def _torsion_weight(self, noise: Tensor) -> Tensor:
        """How far torsions count at each noise level: 1 where there is none, 1/4 at torsion_fade, 1/25 at twice it."""
        return (self.torsion_fade**2 / (self.torsion_fade**2 + noise**2)) ** 2

    def _torsion_features(self, angles: Tensor) -> Tensor:
        weights = self.torsion_weights[self.torsion_index]  # [T, role of the atom, (sin, cos), F]
        if self.by_list():
            added = torch.einsum("rtc,tqcf->rtqf", angles, weights).flatten(1, 2)
            features = angles.new_zeros(len(angles), self.n_atoms, self.n_features)
            return features.index_add(1, self.quadruples.flatten(), added)
        # One matrix product is 2 to 3 times faster for a batch of small molecules, in memory of torsions times atoms.
        n_torsions = len(self.torsions)
        rows = torch.arange(n_torsions, device=angles.device)[:, None].expand(-1, 4)
        dense = weights.new_zeros(n_torsions, self.n_atoms, 2, self.n_features)
        dense = dense.index_put((rows, self.quadruples), weights, accumulate=True).transpose(1, 2)
        flat = dense.reshape(2 * n_torsions, self.n_atoms * self.n_features)
        return (angles.flatten(1) @ flat).view(-1, self.n_atoms, self.n_features)

    def _stiff_energy(self, positions: Tensor, noise: Tensor) -> Tensor:
        """Springs, bends and the Gaussian of large noise, with weights that depend on sigma alone."""
        stiffness = self._stiffness(noise)
        energy = positions.new_zeros(positions.shape[0])
        if len(self.springs["pairs"]):
            i, j = self.spring_pairs.unbind(1)
            r = torch.linalg.vector_norm(positions[:, i] - positions[:, j], dim=-1)
            energy = harmonic(r, self.spring_mean, stiffness.springs)
        if len(self.bends["triples"]):
            energy = energy + harmonic(bend_cosines(positions, self.bend_triples)[0], self.bend_mean, stiffness.bends)
        if self.spread is not None:
            from_centre = positions - positions.mean(1, keepdim=True)
            energy = energy + 0.5 * stiffness.centre * from_centre.square().sum((1, 2))
        return energy

    def _stiffness(self, noise: Tensor) -> Stiffness:
        return Stiffness.at(noise, self.spring_variance, self.spring_across, self.bend_variance, self.bend_slope,
                            self.spread)

    def _pairs(self, positions: Tensor):
        """Edges: all pairs of a small molecule (they do not depend on the positions, so they are kept), else a list."""
        if self.by_list():
            return ops.neighbor_list(positions.detach(), self.cutoff, box=self.box_vectors(positions))
        key, kept = (positions.shape[0], positions.device), self._neighbors
        if kept is None or kept[0] != key:
            # From zeros: the list must not carry anything over from these positions, nor from an inference mode,
            # whose tensors no backward may use, to the calls to come.
            with torch.inference_mode(False):
                kept = (key, ops.neighbor_list(torch.zeros(positions.shape, device=positions.device), None))
            if type(kept[1].col) is Tensor and not in_transform():
                self._neighbors = kept
        return kept[1]

    def by_list(self) -> bool:
        """Whether edges come from a neighbor list: more than 64 atoms, or a periodic box."""
        return self.box is not None or self.n_atoms > ALL_PAIRS_LIMIT

    def box_vectors(self, positions: Tensor) -> Tensor | None:
        """Rows of box vectors [3, 3] nm where ``positions`` are, in float64 whatever the model's dtype; or None."""
        return None if self.box is None else torch.tensor(self.box, dtype=torch.float64, device=positions.device)

    # ---- one native call -------------------------------------------------------------------------------

    def energy_and_score(self, positions: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]:
        """Energy [replicas] in kT0 and score [replicas, atoms, 3] in 1/nm.

        On the CPU, and where no gradient of the result is wanted, one native call (csrc/schnet.cpp) does the
        whole molecule, forward and backward, and models/large.py a large one or a periodic box, without autograd;
        the result for a replica does not depend on the batch it is in.
        """
        self.check_positions(positions)
        if self.native_serves(positions, noise_level):
            return self._native_call(positions, noise_level, with_score=True)
        return super().energy_and_score(positions, noise_level)

    def energy(self, positions: Tensor, noise_level: float | None = None) -> Tensor:
        """E in kT0 of each replica [replicas]; differentiable with respect to what requires a gradient."""
        self.check_positions(positions)
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self._own_parameters())
        if not learning and self.native_serves(positions, noise_level):
            return self._native_call(positions, noise_level, with_score=False)[0]
        return super().energy(positions, noise_level)

    def native_serves(self, positions: Tensor, noise_level: float | None = None) -> bool:
        """Whether energy and score of these positions are worked out without autograd, in native code."""
        wants_graph = torch.is_grad_enabled() and positions.requires_grad
        # Neither transforms nor dispatch modes (fake tensors, tracing) would see the native call.
        traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or in_transform()
        return (positions.device.type == "cpu" and not wants_graph and not traced
                and current_backend() in ("auto", "native")
                and not isinstance(noise_level, Tensor) and self.embedding.device.type == "cpu"
                and self.embedding.dtype in ops._library.NATIVE_DTYPES)

    def _noise(self, positions: Tensor, noise_level: float | Tensor | None) -> Tensor:
        if noise_level is not None and not isinstance(noise_level, Tensor):
            noise_level = check_number(noise_level, "noise_level", above=0, unit="nm")
        return super()._noise(positions, noise_level)

    def _native_call(self, positions: Tensor, noise_level: float | None,
                     with_score: bool) -> tuple[Tensor, Tensor | None]:
        level = self.noise_level
        if noise_level is not None:
            level = check_number(noise_level, "noise_level", above=0, unit="nm")
        # The native code reads memory, and knows neither torch's lazy minus nor its zeros without memory.
        positions = torch.zeros(positions.shape, dtype=positions.dtype) if positions._is_zerotensor() else (
            positions.resolve_neg())
        if self.by_list():
            from .large import energy_and_score  # which imports this module

            return energy_and_score(self, positions.detach(), level, with_score)
        folded = self.folded(level, positions.dtype)
        x = positions.detach().contiguous()
        energy, score = x.new_empty(x.shape[0]), torch.empty_like(x) if with_score else None
        folded.run(x, energy, score)
        return energy, score

    def folded(self, noise_level: float, dtype: torch.dtype) -> FoldedSchNet:
        """The parameters at one noise level as the native call wants them; kept until a parameter changes.

        A change in place through ``parameter.data`` or a shared numpy array is one that torch does not count, so it
        goes unnoticed; ``torch.no_grad()`` with ``parameter.copy_`` is the way.
        """
        parameters = self._own_parameters() + ([] if self.torsion_series is None else [self.torsion_series])
        try:
            key = (noise_level, dtype, [(p.data_ptr(), p._version) for p in parameters])
        except RuntimeError:  # made under torch.inference_mode: changes are not counted at all
            return FoldedSchNet(self, noise_level, dtype)
        kept = self._folded  # read once: another thread may put its own noise level there at any time
        if kept is None or kept[0] != key:
            # The parameters' memory is held, so that none that replace them can come to lie at the same address.
            kept = self._folded = (key, FoldedSchNet(self, noise_level, dtype), [p.detach() for p in parameters])
        return kept[1]

    def _own_parameters(self) -> list[nn.Parameter]:
        return [p for table in self._parameter_tables for p in table.values() if p is not None]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without what is kept between calls, which belongs to this object's memory."""
        return {**self.__dict__, "_neighbors": None, "_folded": None, "_workspaces": []}


class _Heads(NamedTuple):
    """What the noise level sets: a shift of the first features, gates and shifts of the blocks and, last, of the
    readout, all [R, F]."""

    first: Tensor
    gates: list[Tensor]
    shifts: list[Tensor]


def _gaussians(x: Tensor) -> Tensor:
    """exp(-x^2/2), bounded below: denormal tails slow every product they enter."""
    return torch.exp(-torch.clamp(0.5 * x**2, max=40.0))


class _Block(nn.Module):
    """One interaction: project, convolve (outside), two dense layers."""

    def __init__(self, width: int, n_radial: int):
        super().__init__()
        self.filter_in = nn.Linear(n_radial, width)
        self.filter_out = nn.Linear(width, width)
        self.project = nn.Linear(width, width, bias=False)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        for layer in (self.filter_in, self.filter_out, self.project, self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def coefficients(self, radial_basis: Tensor) -> Tensor:
        """Spline coefficients [knots + 3, features]: the filter network evaluated once on the knots."""
        return self.filter_out(nn.functional.silu(self.filter_in(radial_basis)))

    def update(self, messages: Tensor, shift: Tensor) -> Tensor:
        return self.second(nn.functional.silu(self.first(messages) + shift))
