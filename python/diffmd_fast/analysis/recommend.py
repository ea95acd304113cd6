"""Which noise level and which time step to run a model with: both scanned on held-out snapshots and short runs.

The time step is that of Euler-Maruyama (``"euler-maruyama"``).

**Noise level.**  The denoising loss at sigma measures the score of the density blurred by that sigma; its floor depends
on sigma, so losses at two levels cannot be compared.  What can: the distance of each score from the one true score s*,
at held-out snapshots.  By integration by parts (A. Hyvarinen, J. Mach. Learn. Res. 6, 695, 2005), without knowing s*,

    1/4 sum_a D_a E |s_a - s*_a|^2 = 1/4 sum_a D_a E [ |s_a|^2 + 2 div_a s_a ] + a constant of the data.

That is the model part of the error budget (`error_budget`) in nats/ps but for a constant, so its differences between
noise levels are measured exactly, what sigma blurs included.  The divergence is Hutchinson's, with the signs and the
frames shared by all levels.  The noise moves both atoms of a bond, so it widens the variance of the bond's length by
2 sigma^2.

**Time step.**  In a mode of curvature k a step of dt makes the variance 1/(1 - D dt k/2) of what it should be.  For the
stiffest mode, k = L, this is predicted.  Measured: in the density whose score is s, sum_a D_a E |s_a|^2 equals
-sum_a D_a E div_a s_a; their ratio along a run is its configurational temperature over T0, and exceeds 1 by the mean of
that inflation over modes, weighted by their stiffness.  It needs no reference, so noise level and model do not enter;
both do in the variances of bond lengths, which are compared with the snapshots'.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import called, check_integer, check_number, require
from ..io import Snapshots
from ..sampling.evaluation import Evaluator, as_positions, model_temperature
from ..sampling.integrators import EulerMaruyama
from ..sampling.sampler import Sampler
from ..sampling.spring import Spring, _row
from ..sampling.stability import Stability, estimate_curvature
from ..sampling.trajectory import Trajectory
from ..training.denoising import denoising_error, draw_noise
from .budget_result import Estimate
from .error_budget import error_budget
from .frame_means import estimate_mean, estimate_ratio, frame_units, thinned
from .geometry import bond_lengths
from .recommend_result import NoisePoint, Recommendation, StepPoint, choose_noise, choose_step
from .replicas import find_replicas
from .score_probes import Probes, in_double

NOISE_FACTORS = (1.0, 2**0.5, 2.0, 2**1.5, 4.0)  # default noise levels, in the model's smallest
STEP_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # default time steps, in the one that the limit predicts
RUN_STEPS = 2000  # of that step, in the default length of the runs
RUN_FRAMES = 50  # saved in each run; the first quarter is left out
RUN_PROBES = 2
SHORTEST = 4  # steps of a run


class ScanInterrupted(KeyboardInterrupt):
    """Ctrl-C: ``recommendation`` is that of the time steps that were run."""

    def __init__(self, recommendation: Recommendation):
        n = len(recommendation.steps)
        super().__init__(f"stopped after {n} time step{'' if n == 1 else 's'}")
        self.recommendation = recommendation


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of `recommend`, checked; a command makes them before it reads a file."""

    diffusion: Any = 0.002
    noise_levels: Sequence[float] | None = None
    time_steps: Sequence[float] | None = None
    n_replicas: int = 64
    length: float | None = None
    limit: float = 0.05
    noise_limit: float = 2.0
    n_probes: int = 4
    max_frames: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        Spring.from_time_step(1.0, self.diffusion)
        for name, unit in (("noise_levels", "nm"), ("time_steps", "ps")):
            values = getattr(self, name)
            require(values is None or len(values) > 0, name, f"at least one value in {unit}", "none")
            for value in values or ():
                check_number(value, name, above=0, unit=unit)
        for name, unit in (("length", "ps"), ("limit", ""), ("noise_limit", "")):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), name, above=0, unit=unit)
        if self.length is not None and self.time_steps:
            shortest = SHORTEST * max(self.time_steps)
            require(
                self.length >= shortest,
                "length",
                f"at least {SHORTEST} of the largest time step, {shortest:g} ps",
                f"{self.length:g} ps",
            )
        check_integer(self.n_replicas, "n_replicas", minimum=2, maximum=2**24)
        check_integer(self.n_probes, "n_probes", minimum=1)
        check_integer(self.max_frames, "max_frames", minimum=2)
        check_integer(self.seed, "seed", minimum=0, maximum=2**63 - 1)


@torch.no_grad()
def recommend(model: Any, snapshots: Snapshots, *, progress: bool = False, **settings: Any) -> Recommendation:
    """Scan noise levels and time steps; the one of each to run the model with, at the temperature of its training.

    The noise level with the lowest held-out error whose inflation stays within ``noise_limit``; at this level the
    largest time step that loses no replica, whose predicted inflation of the stiffest mode is within ``limit`` and
    whose measured one over all modes is not above it by more than two standard errors, as for every smaller step tried.

    Args:
        model: a model with a ``score``; what is no torch module must take float32 and float64.
        snapshots: frames that the model was not trained on, of its atoms and at its temperature, in time order within
            each replica; bonds are those of their molecule.
        progress: show bars.
        diffusion: nm^2/ps, a number or one per atom; default 0.002.
        noise_levels: nm; default 1 to 4 times the model's smallest in factors of sqrt(2), as far as it goes.  A model
            without ``noise_levels`` is run as it is.
        time_steps: ps; default 1/2 to 16 times the one whose predicted inflation is the limit, below the stability
            limit.
        n_replicas: runs side by side, from frames drawn from the snapshots; default 64.
        length: of each run, ps; default 2000 of the steps at the limit.
        limit: largest inflation of a variance by the time step; default 0.05.
        noise_limit: largest inflation of the stiffest bond's variance by the noise, 2 sigma^2/variance; default 2, a
            noise level as large as the bond's own fluctuation.
        n_probes: random vectors at each frame; default 4.
        max_frames: held-out frames used, evenly spread; default 2000.
        seed: of probes, noise, starting frames and runs; default 0.

    Raises:
        InputError: a value out of range, frames of other atoms or another temperature, frames without a finite score or
            outside the model's support, a model without curvature and no ``time_steps``.
        ScanInterrupted: after Ctrl-C during the runs (a KeyboardInterrupt).
    """
    scan = _Scan(model, snapshots, Settings(**settings), progress)
    with called("positions", "snapshots"):
        noise = scan.noise()
    chosen, noise_reason = choose_noise(noise, scan.settings.noise_limit)
    steps, length = scan.plan(chosen.noise_level)
    grid = scan.grid(chosen.noise_level, steps)
    points: list[StepPoint] = []

    def result(complete: bool) -> Recommendation:
        ordered = tuple(sorted(points, key=lambda point: point.time_step))
        step, step_reason = choose_step(ordered, scan.settings.limit, length)
        spring = None if step is None else Spring.from_time_step(step.time_step, scan.settings.diffusion)
        return Recommendation(
            noise=noise,
            steps=ordered,
            diffusion=scan.settings.diffusion,
            noise_level=chosen.noise_level,
            spring=spring,
            noise_reason=noise_reason,
            step_reason=step_reason,
            curvature=scan.curvature,
            noise_bonds=scan.noise_bonds(chosen.noise_level),
            limit=scan.settings.limit,
            noise_limit=scan.settings.noise_limit,
            length=length,
            n_frames=len(scan.frames),
            complete=complete,
        )

    try:
        for point in scan.runs(chosen.noise_level, steps, length, grid):
            points.append(point)
    except KeyboardInterrupt:
        raise ScanInterrupted(result(False)) from None
    return result(True)


class _Scan:
    """The held-out frames, and what is measured on them and on runs from them."""

    def __init__(self, model: Any, snapshots: Snapshots, settings: Settings, progress: bool):
        self.model, self.settings, self.progress = model, settings, progress
        require(
            isinstance(snapshots, Snapshots),
            "snapshots",
            "Snapshots, as read_snapshots gives them",
            type(snapshots).__name__,
        )
        self.precise = in_double(model)
        self.levels = _noise_levels(model, settings.noise_levels)
        Evaluator(model)  # refuses what has no score
        self.all_frames = as_positions(snapshots.positions, "snapshots", model)
        require(len(self.all_frames) >= 2, "snapshots", "at least 2 frames", len(self.all_frames))
        n_diffusion, n_atoms = len(_row(Spring.from_time_step(1.0, settings.diffusion).diffusion)), snapshots.n_atoms
        require(n_diffusion in (1, n_atoms), "diffusion", f"a number or {n_atoms} values, one per atom", n_diffusion)
        own, given = model_temperature(model), snapshots.temperature
        require(
            given is None or abs(given / own - 1) < 0.01,
            "snapshots",
            f"frames at the model's T0, {own:g} K",
            f"frames at {given} K",
        )
        self.replica, self.time = snapshots.replica, snapshots.time
        replicas = find_replicas(len(self.all_frames), self.replica, self.time, "snapshots")
        self.pieces = thinned(replicas.indices, settings.max_frames)
        self.frames = self.all_frames[torch.as_tensor(np.concatenate(self.pieces))].double()
        self.bonds = list(snapshots.molecule.bonds)
        self.lengths = bond_lengths(self.frames.cpu().numpy(), self.bonds) if self.bonds else None
        self.curvature = 0.0

    # ---- noise levels

    def noise(self) -> tuple[NoisePoint, ...]:
        """Every noise level, ascending."""
        from tqdm import tqdm

        values, losses = [], []
        for level in tqdm(self.levels, desc="noise levels", disable=None if self.progress else True, leave=False):
            probes = Probes(
                Evaluator(self.precise, level),
                self.frames,
                self.settings.diffusion,
                self.settings.n_probes,
                seed=self.settings.seed,
            )
            probes.check_frames()
            squares, traces = probes.squares_and_traces(estimate_curvature(self.precise, self.frames, level))
            values.append((squares + 2 * traces) / 4)
            losses.append(None if level is None else self._denoising_loss(probes, level))
        best = min(values, key=np.mean)
        return tuple(
            NoisePoint(
                level,
                self._mean(value - best),
                None if loss is None else self._mean(loss),
                self._stiffest_inflation(level),
            )
            for level, value, loss in zip(self.levels, values, losses)
        )

    def _mean(self, values: np.ndarray) -> Estimate:
        return estimate_mean(frame_units(self.pieces, [values]), values)

    def _denoising_loss(self, probes: Probes, level: float) -> np.ndarray:
        noise = draw_noise(self.frames.shape, torch.Generator().manual_seed(self.settings.seed)).to(self.frames)
        losses = []
        for part in probes.batches():
            score = probes.score(self.frames[part] + level * noise[part])
            losses.append(denoising_error(score, noise[part], score.new_full((len(score),), level)))
        return torch.cat(losses).cpu().numpy()

    def _stiffest_inflation(self, level: float | None) -> float | None:
        return None if level is None or self.lengths is None else float(2 * level**2 / self.lengths.var(0).min())

    def noise_bonds(self, level: float | None) -> float | None:
        """2 sigma^2 over the variance of a bond's length, mean over bonds."""
        return None if level is None or self.lengths is None else float((2 * level**2 / self.lengths.var(0)).mean())

    # ---- time steps

    def plan(self, level: float | None) -> tuple[list[float], float]:
        """Time steps in ps, ascending, and the length of the runs in ps."""
        self.curvature = estimate_curvature(self.precise, self.frames, level)
        given, length, limit = self.settings.time_steps, self.settings.length, self.settings.limit
        fastest = max(_row(Spring.from_time_step(1.0, self.settings.diffusion).diffusion)) * self.curvature
        require(
            fastest > 0 or given is not None,
            "time_steps",
            "values: no default, as the energy curves down at every frame",
            "none",
        )
        at_limit = 2 * limit / (1 + limit) / fastest if fastest > 0 else max(given)  # 1/(1 - a/2) - 1 = limit
        if given is not None:
            steps = sorted({float(step) for step in given})
            return steps, float(length or max(RUN_STEPS * at_limit, SHORTEST * steps[-1]))
        length = float(length or RUN_STEPS * at_limit)
        steps = [factor * at_limit for factor in STEP_FACTORS if factor * at_limit * fastest < EulerMaruyama.limit]
        steps = [step for step in steps if SHORTEST * step <= length]
        require(len(steps) > 0, "length", f"at least {SHORTEST * STEP_FACTORS[0] * at_limit:.3g} ps", f"{length:g} ps")
        return steps, length

    def grid(self, level: float | None, steps: list[float]) -> dict[float, Estimate]:
        """Grid part of the path error at each time step, nats/ps."""
        budget = error_budget(
            self.model,
            self.all_frames,
            Spring.from_time_step(steps[0], self.settings.diffusion),
            noise_level=level,
            replica=self.replica,
            time=self.time,
            time_steps=steps,
            n_probes=self.settings.n_probes,
            max_frames=self.settings.max_frames,
            seed=self.settings.seed,
            progress=self.progress,
        )
        return {point.time_step: point.bridge for point in budget.curve}

    def runs(self, level: float | None, steps: list[float], length: float, grid: dict[float, Estimate]) -> Any:
        """A `StepPoint` for every time step, the largest (and cheapest) first."""
        from tqdm import tqdm

        counts = {step: max(SHORTEST, round(length / step)) for step in reversed(steps)}
        with tqdm(
            total=sum(counts.values()),
            desc="time steps",
            unit=" steps",
            leave=False,
            disable=None if self.progress else True,
        ) as bar:
            for time_step, n_steps in counts.items():
                bar.set_postfix_str(f"{time_step:.3g} ps", refresh=False)
                yield self._run(level, time_step, n_steps, grid.get(time_step), bar)

    def _run(self, level: float | None, time_step: float, n_steps: int, grid: Estimate | None, bar: Any) -> StepPoint:
        spring = Spring.from_time_step(time_step, self.settings.diffusion)
        sampler = Sampler(self.model, spring, seed=self.settings.seed, noise_level=level, force=True)
        n_replicas, begun = self.settings.n_replicas, bar.n
        order = torch.randperm(len(self.all_frames), generator=torch.Generator().manual_seed(self.settings.seed))
        start = self.all_frames[order[torch.arange(n_replicas) % len(order)]]
        start = start - start.mean(1, keepdim=True)
        with called("initial_positions", "snapshots"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*replica.* lost")  # they are counted
            trajectory = sampler.run(
                start,
                n_steps,
                max(1, n_steps // RUN_FRAMES),
                reporters=[lambda step, *_: bar.update(begun + step - bar.n)],
            )
        bar.update(begun + n_steps - bar.n)
        frames, pieces = _frames_of(trajectory)
        number = max(_row(spring.diffusion_time)) * self.curvature
        known = len(frames) > 1
        return StepPoint(
            time_step,
            number,
            Stability(self.curvature, number).inflation,
            self._configurational(level, frames, pieces) if known else None,
            self._bond_inflation(frames, pieces) if known and self.bonds else None,
            len(trajectory.lost),
            n_replicas,
            grid,
        )

    def _configurational(self, level: float | None, frames: Tensor, pieces: list[np.ndarray]) -> Estimate | None:
        """Configurational temperature over T0, - 1; None where the energy does not curve up on average.

        As `sampling.configurational_temperature`, but weighted by D, as the step's inflation is, and with an error
        that knows of correlated frames.
        """
        probes = Probes(
            Evaluator(self.precise, level), frames, self.settings.diffusion, RUN_PROBES, seed=self.settings.seed
        )
        squares, traces = probes.squares_and_traces(self.curvature)
        if not (np.isfinite(squares).all() and np.isfinite(traces).all() and traces.mean() < 0):
            return None
        ratio = estimate_ratio(frame_units(pieces, [squares]), squares, -traces)
        return Estimate(ratio.value - 1, ratio.error)

    def _bond_inflation(self, frames: Tensor, pieces: list[np.ndarray]) -> Estimate:
        """Mean over bonds of the variance of the length in the run over that in the snapshots, - 1."""
        variance = self.lengths.var(0)
        ours = ((self.lengths - self.lengths.mean(0)) ** 2 / variance).mean(1)  # of mean 1
        lengths = bond_lengths(frames.cpu().numpy(), self.bonds)
        theirs = ((lengths - lengths.mean(0)) ** 2 / variance).mean(1)
        run = estimate_mean(frame_units(pieces, [theirs]), theirs)
        return Estimate(run.value - 1, float(np.hypot(run.error, run.value * self._mean(ours).error)))


def _noise_levels(model: Any, given: Sequence[float] | None) -> list[float | None]:
    """Noise levels in nm, ascending; [None] for a model that takes none."""
    trained = getattr(model, "noise_levels", None)
    low, high = trained or (0.0, float("inf"))
    if given is not None:
        for level in given:
            require(
                low <= level <= high,
                "noise_levels",
                f"{low:g} to {high:g} nm, the range of the training",
                f"{level:g} nm",
            )
        return sorted({float(level) for level in given})
    if trained is None:
        return [None]
    return [factor * low for factor in NOISE_FACTORS if factor * low <= high * (1 + 1e-9)]


def _frames_of(trajectory: Trajectory) -> tuple[Tensor, list[np.ndarray]]:
    """Frames of the last three quarters of a run, float64 [frames, atoms, 3], replica after replica while it was good,
    and the frame numbers of each replica."""
    first = -(-trajectory.n_frames // 4)
    alive = trajectory.alive[first:]
    kept = [trajectory.positions[first:, r][alive[:, r]] for r in range(trajectory.n_replicas)]
    kept = [frames for frames in kept if len(frames)]
    if not kept:
        return torch.empty(0, 1, 3, dtype=torch.float64), []
    ends = np.cumsum([len(frames) for frames in kept])
    return torch.as_tensor(np.concatenate(kept)).double(), np.split(np.arange(ends[-1]), ends[:-1])
