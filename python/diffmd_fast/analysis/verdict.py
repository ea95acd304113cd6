"""From numbers to plain words: may this run be trusted, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .figures import symbol

if TYPE_CHECKING:
    from .comparison import Comparison

MAX_EXCESS = 0.02  # nats above the floor that still count as a small difference
MAX_BOND_DEVIATION = 0.01
FEW_EFFECTIVE = 50
GOOD, CAUTION, BAD = "good", "caution", "bad"
HEADLINES = {
    GOOD: "The run agrees with the reference.",
    CAUTION: "The run can be used with care: read the remarks.",
    BAD: "The run differs from the reference: do not trust its averages.",
}


@dataclass(frozen=True)
class Statement:
    """One finding: ``level`` is "good", "caution" or "bad"; ``text`` is a sentence or two."""

    level: str
    text: str


def judge(
    comparison: Comparison,
    replicas_lost: int,
    n_replicas: int,
    temperatures: tuple[float | None, float | None] = (None, None),
) -> tuple[str, list[Statement]]:
    """The worst level found, and all statements, in the order in which a reader needs them."""
    statements = [
        _divergence(comparison),
        *_floor_and_sampling(comparison),
        _lost(replicas_lost, n_replicas),
        *_populations(comparison),
        *_bonds(comparison),
        *_energy(comparison),
    ]
    run, reference = temperatures
    if run is not None and reference is not None and abs(run - reference) > 0.5:
        statements.append(
            Statement(
                CAUTION,
                f"The run is at {run:g} K and the reference at {reference:g} K: part of "
                "every difference is due to that.",
            )
        )
    levels = [statement.level for statement in statements]
    return next(level for level in (BAD, CAUTION, GOOD) if level in levels), statements


def _divergence(comparison: Comparison) -> Statement:
    floor, value = comparison.floor, comparison.js_divergence
    names = ", ".join(symbol(name) for name in comparison.dihedrals.surface)
    text = (
        f"Jensen–Shannon divergence of ({names}) is {value:.4f} nats. Two samples of one density with the "
        f"effective sizes of these would give {floor.mean:.4f} ± {floor.sd:.4f} (95 % of them below "
        f"{floor.quantile_95:.4f})"
    )
    excess = value - floor.mean
    if value <= floor.quantile_95:
        return Statement(GOOD, f"{text}: indistinguishable from the reference at this sample size.")
    if excess <= MAX_EXCESS:
        return Statement(
            CAUTION,
            f"{text}: distinguishable from the reference, by a small margin ({excess:.4f} above the floor).",
        )
    return Statement(BAD, f"{text}: clearly different from the reference ({excess:.4f} above the floor).")


def _floor_and_sampling(comparison: Comparison) -> list[Statement]:
    statements = []
    if not comparison.floor.reliable:
        statements.append(
            Statement(
                CAUTION,
                f"The sampling floor is a guess ({comparison.floor.reason}); the true one "
                "is probably higher. More replicas or longer ones settle it.",
            )
        )
    unit = "ps" if comparison.replicas.frame_interval else "frames"
    for name, function in comparison.autocorrelations.items():
        if function.resolved:
            continue
        tau = function.integrated_time_ps or function.integrated_time
        statements.append(
            Statement(
                CAUTION,
                (
                    f"{symbol(name)}: {function.reason}. Its correlation time is at least {tau:.3g} {unit}, "
                    f"and the {function.n_frames:,} frames are worth about "
                    f"{function.effective_sample_size:.0f} independent values; shares of basins still "
                    "reflect where the replicas started."
                ),
            )
        )
    smallest = comparison.effective_sample_size
    if smallest < FEW_EFFECTIVE:
        statements.append(
            Statement(
                CAUTION,
                f"Only about {smallest:.0f} independent values of the slowest dihedral: an agreement here says little.",
            )
        )
    elif not statements:
        statements.append(
            Statement(GOOD, f"The run is worth about {smallest:,.0f} independent values of its slowest dihedral.")
        )
    return statements


def _lost(replicas_lost: int, n_replicas: int) -> Statement:
    if replicas_lost == 0:
        return Statement(GOOD, f"No replica was lost ({n_replicas} of {n_replicas} ran to the end).")
    level = BAD if replicas_lost > 0.1 * n_replicas else CAUTION
    return Statement(
        level,
        f"{replicas_lost} of {n_replicas} replicas were lost (stopped before the end): averages leave "
        "out what they would have visited. A smaller time step usually helps.",
    )


def _populations(comparison: Comparison) -> list[Statement]:
    """Basins whose share is off by more than four standard errors of the difference."""
    size = comparison.effective_sample_size
    statements = []
    for name, populations in comparison.populations.items():
        for population in populations:
            # A basin the run never entered has no spread of its own; then what chance alone would scatter.
            share = max(population.reference, 1.0 / max(size, 1.0))
            chance = np.sqrt(share * (1 - min(share, 1.0)) / size)
            error = np.hypot(
                max(np.nan_to_num(population.run_error), chance), np.nan_to_num(population.reference_error)
            )
            if abs(population.run - population.reference) > 4 * error:
                statements.append(
                    Statement(
                        CAUTION,
                        (
                            f"Basin {population.name} of {symbol(name)}: {100 * population.run:.1f} % in "
                            f"the run, {100 * population.reference:.1f} % in the reference, more than four "
                            "standard errors apart."
                        ),
                    )
                )
    return statements


def _bonds(comparison: Comparison) -> list[Statement]:
    if not comparison.bonds.labels:
        return []
    deviation = np.abs(comparison.bonds.relative_deviation)
    worst = int(deviation.argmax())
    label, percent = comparison.bonds.labels[worst], 100 * deviation[worst]
    if deviation[worst] <= MAX_BOND_DEVIATION:
        return [
            Statement(GOOD, f"Mean bond lengths are within {percent:.2f} % of the reference (largest for {label}).")
        ]
    return [
        Statement(
            BAD,
            f"The mean length of bond {label} is {percent:.2f} % off the reference; more than 1 % points "
            "to a time step that is too long or to a poorly trained model.",
        )
    ]


def _energy(comparison: Comparison) -> list[Statement]:
    energy = comparison.energy
    if energy is None:
        return []
    inside = energy.reference_low <= energy.run_mean <= energy.reference_high
    text = (
        f"Mean learned energy {energy.run_mean:.2f} kT0 in the run, {energy.reference_mean:.2f} over the "
        f"reference at the model's noise level (5 to 95 %: {energy.reference_low:.2f} to {energy.reference_high:.2f})"
    )
    return [
        Statement(GOOD, text + ".")
        if inside
        else Statement(BAD, text + ": the run does not sample what the reference does.")
    ]
