"""Free energy differences between states, in kT, with errors from the run's own autocorrelation.

The estimates come from pymbar, an extra: pip install 'diffmd-fast[analysis]'.  Its errors take frames as independent;
here each average behind an estimate has the error that `average` gives it.

    Zwanzig    dF = -log <exp(-(U1 - U0))>_0                    frames of state 0 only
    Jarzynski  dF = -log <exp(-W)>                              independent pulls from state 0 to 1
    Bennett    dF = log <f(U0 - U1 + C)>_1 / <f(U1 - U0 - C)>_0 + C,  f(x) = 1/(1 + exp x)
    MBAR       all states at once

All energies and works are in kT of the run.  Where one frame in a million carries an exponential average, the run has
not seen it and no error tells: an estimate that fewer than `FEW_FRAMES` frames carry is called unreliable, and the two
ends of a path (Bennett) are better than one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, UnavailableError, require
from .autocorrelation import autocorrelation, check_finite, check_replicas
from .averages import Average, average

FEW_FRAMES = 20


@dataclass(frozen=True)
class FreeEnergyDifference:
    """A free energy difference F1 - F0 in kT.

    difference, error: kT; the error is a standard error, to first order.
    effective_sample_sizes: independent frames behind each average, one per side.
    carried_by: frames that carry each average, (sum w)^2 / sum w^2 of the terms w, one per side.
    reliable: whether the correlation times are resolved and enough frames carry the averages; ``reason`` if not.
    """

    difference: float
    error: float
    effective_sample_sizes: tuple[float, ...]
    carried_by: tuple[float, ...]
    reliable: bool
    reason: str


def zwanzig(energy_difference: Sequence[np.ndarray], frame_interval: float | None = None) -> FreeEnergyDifference:
    """F1 - F0 from frames of state 0 alone (Zwanzig, J. Chem. Phys. 22, 1420 (1954)), by exponential averaging.

    energy_difference: one array [frames] per replica, U1 - U0 in kT at frames of state 0, in time order.
    frame_interval: ps between frames; changes no result here, checked only.

    Raises `InputError` for values that are no finite numbers, `UnavailableError` without pymbar.
    """
    series = check_replicas(energy_difference, "energy_difference")
    work = np.concatenate(series)
    found = _pymbar("other_estimators").exp(work, compute_uncertainty=False)["Delta_f"]
    terms = [np.exp(work.min() - part) for part in series]
    return _difference(float(found), [average(terms, frame_interval)], [terms])


def jarzynski(work: np.ndarray) -> FreeEnergyDifference:
    """F1 - F0 from the work of pulls from 0 to 1 (Jarzynski, Phys. Rev. Lett. 78, 2690 (1997)).

    work: [pulls] in kT, each pull started from an independent frame of state 0 in equilibrium; two or more.
    Pulls both ways go to `bennett` (Crooks, Phys. Rev. E 61, 2361 (2000)).

    Raises `InputError` for works that are no finite numbers or fewer than two, `UnavailableError` without pymbar.
    """
    require(np.ndim(work) == 1, "work", "an array [pulls]", f"shape {list(np.shape(work))}")
    (series,) = check_replicas([work], "work")
    require(len(series) > 1, "work", "two pulls or more", len(series))
    found = _pymbar("other_estimators").exp(series)
    terms = np.exp(series.min() - series)
    carried = _carried_by([terms])
    reason = _too_few(carried)
    return FreeEnergyDifference(
        float(found["Delta_f"]), float(found["dDelta_f"]), (float(len(series)),), (carried,), not reason, reason
    )


def bennett(
    forward: Sequence[np.ndarray], backward: Sequence[np.ndarray], frame_interval: float | None = None
) -> FreeEnergyDifference:
    """F1 - F0 from frames of both states (Bennett, J. Comput. Phys. 22, 245 (1976)), the best use of two states.

    forward: one array [frames] per replica, U1 - U0 in kT at frames of state 0, in time order.
    backward: U0 - U1 in kT at frames of state 1.  Works of pulls from 0 to 1 and from 1 to 0 serve as well.
    frame_interval: ps between frames; changes no result here, checked only.

    Error: each side's average of f has its own correlation time; the constant C does not matter to first order.
    Raises `InputError` for bad values or where the two sides do not overlap, `UnavailableError` without pymbar.
    """
    ahead, back = check_replicas(forward, "forward"), check_replicas(backward, "backward")
    works = np.concatenate(ahead), np.concatenate(back)
    estimator = _pymbar("other_estimators").bar
    with np.errstate(all="ignore"):  # pymbar sets numpy's error state; the context puts it back
        try:
            found = estimator(*works, compute_uncertainty=False)["Delta_f"]
        except Exception as error:  # pymbar has several kinds, for one cause
            raise InputError(f"backward: expected works that overlap with forward, got none ({error})") from None
    shift = float(found) - np.log(len(works[0]) / len(works[1]))
    terms = [[_fermi(part - shift) for part in ahead], [_fermi(part + shift) for part in back]]
    require(
        all(max(part.max() for part in side) > 0 for side in terms),
        "backward",
        "works that overlap with forward",
        "none",
    )
    return _difference(float(found), [average(side, frame_interval) for side in terms], terms)


def _fermi(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 - np.tanh(0.5 * x))


def _difference(
    value: float, averages: Sequence[Average], terms: Sequence[Sequence[np.ndarray]]
) -> FreeEnergyDifference:
    """Error of a sum of logarithms of independent averages."""
    constant = [bool(found.autocorrelation.variance <= 1e-24 * found.mean**2) for found in averages]
    errors = [0.0 if same else found.error / found.mean for found, same in zip(averages, constant)]
    carried = tuple(_carried_by(side) for side in terms)
    reasons = [found.reason for found, same in zip(averages, constant) if found.reason and not same]
    reason = "; ".join([*reasons, *filter(None, [_too_few(min(carried))])])
    sizes = tuple(found.effective_sample_size for found in averages)
    return FreeEnergyDifference(value, float(np.sqrt(np.square(errors).sum())), sizes, carried, not reason, reason)


def _carried_by(terms: Sequence[np.ndarray]) -> float:
    values = np.concatenate(terms)
    return float(values.sum() ** 2 / (values**2).sum())


def _too_few(carried: float) -> str:
    return "" if carried >= FEW_FRAMES else f"only about {carried:.2g} frames carry the average"


@dataclass(frozen=True)
class MbarFreeEnergies:
    """What `mbar` finds.

    differences: F_j - F_i in kT, [states, states].  errors: their standard errors, [states, states].
    statistical_inefficiencies: frames worth one independent frame in each state, [states].
    reliable: whether the correlation times are resolved; ``reason`` if not.
    """

    differences: np.ndarray
    errors: np.ndarray
    statistical_inefficiencies: np.ndarray
    reliable: bool
    reason: str


def mbar(energies: Sequence[Sequence[np.ndarray]]) -> MbarFreeEnergies:
    """Free energies of all states from frames of all of them (Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008)).

    energies: for each state a list with one array [frames, states] per replica: the energies in kT of that state's
    frames, in time order, in every state.

    The estimate uses every frame.  Its error is that of the frames thinned to independent ones, each state by the
    longest correlation time among its energy differences to the other states.
    Raises `InputError` for wrong shapes or energies that are not finite, `UnavailableError` without pymbar.
    """
    states = _check_energies(energies)
    n_states = len(states)
    inefficiencies, reasons = np.ones(n_states), []
    for k, replicas in enumerate(states):
        for other in range(n_states):
            found = autocorrelation([part[:, other] - part[:, k] for part in replicas])
            if found.variance <= 1e-20 * max(1.0, abs(found.mean) ** 2):
                continue  # a constant gap knows the difference exactly
            inefficiencies[k] = max(inefficiencies[k], found.statistical_inefficiency)
            if not found.resolved:
                reasons.append(f"state {k}: {found.reason}")
                break
    thinned = [[part[:: int(np.ceil(g - 1e-9))] for part in replicas] for replicas, g in zip(states, inefficiencies)]
    every, some = (_solve(frames) for frames in (states, thinned))
    return MbarFreeEnergies(
        every.compute_free_energy_differences(compute_uncertainty=False)["Delta_f"],
        some.compute_free_energy_differences()["dDelta_f"],
        inefficiencies,
        not reasons,
        "; ".join(reasons),
    )


def _check_energies(energies: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    require(
        hasattr(energies, "__len__") and len(energies) > 1,
        "energies",
        "two states or more",
        len(energies) if hasattr(energies, "__len__") else type(energies).__name__,
    )
    states = []
    for k, replicas in enumerate(energies):
        require(
            hasattr(replicas, "__len__") and len(replicas) > 0,
            "energies",
            "at least one replica per state",
            f"none for state {k}",
        )
        arrays = [np.asarray(part, dtype=np.float64) for part in replicas]
        for number, part in enumerate(arrays):
            require(
                part.ndim == 2 and len(part) > 0 and part.shape[1] == len(energies),
                "energies",
                f"arrays [frames, {len(energies)}]",
                f"shape {list(part.shape)} for state {k}",
            )
            check_finite(part, "energies", f"state {k}, replica {number}")
        states.append(arrays)
    return states


def _solve(states: Sequence[Sequence[np.ndarray]]) -> Any:
    MBAR = _pymbar("mbar").MBAR
    frames = np.concatenate([part for replicas in states for part in replicas])
    counts = np.array([sum(len(part) for part in replicas) for replicas in states])
    with np.errstate(all="ignore"):
        return MBAR(np.ascontiguousarray(frames.T), counts)


def _pymbar(module: str) -> Any:
    """A module of pymbar, without what it logs when it is imported: that jax is missing, which is not needed."""
    import importlib

    logger = logging.getLogger("pymbar")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module(f"pymbar.{module}")
    except ImportError:
        raise UnavailableError("free energy differences need pymbar: pip install 'diffmd-fast[analysis]'") from None
    finally:
        logger.setLevel(level)
