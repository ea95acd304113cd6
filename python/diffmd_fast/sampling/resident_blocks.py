"""The resident loop on a GPU: molecules in the shared memory of thread blocks (kernels/cuda/resident_sampler.cu).

Where the positions are on the CPU, :class:`BlockRun` runs the same device code on the host, thread after thread.  The
sampler never chooses that; the tests do.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _C
from ..backend import current_backend
from ..errors import UnavailableError
from ..models.folded import FEATURE_MULTIPLE, BlockWeights
from .resident import PRECISIONS, ResidentRun

if TYPE_CHECKING:
    from ..models import SchNet
    from .sampler import Sampler

MAX_LANES = 512  # kernels/cuda/resident_blocks.hpp: kBlockLanes
MAX_ROWS = 66  # atoms of a block of several molecules: each streams the weights once for all of them
TOLERANCE = 0.05  # relative, of blocks against the model: either may multiply in tf32
HOST_LIMITS = (227 * 1024, 132)  # of an H100, for the emulation


def why_not_blocks(sampler: Sampler, positions: Tensor) -> str | None:
    """Why a run on a GPU must go step by step, or None when the resident loop serves it."""
    if current_backend() != "auto":
        return f'the backend is "{current_backend()}"'
    if positions.dtype != torch.float32:
        return f"positions are {positions.dtype}, and the GPU's loop works in float32"
    if sampler.model.by_list():
        return "the model finds its pairs by list (more than 64 atoms, or a periodic box)"
    reason = _C.cuda_probe()
    if reason:
        return reason
    need, have = block_bytes(sampler.model, 1), _C.cuda_block_limits(_index(positions.device))[0]
    if need > have:
        return (f"a molecule needs {need / 1024:.0f} KiB of shared memory, of which a block of this GPU can have "
                f"{have / 1024:.0f}")
    return None


def block_bytes(model: SchNet, molecules: int) -> int:
    """Bytes of shared memory of a block of so many molecules."""
    n_features = -(-model.n_features // FEATURE_MULTIPLE) * FEATURE_MULTIPLE
    return _C.resident_block_bytes(model.n_atoms, n_features, model.n_blocks, len(model.torsions),
                                   len(model.springs["pairs"]), len(model.bends["triples"]), molecules)


def plan(model: SchNet, n_replicas: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Molecules of a block, and its lanes.

    As many molecules as fit in ``limits`` = (bytes of shared memory, multiprocessors) and MAX_ROWS, but no
    multiprocessor idle for it; as few lanes as the features of the rows, four a lane, need in the same number of
    rounds.  Not measured on a GPU yet.  The trajectory does not depend on either.
    """
    memory, processors = limits
    molecules = max(1, min(MAX_ROWS // model.n_atoms, -(-n_replicas // processors)))
    while molecules > 1 and block_bytes(model, molecules) > memory:
        molecules -= 1
    items = molecules * model.n_atoms * -(-model.n_features // 4)
    rounds = -(-items // MAX_LANES)
    return molecules, -(-items // (32 * rounds)) * 32


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


class BlockRun(ResidentRun):
    """A run whose molecules stay in shared memory for all the steps of a call.

    Energy and score are the blocks' own from the first step on, so that a run stopped and resumed anywhere is the same
    run to the bit.
    """

    _backward = False  # the order in which the emulation takes lanes and items

    def _prepare(self, sampler: Sampler) -> None:
        positions, model = self.positions, sampler.model
        self._device = positions.device
        if self._device.type == "cuda":
            model = copy.deepcopy(model).cpu()  # folded on the host: the same weights whatever the GPU
        self._weights = BlockWeights(model.folded(sampler.noise_level, torch.float32), self._device)
        limits = HOST_LIMITS if self._device.type == "cpu" else _C.cuda_block_limits(_index(self._device))
        self._molecules, self._lanes = plan(model, len(positions), limits)
        self._precision, self._evaluates = PRECISIONS.index(sampler.precision), False
        self._checked_pairs = self._limits[0].cpu()
        self._limits = (*(limit.to(self._device) for limit in self._limits[:3]), self._limits[3])
        self._memory = (None,) * 4  # what integrators work in is in shared memory

    def _begin(self) -> None:
        part, positions = self._parts[0], self.positions
        part.energy, part.score = positions.new_empty(len(positions)), torch.empty_like(positions)
        self._evaluates = True
        self._call(self.step, self.step, 1, 1)  # no step
        self._evaluates = False
        self._compare(part.energy[0], part.score[0])

    def _compare(self, energy: Tensor, score: Tensor) -> None:
        """The first replica's against the model's own: no run on blocks that compute something else."""
        (wanted_energy,), (wanted_score,) = self._evaluate(self.positions[:1])
        for name, got, wanted in (("energy", energy, wanted_energy), ("score", score, wanted_score)):
            off, scale = (got - wanted).abs().max().item(), max(1.0, wanted.abs().max().item())
            if off > TOLERANCE * scale:
                raise UnavailableError(f"resident: the GPU's loop is off the model's {name} by {off:.3g} of "
                                       f"{scale:.3g}; run with resident=False, and please report it")

    def _run(self, fields: dict[str, Any]) -> None:
        if self._device.type == "cpu":
            _C.resident_emulated(self._weights.description, fields, self._evaluates, self._molecules, self._lanes,
                                 self._precision, self._backward)
            return
        stream = torch.cuda.current_stream(self._device).cuda_stream
        _C.resident_cuda(self._weights.description, self._weights.place, fields, self._checked_pairs.data_ptr(),
                         self._evaluates, self._molecules, self._lanes, self._precision, _index(self._device), stream)
