"""Which figures a report has, in which order and under which captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import (
    autocorrelation_figure,
    bonds_figure,
    distances_figure,
    distributions_figure,
    energy_figure,
    summary_figure,
    surface_figure,
)
from .observable_figures import structure_figure

if TYPE_CHECKING:
    from .comparison import Comparison


def draw_all(comparison: Comparison, directory: Path, step: Callable[[str], None]) -> dict[str, str]:
    """Write every figure that applies into ``directory``; returns file names and captions, in order."""
    pair = len(comparison.dihedrals.surface) == 2
    figures: list[tuple[str, Callable, str]] = [
        ("summary.png", summary_figure, "Free energies, autocorrelation and bond lengths at a glance."),
        (
            "surface.png",
            surface_figure,
            (
                "Free-energy surfaces on one scale and their difference. For display the histograms are "
                "smoothed by one bin; the divergence uses the raw counts. White: above 6 kT. Grey: too few "
                "frames for a difference."
            )
            if pair
            else "Distribution of the dihedral and its free energy, raw counts.",
        ),
        (
            "autocorrelation.png",
            autocorrelation_figure,
            "Autocorrelation of the dihedrals: normalized (mean over all "
            "replicas removed; the band is one standard error between replicas), and ⟨cos(q(t)−q(0))⟩.",
        ),
    ]
    if pair:
        figures.append(("dihedrals.png", distributions_figure, "Distribution of each dihedral."))
    if len(comparison.bonds.labels):
        figures.append(("bonds.png", bonds_figure, "Bond lengths. The shaded band is one percent."))
    if comparison.shown_distances[0].labels:
        figures.append(
            (
                "distances.png",
                distances_figure,
                "Distances of atoms three or more bonds apart: those "
                "that vary most, leaving out near copies of one another.",
            )
        )
    figures.append(
        (
            "structure.png",
            structure_figure,
            "Radius of gyration, all atoms alike (± one standard error of the mean), and how alike the frames of one "
            "replica are: the correlation of their coordinates after alignment. Blocks along the diagonal are states "
            "in which the molecule stayed for a while.",
        )
    )
    if comparison.energy is not None:
        figures.append(
            ("energy.png", energy_figure, "Learned energy along the run, over that of the reference frames.")
        )
    for name, draw, _ in figures:
        step(f"drawing {name}")
        draw(comparison, directory / name)
    return {name: caption for name, _, caption in figures}


ALL_FIGURES = (
    "summary.png",
    "surface.png",
    "autocorrelation.png",
    "dihedrals.png",
    "bonds.png",
    "distances.png",
    "structure.png",
    "energy.png",
)
