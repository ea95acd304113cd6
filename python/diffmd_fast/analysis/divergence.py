"""Jensen-Shannon divergence of two histograms, and the floor that finite sampling puts under it.

Two independent samples of one density never give zero.  With K populated bins and n1, n2 independent frames
the divergence is about K/8 (1/n1 + 1/n2): on 64 x 64 bins easily 0.05.  A measured divergence says something
only against the value expected for *these* two samples if both came from one density: the sampling floor.

**How the floor is found.**  A smoothed block bootstrap of the null hypothesis.  The density taken for both
sides is the run's own, smoothed by a Gaussian of `SMOOTHING` bins.  Many pairs (P, Q) are drawn from it:

- P keeps the run's correlations: whole units (replicas, or blocks much longer than the correlation time) are
  drawn with replacement, as many as the run has.  A replica that never left its basin is one draw, whatever
  the number of its frames.
- Q is drawn frame by frame, as many frames as the reference is worth (`independent_equivalent`).  A reference
  with correlated frames also fluctuates as a whole, between basins: its units are resampled, and the ratio of
  resampled to original share of each cell of 60 degrees reweights the frames that Q is drawn from.

The floor is the mean of JS(P, Q); `quantile_95` is what one pair in twenty exceeds by chance.

**Why it is nearly unbiased.**  JS(P, Q) of nearby histograms is a weighted square of their difference, so its
mean is fixed by the variance of the bin counts.  Resampling units reproduces that variance (up to a factor
1 - 1/units) about the empirical histogram, in place of the true one.  That both members of a pair share the
same empirical histogram is then no harm: its noise cancels in the difference.  It does harm where bins hold
few counts: resamples of one finite sample share the same occupied bins, while two fresh samples would not, so
the plain bootstrap comes out too low, by 5 to 35 % for 16 to 64 replicas on 64 x 64 bins.  The smoothing
removes most of that: each unit drawn is moved as a whole by one random offset (its inner correlations stay),
each frame of Q by its own.  The price is a density slightly too wide.  At 0.75 bins the two errors largely
cancel: over chains with and without exchange between basins, 1 to 64 replicas of 50 to 20,000 frames, and
500 to 40,000 independent or correlated reference frames, the floor was within -4 % and +12 % of the mean over
fresh pairs of samples (tests/analysis/test_divergence.py repeats four of these).

**What it cannot know.**  If the run never saw a basin, neither does the floor; the divergence itself shows
that.  If no block is longer than the correlation time, the floor is too low; then ``reliable`` is False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import check_integer, require
from .autocorrelation import Autocorrelation
from .free_energy import bin_coordinates, check_angles, count

SMOOTHING = 0.75  # bins
MANY_UNITS = 32  # replicas that are enough units by themselves
FEW_UNITS = 8  # below this the scatter between units is not known well enough to trust a floor
COARSE_CELLS = 6  # per angle
BLOCK_TIMES = 10  # length of a block in integrated autocorrelation times


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms in nats: 0 for equal ones, log 2 for disjoint ones.

    p, q: counts or probabilities of one shape, not negative; each is normalized first.
    H((p + q) / 2) - (H(p) + H(q)) / 2 with the entropy H (Lin, IEEE Trans. Inf. Theory 37, 145 (1991),
    eq. 4.1).
    """
    first, second = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    require(first.shape == second.shape, "q", f"the shape of p {list(first.shape)}", f"shape {list(second.shape)}")
    for name, values in (("p", first), ("q", second)):
        require(
            values.size > 0 and bool((values >= 0).all()) and values.sum() > 0,
            name,
            "counts that are not negative, one of them positive",
            f"{values.size} bins summing to {values.sum():g}",
        )
    return _divergence(first.ravel(), second.ravel())


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    occupied = (p > 0) | (q > 0)
    first, second = p[occupied] / p.sum(), q[occupied] / q.sum()
    value = _entropy(0.5 * (first + second)) - 0.5 * (_entropy(first) + _entropy(second))
    return float(min(max(value, 0.0), np.log(2.0)))  # rounding may leave the range by 1e-16


def _entropy(probability: np.ndarray) -> float:
    positive = probability[probability > 0]
    return float(-(positive * np.log(positive)).sum())


@dataclass(frozen=True)
class Units:
    """A sample cut into pieces that count as independent of one another.

    values: [frames, ...], piece after piece.  lengths: frames in each piece, int [units].
    kind: "replicas", "blocks" or "frames".
    reliable: whether the pieces are long enough and many enough for a bootstrap; ``reason`` if not.
    """

    values: np.ndarray
    lengths: np.ndarray
    kind: str
    reliable: bool = True
    reason: str = ""

    @property
    def description(self) -> str:
        """For a table: "64 replicas", "213 blocks of about 94 frames"."""
        number = len(self.lengths)
        if self.kind != "blocks":
            return f"{number:,} {self.kind if number != 1 else self.kind[:-1]}"
        return f"{number:,} blocks of about {self.lengths.mean():.0f} frames"

    def with_values(self, values: np.ndarray) -> Units:
        """The same pieces of other values of the same frames, [frames, ...]."""
        return Units(values, self.lengths, self.kind, self.reliable, self.reason)

    def pieces(self) -> list[np.ndarray]:
        """One array per piece."""
        return np.split(self.values, np.cumsum(self.lengths)[:-1])

    def resample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """As many pieces as there are, with replacement: frame numbers, and the draw of each."""
        chosen = rng.integers(0, len(self.lengths), len(self.lengths))
        lengths = self.lengths[chosen]
        ends = np.cumsum(lengths)
        draw = np.repeat(np.arange(len(chosen)), lengths)
        start = np.cumsum(self.lengths) - self.lengths
        return np.arange(ends[-1]) + (start[chosen] - (ends - lengths))[draw], draw


def resampling_units(replicas: Sequence[np.ndarray], correlation_time: float, resolved: bool = True) -> Units:
    """Cut a sample into pieces that may be resampled as if independent.

    replicas: arrays [frames, ...] in time order.  correlation_time: the longest integrated autocorrelation
    time of the dihedrals, in frames (0.5 for independent frames).  resolved: whether it is known.

    Single frames where they are uncorrelated (below 0.75, statistical inefficiency 1.5); whole replicas
    where there are 32 or more; else blocks of ten correlation times where every replica holds two or more;
    else whole replicas, or, for fewer than 8 of them, eighths of them, marked unreliable.
    """
    require(
        len(replicas) > 0 and all(len(piece) > 0 for piece in replicas),
        "replicas",
        "at least one replica with at least one frame",
        "none",
    )
    values = np.concatenate([np.asarray(piece) for piece in replicas])
    lengths = np.array([len(piece) for piece in replicas])
    if resolved and correlation_time < 0.75:
        return _judged(values, np.ones(len(values), dtype=np.int64), "frames")
    if len(replicas) >= MANY_UNITS:
        return Units(values, lengths, "replicas")
    block = int(np.ceil(BLOCK_TIMES * max(correlation_time, 0.5))) if resolved else len(values)
    if lengths.min() >= 2 * block:
        return _judged(values, _even_parts(lengths, lengths // block), "blocks")
    if len(replicas) >= FEW_UNITS:
        return Units(values, lengths, "replicas")
    return Units(
        values,
        _even_parts(lengths, np.minimum(lengths, 8)),
        "blocks",
        False,
        "too few replicas, and too short to be cut into blocks of ten correlation times",
    )


def independent_units(replicas: Sequence[np.ndarray], functions: Sequence[Autocorrelation]) -> Units:
    """`resampling_units` by the slowest of the autocorrelation functions of what is in the replicas."""
    slowest = max(function.integrated_time for function in functions)
    return resampling_units(replicas, slowest, all(function.resolved for function in functions))


def _even_parts(lengths: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Lengths after cutting each of ``lengths`` into ``parts`` pieces as equal as possible."""
    return np.concatenate([np.full(p, n // p) + (np.arange(p) < n % p) for n, p in zip(lengths, parts)])


def _judged(values: np.ndarray, lengths: np.ndarray, kind: str) -> Units:
    enough = len(lengths) >= FEW_UNITS
    return Units(values, lengths, kind, enough, "" if enough else f"only {len(lengths)} independent {kind}")


def _smoothed_resample(units: Units, bins: int, rng: np.random.Generator) -> np.ndarray:
    """Histogram of as many units as there are, drawn with replacement, each moved by one random offset."""
    frames, draw = units.resample(rng)
    offset = SMOOTHING * rng.standard_normal((len(units.lengths), units.values.shape[1]))
    return count(units.values[frames] + offset[draw], bins)


def _smoothed_frames(
    pool: np.ndarray, n: int, bins: int, rng: np.random.Generator, weight: np.ndarray | None = None
) -> np.ndarray:
    """Histogram of n frames drawn with replacement from pool [frames, d], each moved by its own offset."""
    if weight is None:
        drawn = pool[rng.integers(0, len(pool), n)]
    else:
        cumulative = np.cumsum(weight)
        drawn = pool[
            np.minimum(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right"), len(pool) - 1)
        ]
    return count(drawn + SMOOTHING * rng.standard_normal(drawn.shape), bins)


class _SlowFluctuation:
    """How a correlated reference's shares of coarse cells fluctuate, carried over to frames of the run."""

    def __init__(self, reference: Units, pool: np.ndarray, bins: int):
        cell = np.floor(np.concatenate([reference.values, pool]) * (COARSE_CELLS / bins)).astype(int) % COARSE_CELLS
        flat = cell @ COARSE_CELLS ** np.arange(pool.shape[1])
        self.n_cells = COARSE_CELLS ** pool.shape[1]
        self.reference, self.cell, self.pool_cell = reference, flat[: -len(pool)], flat[-len(pool) :]
        self.expected = np.bincount(self.cell, minlength=self.n_cells) / len(self.cell)

    def weight(self, rng: np.random.Generator) -> np.ndarray:
        """Weight of each frame of the pool for one resample of the reference."""
        drawn = self.cell[self.reference.resample(rng)[0]]
        share = np.bincount(drawn, minlength=self.n_cells) / len(drawn)
        return np.where(self.expected > 0, share / np.where(self.expected > 0, self.expected, 1), 1.0)[self.pool_cell]

    def without(self, equivalent: int, density: np.ndarray, rng: np.random.Generator) -> int:
        """How many independent frames the sample is worth once the shares of its coarse cells fluctuate by themselves.

        ``equivalent`` counts all roughness as that of few frames: the loss of entropy, half the sum of variance over
        mean of the bins.  What the cells contribute to that sum is taken out of it.
        """
        entropy = np.mean([_entropy(h / equivalent) for h in rng.multinomial(equivalent, density, size=12)])
        lost = max(_entropy(density) - entropy, 1e-12)
        inside = self.expected > 0
        shares = [
            np.bincount(self.cell[self.reference.resample(rng)[0]], minlength=self.n_cells)[inside] for _ in range(48)
        ]
        expected = self.expected[inside]
        slow = np.mean([0.5 * ((s / s.sum() - expected) ** 2 / expected).sum() for s in shares])
        return int(equivalent * lost / max(lost - slow, 0.05 * lost))


def independent_equivalent(units: Units, bins: int, seed: int = 0) -> int:
    """Number of independent frames whose histogram would be as rough as the histogram of these units.

    units: values [frames, d] in units of bins.  Roughness is the mean entropy of a resampled histogram: fewer
    independent frames leave it lower.  This is the effective size *of the histogram*: it lies above the
    effective size of the slowest angle, because fine structure decorrelates sooner than basins are exchanged.
    """
    n_frames = len(units.values)
    if units.kind == "frames":
        return n_frames
    rng = np.random.default_rng(seed)
    target = np.mean([_entropy(h / h.sum()) for h in (_smoothed_resample(units, bins, rng) for _ in range(24))])
    density = sum(_smoothed_frames(units.values, n_frames, bins, rng) for _ in range(8)).astype(np.float64)
    density /= density.sum()

    def entropy(n: int) -> float:
        return float(np.mean([_entropy(h / n) for h in rng.multinomial(n, density, size=6)]))

    low, high = 1, n_frames
    if entropy(high) <= target:
        return n_frames
    while high - low > max(1, low // 100):
        middle = int(np.sqrt(low * high)) if high > 2 * low else (low + high) // 2
        low, high = (middle, high) if entropy(middle) < target else (low, middle)
    return (low + high) // 2


@dataclass(frozen=True)
class SamplingFloor:
    """Divergence expected between two samples of one density with the effective sizes of these two.

    mean, sd, quantile_95: over ``n_pairs`` bootstrap pairs, nats.
    naive: the mean if every frame of both sides were independent; a floor quoted that way would be too low.
    run_units, reference_units: what was resampled.  reference_equivalent: independent frames the reference is
    worth.  exceeded_by: fraction of pairs at or above the measured divergence ((k + 1) / (n + 1)).
    """

    mean: float
    sd: float
    quantile_95: float
    naive: float
    exceeded_by: float
    n_pairs: int
    run_units: str
    reference_units: str
    reference_equivalent: int
    reliable: bool
    reason: str


def sampling_floor(
    run: Units,
    reference: Units,
    bins: int = 64,
    *,
    divergence: float = np.inf,
    n_pairs: int = 200,
    seed: int = 0,
) -> SamplingFloor:
    """The floor described at the top of this module.

    run, reference: from `resampling_units`, values [frames] or [frames, 1 or 2] of angles in radians.
    bins: per angle, as for the measured divergence.  divergence: the measured value, for ``exceeded_by``.
    n_pairs: bootstrap pairs, at least 20; fewer are drawn (never below 50) for more than 200,000 frames.
    """
    bins = check_integer(bins, "bins", minimum=1)
    n_pairs = check_integer(n_pairs, "n_pairs", minimum=20)
    run = run.with_values(bin_coordinates(check_angles(run.values, "run"), bins))
    reference = reference.with_values(bin_coordinates(check_angles(reference.values, "reference"), bins))
    pool, dimension = run.values, reference.values.shape[1]
    require(dimension == pool.shape[1], "reference", f"{pool.shape[1]} angle(s) a frame, as in run", dimension)
    equivalent = independent_equivalent(reference, bins, seed)
    n_pairs = min(n_pairs, max(50, int(4e7 / (len(pool) + equivalent))))
    rng = np.random.default_rng(seed)
    slow = None if reference.kind == "frames" else _SlowFluctuation(reference, pool, bins)
    values = np.array(
        [
            _divergence(
                _smoothed_resample(run, bins, rng),
                _smoothed_frames(pool, equivalent, bins, rng, slow and slow.weight(rng)),
            )
            for _ in range(n_pairs)
        ]
    )
    naive = np.mean(
        [
            _divergence(
                _smoothed_frames(pool, len(pool), bins, rng),
                _smoothed_frames(pool, len(reference.values), bins, rng),
            )
            for _ in range(10)
        ]
    )
    reasons = [
        f"{name}: {units.reason}" for name, units in (("run", run), ("reference", reference)) if not units.reliable
    ]
    return SamplingFloor(
        float(values.mean()),
        float(values.std(ddof=1)),
        float(np.quantile(values, 0.95)),
        float(naive),
        float((1 + (values >= divergence).sum()) / (1 + n_pairs)),
        n_pairs,
        run.description,
        reference.description,
        equivalent,
        not reasons,
        "; ".join(reasons),
    )


def histogram_floor(
    run: Units,
    probability: np.ndarray,
    error: np.ndarray,
    *,
    divergence: float = np.inf,
    n_pairs: int = 200,
    seed: int = 0,
) -> SamplingFloor:
    """The floor against a histogram with standard errors, [bins] or [bins, bins], in place of reference frames.

    The histogram itself is the density of the null hypothesis.  P is drawn from it with as many frames as the run is
    worth, its coarse cells reweighted as the run's fluctuate; Q is gamma distributed in every bin, with the
    histogram's mean and error.  Errors are correlated between bins, but the mean divergence of nearby histograms
    depends on their variances only.
    """
    n_pairs = check_integer(n_pairs, "n_pairs", minimum=20)
    p, error = np.asarray(probability, dtype=np.float64), np.asarray(error, dtype=np.float64)
    bins = len(p)
    run = run.with_values(bin_coordinates(check_angles(run.values, "run"), bins))
    dimension = run.values.shape[1]
    require(
        p.shape == error.shape == (bins,) * dimension, "probability", f"bins for {dimension} angle(s)", list(p.shape)
    )
    rng = np.random.default_rng(seed)
    centres = np.stack(np.meshgrid(*[np.arange(bins) + 0.5] * dimension, indexing="ij"), axis=-1)
    slow = None if run.kind == "frames" else _SlowFluctuation(run, centres.reshape(-1, dimension), bins)
    equivalent = independent_equivalent(run, bins, seed)
    p, error = p.ravel() / p.sum(), error.ravel() / p.sum()
    known = (p > 0) & (error > 0)
    if slow is not None:
        equivalent = min(len(run.values), slow.without(equivalent, p, rng))
    ratio = np.where(known, error, 1.0) ** 2 / np.where(known, p, 1.0)

    def pair(n: int, weight: np.ndarray | float) -> float:
        weighted = p * weight
        other = np.where(known, ratio * rng.gamma(np.where(known, p / ratio, 1.0)), p)
        return _divergence(rng.multinomial(n, weighted / weighted.sum()).astype(np.float64), other)

    values = np.array([pair(equivalent, 1.0 if slow is None else slow.weight(rng)) for _ in range(n_pairs)])
    return SamplingFloor(
        float(values.mean()),
        float(values.std(ddof=1)),
        float(np.quantile(values, 0.95)),
        float(np.mean([pair(len(run.values), 1.0) for _ in range(10)])),
        float((1 + (values >= divergence).sum()) / (1 + n_pairs)),
        n_pairs,
        run.description,
        "weighted histogram",
        0,
        run.reliable,
        f"run: {run.reason}" if run.reason else "",
    )
