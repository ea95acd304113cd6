"""Autocorrelation over replicas, its integrated time, and the effective sample size.

One estimator serves every quantity: a number x enters as z = x, and an angle q as z = exp(iq), so that nothing
happens at the cut from pi to -pi.  Two functions of an angle:

    circular   Re <z(t) z*(0)> = <cos(q(t) - q(0))>, which tends to |<z>|^2, not to zero;
    connected  (Re <z(t) z*(0)> - |m|^2) / (1 - |m|^2) with m = <z>, which starts at 1 and tends to 0.

A number has the connected one only, with its variance in place of 1 - |m|^2.  m is the mean over ALL replicas.
With the mean of each replica instead, replicas that never leave the basin they started in would look perfectly
decorrelated; with the common mean the connected function stays at a plateau, and the run is seen for what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import check_number, require

# From this many replicas on, the spread between them is a better error estimate than any formula.
MANY_REPLICAS = 8


@dataclass(frozen=True)
class Autocorrelation:
    """What `autocorrelation` finds for one quantity z, a number or exp(iq).

    lag: [lags], ps, or frames where the time between frames is not known.
    connected: [lags].  connected_error: standard error from the spread of replicas, [lags]
    (nan with fewer than two replicas).
    integrated_time, integrated_time_error: frames; `frame_interval` converts to ps.
    window: lag in frames where the sum was cut.
    effective_sample_size: independent frames that would give the mean of z with the same error.
    mean: of z over all frames of all replicas.  variance: of z, <|z - mean|^2>.
    resolved: whether the replicas are long enough to show the correlation time; where not, ``reason`` says
    why, and integrated_time is a lower bound.
    """

    lag: np.ndarray
    connected: np.ndarray
    connected_error: np.ndarray
    integrated_time: float
    integrated_time_error: float
    window: int
    effective_sample_size: float
    n_frames: int
    n_replicas: int
    frame_interval: float | None
    mean: complex | float
    variance: float
    resolved: bool
    reason: str

    @property
    def integrated_time_ps(self) -> float | None:
        """Integrated autocorrelation time in ps; None where the time between frames is not known."""
        return None if self.frame_interval is None else self.integrated_time * self.frame_interval

    @property
    def integrated_time_error_ps(self) -> float | None:
        """Standard error of `integrated_time_ps`."""
        return None if self.frame_interval is None else self.integrated_time_error * self.frame_interval

    @property
    def statistical_inefficiency(self) -> float:
        """Frames that are worth one independent frame: n_frames / effective_sample_size."""
        return self.n_frames / self.effective_sample_size


@dataclass(frozen=True)
class DihedralAutocorrelation(Autocorrelation):
    """What `dihedral_autocorrelation` finds: `Autocorrelation` of exp(iq), and circular: <cos(q(t) - q(0))>, [lags]."""

    circular: np.ndarray


def _lagged_products(series: np.ndarray, max_lag: int) -> np.ndarray:
    """Re sum_t z(t+l) z*(t) for l = 0..max_lag of one series [frames], by zero-padded FFT."""
    n = len(series)
    size = 1 << int(2 * n - 1).bit_length()
    spectrum = np.fft.fft(series, size)
    products = np.fft.ifft(spectrum * spectrum.conj()).real
    result = np.zeros(max_lag + 1)
    shown = min(n, max_lag + 1)
    result[:shown] = products[:shown]
    return result


def circular_autocorrelation(angles: Sequence[np.ndarray], max_lag: int | None = None) -> np.ndarray:
    """<cos(q(t + l) - q(t))> for l = 0..max_lag, averaged over all pairs of frames of all replicas.

    angles: one array [frames] in radians per replica; lengths may differ.
    max_lag: in frames; default the longest replica's last lag.
    """
    series = _unit_circle(angles)
    lengths, longest = _lengths(series)
    max_lag = longest if max_lag is None else max(0, min(int(max_lag), longest))
    return sum(_lagged_products(z, max_lag) for z in series) / _pairs(lengths, max_lag).sum(axis=0)


def check_replicas(values: Sequence[np.ndarray], argument: str = "values") -> list[np.ndarray]:
    """``values`` as float64 arrays [frames], one per replica, all finite and none empty, or `InputError`."""
    require(
        not isinstance(values, (str, bytes)) and hasattr(values, "__len__"),
        argument,
        "a list of arrays [frames], one per replica",
        type(values).__name__,
    )
    require(len(values) > 0, argument, "at least one replica", "none")
    for number, replica in enumerate(values):
        require(
            np.ndim(replica) == 1 and len(replica) > 0 and np.asarray(replica).dtype.kind in "fiub",
            argument,
            "an array [frames] per replica",
            f"shape {list(np.shape(replica))} of {np.asarray(replica).dtype} for replica {number}",
        )
        check_finite(np.asarray(replica), argument, f"replica {number}")
    return [np.asarray(replica, dtype=np.float64) for replica in values]


def check_finite(frames: np.ndarray, argument: str, where: str) -> None:
    """`InputError` naming ``where`` and the frame of the first NaN or infinity in frames [frames, ...]."""
    finite = np.isfinite(frames).reshape(len(frames), -1).all(axis=1)
    require(
        bool(finite.all()),
        argument,
        f"finite {argument}",
        f"a NaN or infinity in {where}, frame {int(np.argmin(finite))}",
    )


def _lengths(series: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Frames of each replica, and the longest lag there is."""
    lengths = np.array([len(values) for values in series])
    return lengths, int(lengths.max()) - 1


def _unit_circle(angles: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.exp(1j * values) for values in check_replicas(angles, "angles")]


def _pairs(lengths: np.ndarray, max_lag: int) -> np.ndarray:
    """Number of frame pairs at each lag, [replicas, lags]."""
    return np.maximum(lengths[:, None] - np.arange(max_lag + 1), 0)


def autocorrelation(
    values: Sequence[np.ndarray], frame_interval: float | None = None, window_factor: float = 5.0
) -> Autocorrelation:
    """Connected autocorrelation function, integrated time with its error, and effective size of one number.

    values: one array [frames] per replica, any unit, in time order; lengths may differ.
    frame_interval: ps between frames; None gives lags in frames.
    window_factor: c of the automatic window (Sokal, "Monte Carlo methods in statistical mechanics", in
    Functional Integration (1997), section 3): sum to the smallest W with W >= c * tau(W), c = 5.

    tau = 1/2 + sum_{l=1..W} C(l) in frames, so that an exponential exp(-t/T) sampled finely gives T.
    Error: jackknife over replicas from 8 replicas on, else Madras-Sokal tau * sqrt((4W + 2) / n_frames).

    Unresolved means one of
    - no window closes within half of the longest replica: the function has not decayed there;
    - the replicas' means of z scatter more (by over 5 standard errors) than C(l) inside the window allows:
      something slower than the window separates the replicas.
    The effective size then comes from the scatter of the replicas' means alone, n_replicas * var(z) /
    var(mean of a replica): about one per replica when each stays in its basin; with fewer than 8 replicas it
    is at most their number.

    Raises `InputError` for values that are no finite numbers, and for numbers out of range.
    """
    return _estimate(check_replicas(values), frame_interval, window_factor)


def dihedral_autocorrelation(
    angles: Sequence[np.ndarray], frame_interval: float | None = None, window_factor: float = 5.0
) -> DihedralAutocorrelation:
    """`autocorrelation` of one dihedral, through exp(iq), and <cos(q(t) - q(0))>.

    angles: one array [frames] in radians per replica, in time order; lengths may differ.
    frame_interval, window_factor, errors, and what is called unresolved: as in `autocorrelation`.
    """
    found = _estimate(_unit_circle(angles), frame_interval, window_factor)
    return DihedralAutocorrelation(**vars(found), circular=circular_autocorrelation(angles))


def _estimate(series: list[np.ndarray], frame_interval: float | None, window_factor: float) -> Autocorrelation:
    """The estimator behind both: series of real or complex z [frames], one per replica."""
    check_number(window_factor, "window_factor", above=0)
    if frame_interval is not None:
        frame_interval = check_number(frame_interval, "frame_interval", above=0, unit="ps")
    lengths, max_lag = _lengths(series)
    n_frames, n_replicas = int(lengths.sum()), len(series)
    mean = np.concatenate(series).mean()
    pairs = _pairs(lengths, max_lag)
    products = np.stack([_lagged_products(z - mean, max_lag) for z in series])
    covariance = products.sum(axis=0) / pairs.sum(axis=0)
    variance = float(covariance[0])
    common = {
        "lag": np.arange(max_lag + 1) * (frame_interval or 1.0),
        "n_frames": n_frames,
        "n_replicas": n_replicas,
        "frame_interval": frame_interval,
        "mean": mean,
        "variance": variance,
    }
    scale = max(float(np.abs(z).max()) for z in series)
    if variance <= 1e-24 * scale**2:  # frozen to rounding: every frame says the same, none adds knowledge
        return Autocorrelation(
            connected=np.ones(max_lag + 1),
            connected_error=np.zeros(max_lag + 1),
            integrated_time=np.inf,
            integrated_time_error=np.inf,
            window=max_lag,
            effective_sample_size=1.0,
            resolved=False,
            reason="the value never changes",
            **common,
        )
    connected = covariance / variance
    window, tau, closed = _window(connected, window_factor)
    error = _integrated_time_error(products, pairs, window, tau, n_frames)
    reason = ""
    half = max(max_lag // 2, 1)
    if not closed or window > half:
        reason = f"the autocorrelation has not decayed within half of the longest replica ({max_lag + 1} frames)"
        window = min(window, half)
        tau = _summed(connected, window)
    excess, scatter = _scatter_of_means(series, lengths, mean, variance, connected, window)
    if not reason and n_replicas >= MANY_REPLICAS and excess > 1 + 5 * np.sqrt(2 / (n_replicas - 1)):
        reason = (
            f"the replicas' averages scatter {excess:.1f} times more than this correlation time explains: "
            "something slower separates the replicas"
        )
    size = n_frames / (2 * tau)
    if reason:
        size = min(size, n_replicas * variance / scatter if n_replicas >= MANY_REPLICAS else n_replicas)
        tau = max(tau, n_frames / (2 * size))
    return Autocorrelation(
        connected=connected,
        connected_error=_connected_error(products, pairs, covariance),
        integrated_time=tau,
        integrated_time_error=error,
        window=window,
        effective_sample_size=float(min(size, n_frames)),
        resolved=not reason,
        reason=reason,
        **common,
    )


def _summed(connected: np.ndarray, window: int) -> float:
    """1/2 + sum of C(l) up to the window."""
    # Anticorrelated frames could bring the sum to zero or below; the smallest meaningful value caps ESS at n.
    return max(0.5 + float(connected[1 : window + 1].sum()), 0.5)


def _window(connected: np.ndarray, factor: float) -> tuple[int, float, bool]:
    """Sokal's window, the time summed up to it, and whether it closes at all."""
    running = 0.5 + np.concatenate([[0.0], np.cumsum(connected[1:])])
    closes = np.flatnonzero(np.arange(len(connected)) >= factor * running)
    window = int(closes[0]) if len(closes) else len(connected) - 1
    return window, _summed(connected, window), bool(len(closes))


def _connected_error(products: np.ndarray, pairs: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Standard error of the connected function from the spread of replicas (ratio estimator), [lags]."""
    n_replicas = len(products)
    if n_replicas < 2:
        return np.full(products.shape[1], np.nan)
    residual = products - covariance * pairs
    # The value at lag 0 divides every lag, so its fluctuation is taken along: the error at lag 0 is zero.
    relative = residual / pairs.sum(axis=0) - (covariance / covariance[0]) * (residual[:, :1] / pairs[:, 0].sum())
    return np.sqrt(n_replicas / (n_replicas - 1) * (relative**2).sum(axis=0)) / covariance[0]


def _integrated_time_error(products: np.ndarray, pairs: np.ndarray, window: int, tau: float, n_frames: int) -> float:
    n_replicas = len(products)
    if n_replicas < MANY_REPLICAS:
        return tau * float(np.sqrt((4 * window + 2) / n_frames))
    head, counts = products[:, : window + 1], pairs[:, : window + 1]
    rest = (head.sum(axis=0) - head) / np.maximum(counts.sum(axis=0) - counts, 1)
    taus = 0.5 + (rest[:, 1:] / rest[:, :1]).sum(axis=1)
    return float(np.sqrt((n_replicas - 1) / n_replicas * ((taus - taus.mean()) ** 2).sum()))


def _scatter_of_means(
    series: list[np.ndarray],
    lengths: np.ndarray,
    mean: complex | float,
    variance: float,
    connected: np.ndarray,
    window: int,
) -> tuple[float, float]:
    """Variance of a replica's mean of z, as a multiple of what C(l) up to the window predicts, and itself.

    Prediction for n frames: var(z)/n * (1 + 2 sum_{l<=W} (1 - l/n) C(l)).  Replicas of different length
    are brought together by their weights n.
    """
    if len(series) < 2:
        return 1.0, variance
    means = np.array([z.mean() for z in series])
    lags = np.arange(1, window + 1)
    inner = np.array([1 + 2 * (np.clip(1 - lags / n, 0, None) * connected[1 : window + 1]).sum() for n in lengths])
    predicted = variance * np.maximum(inner, 1.0) / lengths
    deviation = np.abs(means - mean) ** 2 * len(series) / (len(series) - 1)
    scatter = float((deviation * lengths).sum() / lengths.sum())
    return scatter / float((predicted * lengths).sum() / lengths.sum()), max(scatter, 1e-300)
