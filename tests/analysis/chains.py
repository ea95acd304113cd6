"""Synthetic angles whose density and correlation times are known."""

import numpy as np
from scipy.signal import lfilter

CENTERS = np.radians([[-75.0, 150.0], [-75.0, -20.0], [60.0, 40.0]])
WIDTHS = np.radians([[25.0, 20.0], [22.0, 20.0], [12.0, 15.0]])
WEIGHTS = np.array([0.57, 0.41, 0.02])


def ornstein_uhlenbeck(rng: np.random.Generator, replicas: int, frames: int, rho: float, d: int = 1) -> np.ndarray:
    """Stationary AR(1) of unit variance, autocorrelation rho**lag, [replicas, frames, d]."""
    noise = rng.standard_normal((replicas, frames, d))
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=1)


def basins(rng: np.random.Generator, replicas: int, frames: int, exchange: float) -> np.ndarray:
    """Basin of each frame; with probability ``exchange`` a frame draws a new one from the weights."""
    fresh = rng.choice(3, p=WEIGHTS, size=(replicas, frames))
    moves = rng.random((replicas, frames)) < exchange
    moves[:, 0] = True
    last = np.maximum.accumulate(np.where(moves, np.arange(frames), 0), axis=1)
    return np.take_along_axis(fresh, last, axis=1)


def two_angles(rng: np.random.Generator, replicas: int, frames: int, tau: float, exchange: float) -> np.ndarray:
    """Two angles in three basins, [replicas, frames, 2]; the density does not depend on tau and exchange."""
    rho = np.exp(-1 / tau) if tau > 0 else 0.0
    label = basins(rng, replicas, frames, exchange)
    return CENTERS[label] + WIDTHS[label] * ornstein_uhlenbeck(rng, replicas, frames, rho, 2)
