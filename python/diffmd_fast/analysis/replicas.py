"""Which frames of a file follow one another in time.

Autocorrelation and block resampling need sequences, not a bag of frames.  A sequence ends where the
replica number changes or where time steps back (several replicas written one after another in one file).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError, require


@dataclass(frozen=True)
class Replicas:
    """Sequences of frames in time order.

    indices: frame numbers of each replica, in the order they were written.
    labels: the replica numbers of the file, or 0, 1, ... where the file has none.
    frame_interval: ps between two consecutive frames; None where the file has no times.
    """

    indices: tuple[np.ndarray, ...]
    labels: tuple[int, ...]
    frame_interval: float | None

    @property
    def lengths(self) -> np.ndarray:
        """Frames in each replica, int [replicas]."""
        return np.array([len(index) for index in self.indices])

    @property
    def n_short(self) -> int:
        """Replicas that seem to have stopped early: shorter than the common length of most.

        0 where no length is common to more than half of them: then nothing says how long they should be.
        """
        longest = self.lengths.max()
        complete = int((self.lengths == longest).sum())
        return len(self.lengths) - complete if 2 * complete > len(self.lengths) else 0

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Cut values [frames, ...] into one array per replica."""
        return [values[index] for index in self.indices]


def find_replicas(
    n_frames: int, replica: np.ndarray | None, time: np.ndarray | None, argument: str = "trajectory"
) -> Replicas:
    """Sequences of frames from replica numbers and times (ps), [frames] each; either may be None.

    Raises `InputError` where the lengths differ from n_frames, or where frames of a replica are not evenly
    spaced in time: lags are counted in frames, so a gap would make every lag axis wrong.
    """
    require(n_frames > 0, argument, "at least one frame", "none")
    for name, values in (("replica", replica), ("time", time)):
        if values is not None:
            require(
                np.shape(values) == (n_frames,),
                argument,
                f"{name} of shape [{n_frames}]",
                f"shape {list(np.shape(values))}",
            )
    if replica is not None:
        labels, inverse = np.unique(np.asarray(replica), return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)
        numbers = [int(label) for label in labels]
    else:
        groups = [np.arange(n_frames)]
        if time is not None:
            groups = np.split(groups[0], np.flatnonzero(np.diff(np.asarray(time, dtype=np.float64)) <= 0) + 1)
        numbers = list(range(len(groups)))
    interval = None if time is None else _interval(groups, np.asarray(time, dtype=np.float64), argument)
    return Replicas(tuple(groups), tuple(numbers), interval)


def _interval(groups: list[np.ndarray], time: np.ndarray, argument: str) -> float | None:
    """Spacing shared by all replicas, to the precision in which formats store time (float32)."""
    steps = [np.diff(time[group]) for group in groups if len(group) > 1]
    if not steps:
        return None
    steps_all = np.concatenate(steps)
    interval = float(np.median(steps_all))
    rounding = 4 * np.finfo(np.float32).eps * np.abs(time).max()
    worst = float(np.abs(steps_all - interval).max())
    if interval <= 0 or worst > 1e-3 * abs(interval) + rounding:
        raise InputError(
            f"{argument}: expected frames evenly spaced in time within each replica, got steps from "
            f"{steps_all.min():g} to {steps_all.max():g} ps"
        )
    # The mean over whole replicas carries less of the rounding of single times than one difference does.
    return float(steps_all.mean())
