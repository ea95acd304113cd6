"""Operations and bytes of each kernel, counted by hand, and the shortest time they leave a machine.

A multiply-add counts as two operations.  The rates are those that ``suite/machine.py`` measured in the same run: the
matrix rate of ``torch.mm`` for operations, the bandwidth of ``torch.add`` for bytes, one thread each.
"""

from __future__ import annotations

from dataclasses import dataclass

FEATURES, BLOCKS = 64, 3


@dataclass(frozen=True)
class Count:
    """Operations and bytes of main memory of one unit of work (an evaluation, a coordinate, an edge)."""

    operations: float
    bytes: float

    def floor(self, operations_per_second: float, bytes_per_second: float) -> float:
        """Seconds below which the machine cannot go: the slower of the two, as if they overlapped entirely."""
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes


def evaluation(atoms: int, features: int = FEATURES, blocks: int = BLOCKS, pairs: float | None = None) -> Count:
    """Energy and score of one molecule; all pairs unless their number is given.

    Per block three products [atoms, F] x [F, F] forward and three backward, and one of each for the readout.  Per
    pair and feature, forward: the filter (4 multiply-adds) and a message each way (2); backward: filter and slope (8),
    the slope's factor (3), a message each way (2).  silu and its slope about 30 operations.  Weights stay in the L2.
    """
    products = 2 * atoms * features**2 * (6 * blocks + 2)
    n_pairs = atoms * (atoms - 1) // 2 if pairs is None else pairs
    of_pairs = n_pairs * features * blocks * 2 * (6 + 13)
    activations = 30 * atoms * features * (blocks + 1)
    return Count(products + of_pairs + activations, 24 * atoms + 4)


def spline_conv(which: str) -> Count:
    """One edge of one feature: multiply-adds 5 forward, 12 in the backward, 18 in the double backward.

    Bytes are those of the list (4 of col an edge, shared by the features); feature rows come from the caches.
    """
    multiply_adds = {"forward": 5, "backward": 12, "double_backward": 18}[which]
    return Count(2 * multiply_adds, 4 / FEATURES)


def em_step(operations: float) -> Count:
    """One coordinate: reads position and score, writes the position (float32)."""
    return Count(operations, 12)


def neighbor_list(periodic: bool, candidates: float) -> Count:
    """One edge of a full list with distances: col 4, reverse 8, distance 4 and, with a box, shift 12 bytes written.

    ``candidates`` is how many pairs are examined for one that is listed, at 8 operations each (15 with a box).
    """
    return Count(candidates * (15 if periodic else 8), 28 if periodic else 16)
