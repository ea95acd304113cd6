"""How fast a run moves: relaxation time of a number, hop rates between cores, TICA, VAMP-2, implied timescales.

Errors come from pieces of the run that count as independent: replicas, or blocks of ten correlation times or of ten
lags, whichever is longer (`resampling_units`).  Time-lagged pairs never reach over the end of a piece.
TICA, VAMP-2 and implied timescales go through deeptime, which is an extra: pip install 'diffmd-fast[analysis]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, UnavailableError, check_integer, check_number, require
from .autocorrelation import autocorrelation, check_finite, check_replicas
from .divergence import Units, resampling_units

TORSION_CORES = ("trans", "gauche+", "gauche-")
TRANS_CORE = np.radians(160.0)  # |angle| above
GAUCHE_CORE = np.radians([45.0, 85.0])  # |angle| between


# ---- one number ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RelaxationTime:
    """What `relaxation_time` finds, ps (frames where the time between frames is not known).

    time: relaxation time; nan where the autocorrelation is noise at these lags.  error: its standard error.
    lag: the shorter of the two lags compared, in frames.
    reliable: whether the pieces behind the error are long and many enough; ``reason`` if not.
    """

    time: float
    error: float
    lag: int
    reliable: bool
    reason: str


def relaxation_time(
    values: Sequence[np.ndarray], frame_interval: float | None = None, lag: int | None = None
) -> RelaxationTime:
    """Slowest relaxation time of a number, from its connected autocorrelation C at two lags.

    values: one array [frames] per replica, any unit, in time order: a coordinate, the indicator of a basin.
    frame_interval: ps between frames; None gives frames.
    lag: l in frames; default the integrated autocorrelation time.

    time = l / log(C(l) / C(2l)).  One exponential gives its own time whatever its share of C(0); a faster part of
    rate r2 beside the slow r1 disappears as exp(-(r2 - r1) l), where the integrated time keeps its share for ever.
    Error: jackknife over pieces.  Raises `InputError` for bad values, or a lag that leaves no pairs.
    """
    series = check_replicas(values)
    found = autocorrelation(series, frame_interval)
    require(found.variance > 0 and np.isfinite(found.integrated_time), "values", "values that change", found.reason)
    longest = max(len(part) for part in series)
    if lag is None:
        lag = max(1, min(round(found.integrated_time), (longest - 1) // 2))
    lag = check_integer(lag, "lag", minimum=1)
    require(2 * lag < longest, "lag", f"less than half of the longest replica ({longest} frames)", lag)
    units = _pieces(series, found.integrated_time, 2 * lag, found.resolved)
    parts = [piece - found.mean for piece in units.pieces()]
    sums = np.array([[(p[:-k] * p[k:]).sum() for k in (lag, 2 * lag)] for p in parts])
    counts = np.array([[max(len(p) - k, 0) for k in (lag, 2 * lag)] for p in parts])
    interval = frame_interval or 1.0
    ratio = sums.sum(axis=0) / counts.sum(axis=0)
    left_out = (sums.sum(axis=0) - sums) / np.maximum(counts.sum(axis=0) - counts, 1)
    times = _decay_time(left_out, lag * interval)
    time = float(_decay_time(ratio, lag * interval))
    # One piece leaves nothing out; a nan among the times makes the error nan.
    error = float(np.sqrt((len(parts) - 1) * times.var())) if len(parts) > 1 else np.nan
    reasons = [] if found.resolved else [found.reason]
    reasons += [units.reason] if units.reason else []
    if not np.isfinite([time, error]).all():
        reasons.append(f"the autocorrelation at lags of {lag} and {2 * lag} frames does not decay above its noise")
    return RelaxationTime(time, error, lag, not reasons and units.reliable, "; ".join(reasons))


def _decay_time(pair: np.ndarray, lag: float) -> np.ndarray:
    """Time of the exponential through C(l), C(2l) in pair [..., 2]; nan where it does not decay from above zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.log(pair[..., 0] / pair[..., 1]) / lag
        return np.where((pair[..., 1] > 0) & (rate > 0), 1 / rate, np.nan)


def _pieces(
    series: Sequence[np.ndarray], correlation_time: float, longest_lag: int, resolved: bool, argument: str = "lag"
) -> Units:
    """Pieces that count as independent, and hold the longest lag ten times where they are blocks."""
    units = resampling_units(series, max(correlation_time, longest_lag, 1.0), resolved)
    require(
        int(units.lengths.max()) > longest_lag,
        argument,
        f"lags shorter than the pieces of the run that count as independent ({units.description})",
        f"{longest_lag} frames",
    )
    return units


# ---- hops between cores ----------------------------------------------------------------------------


@dataclass(frozen=True)
class HopRates:
    """What `hop_rates` finds.

    counts: [cores, cores], hops from the row's core to the column's.
    time: [cores], ps (or frames) spent since the last core visited was this one.
    rates: counts / time, [cores, cores], 1/ps (or 1/frame); nan for a core never visited.
    errors: their Poisson errors, sqrt(counts) / time, and one hop's worth where none was seen.
    """

    counts: np.ndarray
    time: np.ndarray
    rates: np.ndarray
    errors: np.ndarray

    @property
    def total(self) -> int:
        """All hops."""
        return int(self.counts.sum())

    @property
    def total_rate(self) -> float:
        """All hops over all the time, 1/ps (or 1/frame)."""
        return self.total / float(self.time.sum())

    @property
    def total_rate_error(self) -> float:
        """Poisson error of `total_rate`."""
        return float(np.sqrt(max(self.total, 1)) / self.time.sum())


def torsion_core(angles: np.ndarray) -> np.ndarray:
    """Core of each torsion as an index into `TORSION_CORES`, -1 between them; keeps the shape.

    angles: radians, any multiple of 2 pi.  trans: |angle| > 160 degrees; gauche+ 45 to 85, gauche- -85 to -45.
    Raises `InputError` for angles that are not finite.
    """
    array = np.asarray(angles, dtype=np.float64)
    require(bool(np.isfinite(array).all()), "angles", "finite angles", "a NaN or an infinity")
    wrapped = np.mod(array + np.pi, 2 * np.pi) - np.pi
    size = np.abs(wrapped)
    gauche = (size > GAUCHE_CORE[0]) & (size < GAUCHE_CORE[1])
    return np.where(size > TRANS_CORE, 0, np.where(gauche, np.where(wrapped > 0, 1, 2), -1))


def hop_rates(cores: Sequence[np.ndarray], frame_interval: float | None = None, n_cores: int | None = None) -> HopRates:
    """Rates of hops from core to core, with Poisson errors.

    cores: one integer array [frames] per replica, in time order: the core of each frame, -1 outside all
    (`torsion_core`).  A frame outside belongs to the last core visited, so that recrossings of a barrier are no
    hops; frames before the first core count for nothing.
    frame_interval: ps between frames; None gives rates per frame.  n_cores: default the largest index + 1.

    The Poisson error holds for hops that are rare and independent of one another.
    Raises `InputError` for cores that are no integers, out of range, or never visited at all.
    """
    series = check_replicas(cores, "cores")
    require(all(np.asarray(part).dtype.kind in "iu" for part in cores), "cores", "integers", "floating point numbers")
    highest = int(max(part.max() for part in series))
    require(highest >= 0, "cores", "at least one frame in a core", "none")
    n_cores = highest + 1 if n_cores is None else check_integer(n_cores, "n_cores", minimum=1)
    lowest = int(min(part.min() for part in series))
    require(lowest >= -1 and highest < n_cores, "cores", f"-1 to {n_cores - 1}", f"{lowest} to {highest}")
    interval = 1.0 if frame_interval is None else check_number(frame_interval, "frame_interval", above=0, unit="ps")
    counts = np.zeros((n_cores, n_cores), dtype=np.int64)
    time = np.zeros(n_cores)
    for part in series:
        last = np.maximum.accumulate(np.where(part >= 0, np.arange(len(part)), -1))
        belongs = part[last[last >= 0]].astype(np.int64)
        # A frame stands for the interval that follows it, which the last one does not have.
        time += np.bincount(belongs[:-1], minlength=n_cores) * interval
        hops = np.flatnonzero(np.diff(belongs))
        np.add.at(counts, (belongs[hops], belongs[hops + 1]), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spent = np.where(time > 0, time, np.nan)[:, None]
        errors = np.sqrt(np.maximum(counts, 1)) / spent
        rates = counts / spent
    np.fill_diagonal(errors, np.nan)
    np.fill_diagonal(rates, np.nan)
    return HopRates(counts, time, rates, errors)


# ---- many features at once, through deeptime -------------------------------------------------------


@dataclass(frozen=True)
class ImpliedTimescales:
    """What `implied_timescales` finds, slowest first, ps (frames where the time between frames is not known).

    lags: [lags].  timescales: [lags, processes]; nan where an eigenvalue is not between 0 and 1.
    errors: their standard errors, [lags, processes], from resampling pieces; nan where most resamples give none.
    units: those pieces, in words.
    reliable: whether the pieces are long and many enough; ``reason`` if not.
    """

    lags: np.ndarray
    timescales: np.ndarray
    errors: np.ndarray
    units: str
    reliable: bool
    reason: str


@dataclass(frozen=True)
class Tica:
    """What `tica` finds.

    timescales: [processes], ps (or frames), slowest first.
    eigenvalues: [processes], the autocorrelation of each process at the lag.
    projections: one array [frames, processes] per replica.  model: deeptime's own, to transform other features.
    """

    timescales: np.ndarray
    eigenvalues: np.ndarray
    projections: list[np.ndarray]
    model: Any


def tica(
    features: Sequence[np.ndarray], lag: int, frame_interval: float | None = None, n_processes: int | None = None
) -> Tica:
    """Time-lagged independent components: the slowest linear combinations of features of an equilibrium run.

    features: one array [frames, features] per replica, in time order; angles as cosine and sine.
    lag: frames.  frame_interval: ps between frames; None gives frames.  n_processes: default all.

    Perez-Hernandez et al., J. Chem. Phys. 139, 015102 (2013), by deeptime, time-symmetrized.
    Raises `InputError` for bad features or lags, `UnavailableError` without deeptime.
    """
    series = _check_features(features)
    interval = _interval(frame_interval)
    lag = _check_lag(lag, series)
    if n_processes is not None:
        n_processes = check_integer(n_processes, "n_processes", minimum=1, maximum=series[0].shape[1])
    model = _fit_tica(series, lag)
    eigenvalues = np.asarray(model.singular_values)[:n_processes]
    projections = [np.asarray(model.transform(part))[:, :n_processes] for part in series]
    return Tica(_timescale(eigenvalues, lag * interval), eigenvalues, projections, model)


def implied_timescales(
    features: Sequence[np.ndarray],
    lags: Sequence[int],
    frame_interval: float | None = None,
    n_processes: int = 3,
    n_bootstrap: int = 50,
    seed: int = 0,
) -> ImpliedTimescales:
    """Timescales -lag / log(eigenvalue) of TICA over the lag, with bootstrap errors.

    features: one array [frames, features] per replica, in time order.  lags: frames.
    frame_interval: ps between frames; None gives frames.  n_processes: slowest ones kept.
    n_bootstrap: resamples of the pieces, at least 10.  seed: of the resampling.

    A timescale that no longer grows with the lag is a property of the dynamics; before that it is a lower bound
    (Noe and Nuske, Multiscale Model. Simul. 11, 635 (2013)).
    Raises `InputError` for bad features or lags, `UnavailableError` without deeptime.
    """
    series = _check_features(features)
    interval = _interval(frame_interval)
    require(np.ndim(lags) == 1 and len(lags) > 0, "lags", "a list of lags in frames", lags)
    chosen = [_check_lag(lag, series, "lags") for lag in lags]
    n_processes = check_integer(n_processes, "n_processes", minimum=1, maximum=series[0].shape[1])
    n_bootstrap = check_integer(n_bootstrap, "n_bootstrap", minimum=10)
    units = _feature_units(series, max(chosen), "lags")
    seed = check_integer(seed, "seed", minimum=0)
    timescales = np.full((len(chosen), n_processes), np.nan)
    errors = np.full_like(timescales, np.nan)
    for row, lag in enumerate(chosen):
        timescales[row] = _slowest_timescales(series, lag, interval, n_processes)
        pieces = [piece for piece in units.pieces() if len(piece) > lag]
        if len(pieces) > 1:
            rng = np.random.default_rng([seed, lag])  # the same for a lag, whatever the others
            draws = rng.integers(0, len(pieces), (n_bootstrap, len(pieces)))
            repeated = np.array(
                [_slowest_timescales([pieces[k] for k in draw], lag, interval, n_processes) for draw in draws]
            )
            enough = np.isfinite(repeated).sum(axis=0) > n_bootstrap // 2
            errors[row, enough] = np.nanstd(repeated[:, enough], axis=0, ddof=1)
    return ImpliedTimescales(
        np.array(chosen) * interval, timescales, errors, units.description, units.reliable, units.reason
    )


def _slowest_timescales(series: Sequence[np.ndarray], lag: int, interval: float, n: int) -> np.ndarray:
    """The n slowest timescales of TICA; nan for those that features of lower rank do not have."""
    found = _timescale(np.asarray(_fit_tica(series, lag).singular_values), lag * interval)[:n]
    return np.pad(found, (0, n - len(found)), constant_values=np.nan)


@dataclass(frozen=True)
class Vamp2Score:
    """What `vamp2_score` finds.

    score: mean over the splits.  error: their standard deviation, a rough guide (see there).
    units: the pieces that were split.  reliable: whether they are long and many enough; ``reason`` if not.
    """

    score: float
    error: float
    units: str
    reliable: bool
    reason: str


def vamp2_score(
    features: Sequence[np.ndarray],
    lag: int,
    n_processes: int | None = None,
    n_splits: int = 10,
    seed: int = 0,
) -> Vamp2Score:
    """Cross-validated VAMP-2 score: 1 + sum of squared singular values of the Koopman operator on these features.

    features: one array [frames, features] per replica, in time order.  lag: frames.  n_processes: default all.
    n_splits: random halves of the pieces, fitted on one half and scored on the other, at least 2.  seed: of them.

    Larger means features that hold more of the slow dynamics (Wu and Noe, J. Nonlinear Sci. 30, 23 (2020)).  The error
    is the spread over splits.  Halves overlap between splits, and a half scatters more than the whole: it is a rough
    guide, not a standard error of the mean.
    Raises `InputError` for bad features or lags, or fewer than two pieces, `UnavailableError` without deeptime.
    """
    series = _check_features(features)
    lag = _check_lag(lag, series)
    n_splits = check_integer(n_splits, "n_splits", minimum=2)
    if n_processes is not None:
        n_processes = check_integer(n_processes, "n_processes", minimum=1, maximum=series[0].shape[1])
    VAMP = _deeptime().VAMP
    units = _feature_units(series, lag)
    pieces = [piece for piece in units.pieces() if len(piece) > lag]
    require(len(pieces) > 1, "features", "two replicas or blocks longer than the lag", f"{len(pieces)}")
    rng = np.random.default_rng(check_integer(seed, "seed", minimum=0))
    scores = []
    for _ in range(n_splits):
        order = rng.permutation(len(pieces))
        halves = [[pieces[k] for k in part] for part in np.array_split(order, 2)]
        fitted, test = (VAMP(lagtime=lag, dim=n_processes).fit(_pairs(half, lag)).fetch_model() for half in halves)
        scores.append(fitted.score(2, test_model=test))
    return Vamp2Score(
        float(np.mean(scores)), float(np.std(scores, ddof=1)), units.description, units.reliable, units.reason
    )


def _deeptime() -> Any:
    try:
        import deeptime.decomposition
    except ImportError:
        raise UnavailableError("kinetics: TICA and VAMP need deeptime: pip install 'diffmd-fast[analysis]'") from None
    return deeptime.decomposition


def _fit_tica(series: Sequence[np.ndarray], lag: int) -> Any:
    try:
        return _deeptime().TICA(lagtime=lag).fit(_pairs(series, lag)).fetch_model()
    except (ZeroDivisionError, np.linalg.LinAlgError) as error:
        raise InputError(f"features: expected features that change, got a covariance of rank 0 ({error})") from None


def _pairs(series: Sequence[np.ndarray], lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Features now and a lag later, within each piece."""
    return (np.concatenate([part[:-lag] for part in series]), np.concatenate([part[lag:] for part in series]))


def _timescale(eigenvalues: np.ndarray, lag: float) -> np.ndarray:
    inside = (eigenvalues > 0) & (eigenvalues < 1)
    return np.where(inside, -lag / np.log(np.where(inside, eigenvalues, 0.5)), np.nan)


def _interval(frame_interval: float | None) -> float:
    return 1.0 if frame_interval is None else check_number(frame_interval, "frame_interval", above=0, unit="ps")


def _check_features(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    require(
        not isinstance(features, (str, bytes)) and hasattr(features, "__len__") and len(features) > 0,
        "features",
        "a list of arrays [frames, features], one per replica",
        type(features).__name__,
    )
    series = [np.asarray(part, dtype=np.float64) for part in features]
    for number, part in enumerate(series):
        require(
            part.ndim == 2 and part.shape[0] > 0 and part.shape[1] > 0 and part.shape[1] == series[0].shape[-1],
            "features",
            "arrays [frames, features] of as many features each",
            f"shape {list(part.shape)} for replica {number}",
        )
        check_finite(part, "features", f"replica {number}")
    return series


def _check_lag(lag: Any, series: Sequence[np.ndarray], argument: str = "lag") -> int:
    return check_integer(lag, argument, minimum=1, maximum=max(len(part) for part in series) - 1)


def _feature_units(series: Sequence[np.ndarray], longest_lag: int, argument: str = "lag") -> Units:
    found = [autocorrelation([part[:, k] for part in series]) for k in range(series[0].shape[1])]
    moving = [one for one in found if np.isfinite(one.integrated_time)]
    require(bool(moving), "features", "features that change", "constant ones")
    slowest = max(one.integrated_time for one in moving)
    return _pieces(series, slowest, longest_lag, all(one.resolved for one in moving), argument)
