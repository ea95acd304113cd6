"""Springs of stiff distances and bends of bond angles: the harmonic part of the energy, fitted to the snapshots.

A bend is harmonic in the cosine of its angle, which is smooth everywhere and needs no inverse function; for the few
degrees that an angle turns it is the harmonic angle of force fields.  csrc/bend_math.hpp has the same for native code.
Noise as large as a tenth of a bond takes the meaning from its angles, and from their cosines' slopes any bound.  There
springs between the ends of the angles take over, whose pull along the bonds would be wrong where noise is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import check_number, require
from ..reference.torsions import LENGTH_FLOOR
from .topology import index_rows, sequence_of

FADE = 0.05  # nm; springs describe small fluctuations only, so they fade at noise levels above this
TAKE_OVER = 0.01  # nm; noise level at which bends fade and springs between the ends of an angle appear, each at 1/4


class Stiffness(NamedTuple):
    """In kT0: of each spring [R, P] 1/nm^2, each bend [R, B], and the pull to the centre [R] 1/nm^2."""

    springs: Tensor
    bends: Tensor
    centre: Tensor

    @classmethod
    def at(cls, noise: Tensor, spring_variance: Tensor, across: Tensor, bend_variance: Tensor, bend_slope: Tensor,
           spread: float | None) -> Stiffness:
        """At noise levels [R] in nm; ``across`` [P] tells springs between the ends of a bend's angle.

        A coordinate q with variance v has variance v + sigma^2 |grad q|^2 once all its atoms carry noise sigma; for a
        distance that is v + 2 sigma^2.  The pull sigma^2/(sigma^2 + v)^2 tends to the exact 1/sigma^2 of pure noise
        and vanishes where there is none.
        """
        squared = noise[:, None] ** 2
        springs = FADE**2 / (FADE**2 + squared) / (spring_variance.to(noise.dtype) + 2 * squared)
        appears = (squared / (TAKE_OVER**2 + squared)) ** 2
        return cls(torch.where(across, appears * springs, springs),
                   bend_weight(squared) / (bend_variance.to(noise.dtype) + bend_slope.to(noise.dtype) * squared),
                   squared[:, 0] / (squared[:, 0] + (spread or 1.0)) ** 2)


def bend_weight(squared_noise: Any) -> Any:
    """How far bends count at a noise level."""
    return (TAKE_OVER**2 / (TAKE_OVER**2 + squared_noise)) ** 2


def harmonic(values: Tensor, mean: Tensor, stiffness: Tensor) -> Tensor:
    """Energy [R] in kT0 of coordinates [R, n]."""
    return 0.5 * (stiffness * (values - mean.to(values.dtype)) ** 2).sum(1)


def bend_cosines(positions: Tensor, triples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines [R, B] of the angles (a, centre, c), and their gradients by a and by c [R, B, 3] in 1/nm.

    That by the centre is minus the sum of both.  A floor under the square of a bond keeps all smooth at length 0.
    """
    a, centre, c = triples.unbind(1)
    u, v = positions[:, a] - positions[:, centre], positions[:, c] - positions[:, centre]
    over_u, over_v = (torch.rsqrt(w.square().sum(-1, keepdim=True) + LENGTH_FLOOR) for w in (u, v))
    u, v = u * over_u, v * over_v
    cosine = (u * v).sum(-1, keepdim=True)
    return cosine[..., 0], over_u * (v - cosine * u), over_v * (u - cosine * v)


def across(springs: dict[str, Any], bends: dict[str, Any]) -> list[bool]:
    """Of each spring: whether it joins the ends of the angle of a bend."""
    ends = {frozenset((a, c)) for a, _, c in bends["triples"]}
    return [frozenset(pair) in ends for pair in springs["pairs"]]


def check_springs(springs: Any, n_atoms: int) -> dict[str, Any]:
    """Springs as a mapping of lists; InputError for anything else."""
    return _check("springs", springs, "pairs", 2, n_atoms,
                  {"mean": dict(minimum=0, unit="nm"), "variance": dict(above=0, unit="nm^2")})


def check_bends(bends: Any, n_atoms: int) -> dict[str, Any]:
    """Bends as a mapping of lists; InputError for anything else."""
    return _check("bends", bends, "triples", 3, n_atoms,
                  {"mean": {}, "variance": dict(above=0), "slope": dict(minimum=0, unit="1/nm^2")})


def _check(name: str, given: Any, rows: str, width: int, n_atoms: int, limits: dict[str, dict]) -> dict[str, Any]:
    given = given or {key: [] for key in (rows, *limits)}
    require(isinstance(given, Mapping) and {rows, *limits} <= given.keys(), name,
            f"a mapping with {', '.join((rows, *limits))}", repr(given)[:80])
    result: dict[str, Any] = {rows: index_rows(name, given[rows], width, n_atoms)}
    for key, limit in limits.items():
        numbers = sequence_of(name, given[key], f"{key} as one number for each of the {rows}")
        result[key] = [check_number(number, name, **limit) for number in numbers]
    require(len({len(part) for part in result.values()}) == 1, name,
            f"as many of {', '.join(limits)} as {rows}", [len(part) for part in result.values()])
    return result
