"""How far a run's paths are from those of the exact dynamics, and which time step is good enough.

Source: docs/theory.md section 5 (J. Diamond and M. Lill, arXiv 2511.17741, whose constants disagree with one
another; the integral here is exact).

**The divergence.**  A run draws paths of  dx_a = D_a s_a(x_n) dt + sqrt(2 D_a v) dW_a  between two steps, with the
score held at the step's start x_n, D_a the diffusion coefficient of atom a and v = T/T0; Euler-Maruyama is this
process looked at every dt.  The exact dynamics has the true score s* = F/kT0 at the moving point instead, and the
same noise.  Girsanov: KL = 1/2 E int |difference of drifts|^2 / (2 D_a v) dt, summed over atoms, so

    KL = 1/(4 v) sum_a D_a sum_n int E |s_a(x_n) - s*_a(x_t)|^2 dt                                          (1)

in nats, the expectation over the run's own paths, both started alike.  With one D and v = 1 this is section 5.  The
noise at T has variance v times that at T0 while the drifts stay, hence 1/v.

**Grid part**, s in the place of s* in (1).  Inside a step x_t - x_n = D t s + sqrt(2 D t v) xi, and to leading order
s_a(x_t) - s_a(x_n) = sum_b J_ab sqrt(2 D_b t v) xi_b with J = ds/dx.  Its mean square is 2 t v sum_b D_b |J_ab|^2, and
the mean of t is dt/2; v cancels:

    grid part per ps = dt/4 sum_ab D_a |J_ab|_F^2 D_b = dt/4 |D^1/2 J D^1/2|_F^2 + O(dt^2)                  (2)

Hutchinson: |A|_F^2 = E |A z|^2 for signs z of independent +-1.  Bridge: no expansion; x_t is drawn with t uniform in
(0, dt), one draw in each of n_probes equal parts of it, and |s(x_n) - s(x_t)|^2 averaged.

**Model part**, x_n in the place of x_t in (1): 1/(4 v) sum_a D_a E |s_a - s*_a|^2 per ps.  It counts all that the
score lacks, the noise level's smoothing too.  Forces on a part of the atoms (heavy atoms of a molecule) scatter about
the mean force, which is what the score should be: their scatter is then counted as error, and the model part is an
upper bound.

**Cross term.**  Grid and model part add up to (1) but for a term of at most 2 sqrt(grid part times model part), whose
leading order is that of the grid part times the relative error of J.  ``total_direct`` contains it, and so does the
step for a wanted error where the true score is a function.

**Frames** should be of the run in question, at its temperature.  Snapshots of the equilibrium at that temperature
give the same at leading order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, check_finite, check_integer, check_number, check_tensor, require
from ..sampling.evaluation import Evaluator, as_positions, model_temperature
from ..sampling.integrators import EulerMaruyama
from ..sampling.spring import MOLAR_GAS_CONSTANT, Spring, _row
from ..sampling.stability import estimate_curvature
from .budget_result import ErrorBudget, Estimate, GridPoint, wanted_time_step
from .frame_means import estimate_mean, frame_units, gyration, thinned
from .replicas import find_replicas
from .score_probes import Probes, in_double

CURVE = tuple(2.0**k for k in range(-4, 5))  # time steps of the curve, in those of the run


@torch.no_grad()
def error_budget(
    model: Any,
    positions: Any,
    spring: Spring,
    *,
    temperature: float | None = None,
    noise_level: float | None = None,
    forces: Any = None,
    exact: Any = None,
    replica: Any = None,
    time: Any = None,
    length: float | None = None,
    wanted: float | None = None,
    time_steps: Sequence[float] | None = None,
    n_probes: int = 4,
    max_frames: int = 2000,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> ErrorBudget:
    """Path KL divergence per ps of a run, split into the grid's and the model's part, with standard errors.

    Products with the Jacobian are central differences of the score in float64 (a module is copied and converted),
    over 1e-4 of the width of the stiffest mode: that serves any model with a ``score``, also one without second
    derivatives.  Truncation leaves a relative error of the order of 1e-8 by Taylor expansion,
    and so does rounding.

    Standard errors come from the scatter of pieces that count as independent (`resampling_units`): single frames
    where they are uncorrelated, whole replicas, or blocks of ten correlation times.  The correlation time is the
    longest one of the estimates themselves, the energy and the radius of gyration.

    Args:
        model: anything with ``score(positions)`` in 1/nm; what is no torch module must take float64.
        positions: [frames, atoms, 3] nm, at least two frames, in time order within each replica.
        spring: time step and diffusion (nm^2/ps, a number or one per atom) of the run.
        temperature: T of the run in K; default the model's own T0.
        noise_level: sigma in nm at which the score is taken; default the model's own.
        forces: true forces [frames, atoms, 3] at ``positions``, kJ/mol/nm; s* = F/kT0 with the model's T0.
        exact: instead of them a model with the true ``score`` (of its own ``temperature``, which may differ).
        replica: int [frames], which run a frame is from; default one run.
        time: ps [frames]; where it falls, a new replica begins.
        length: of the run in ps, for the total divergence.
        wanted: KL to be met, in nats: over ``length`` if that is given, else per ps.
        time_steps: ps, of the curve; default 1/16 to 16 times the run's, those below the stability limit.
        n_probes: probes, and draws inside the step, at each frame.
        max_frames: frames used, evenly spread over those given.
        batch_size: frames evaluated together.
        seed: of probes and draws.
        progress: show a bar.

    Raises:
        InputError: a value out of range or of the wrong shape, forces and exact both given, frames without a finite
            score; before anything else is computed.
    """
    settings = Settings(
        temperature=temperature,
        length=length,
        wanted=wanted,
        time_steps=time_steps,
        n_probes=n_probes,
        max_frames=max_frames,
        batch_size=batch_size,
        seed=seed,
    )
    require(
        isinstance(spring, Spring),
        "spring",
        "a Spring, e.g. Spring.from_time_step(time_step, diffusion)",
        type(spring).__name__,
    )
    precise = in_double(model)
    evaluate = Evaluator(precise, noise_level)
    own_temperature = model_temperature(model)
    frames = as_positions(positions, "positions", model)
    require(len(frames) >= 2, "positions", "at least 2 frames", len(frames))
    n_diffusion = len(_row(spring.diffusion))
    require(
        n_diffusion in (1, frames.shape[1]),
        "diffusion",
        f"a number or {frames.shape[1]} values, one per atom",
        n_diffusion,
    )
    truth = _check_truth(forces, exact, frames, own_temperature)
    pieces = thinned(find_replicas(len(frames), replica, time, "positions").indices, settings.max_frames)
    kept = torch.as_tensor(np.concatenate(pieces), device=frames.device)
    truth = truth if truth is None or callable(truth) else truth[kept]
    temperature = own_temperature if temperature is None else float(temperature)
    run = _Run(evaluate, frames[kept].double(), spring, temperature / own_temperature, settings)
    energy = run.check_frames()
    curvature = estimate_curvature(precise, run.frames, evaluate.argument)
    values = run.values(curvature, truth, progress)
    return _assembled(run, values, pieces, energy, temperature, own_temperature)


# ---- checks and choices ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of `error_budget`, checked; a command makes them before it reads a file."""

    temperature: float | None
    length: float | None
    wanted: float | None
    n_probes: int
    max_frames: int
    seed: int
    time_steps: Sequence[float] | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name, unit in (("temperature", "K"), ("length", "ps"), ("wanted", "nats")):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), name, above=0, unit=unit)
        for step in self.time_steps or ():
            check_number(step, "time_steps", above=0, unit="ps")
        check_integer(self.n_probes, "n_probes", minimum=1)
        check_integer(self.max_frames, "max_frames", minimum=2)
        check_integer(self.batch_size, "batch_size", minimum=1)
        check_integer(self.seed, "seed", minimum=0, maximum=2**63 - 2)

    @property
    def rate(self) -> float | None:
        """The wanted error in nats/ps."""
        return None if self.wanted is None else float(self.wanted) / float(self.length or 1.0)


def _check_truth(forces: Any, exact: Any, frames: Tensor, temperature: float) -> Any:
    """True scores in 1/nm of the model's kT0: a tensor [frames, atoms, 3], a function of positions, or None."""
    require(forces is None or exact is None, "forces", "either forces or exact", "both")
    if forces is not None:
        try:
            forces = torch.as_tensor(forces)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"forces: expected an array of shape {list(frames.shape)} in kJ/mol/nm, got {type(forces).__name__}"
            ) from None
        check_tensor(forces, "forces", tuple(frames.shape))
        check_finite(forces, "forces")
        return forces.to(frames.device, torch.float64) / (MOLAR_GAS_CONSTANT * temperature)
    if exact is None:
        return None
    require(callable(getattr(exact, "score", None)), "exact", "a model with a method score", type(exact).__name__)
    n_atoms = getattr(exact, "n_atoms", frames.shape[1])
    require(n_atoms == frames.shape[1], "exact", f"a model of {frames.shape[1]} atoms, as the frames", n_atoms)
    evaluate = Evaluator(in_double(exact))
    factor = model_temperature(exact) / temperature  # its score is F/kT of its own temperature
    return lambda x: factor * evaluate(x)[1]


def _curve(spring: Spring, curvature: float, steps: list[float] | None, guess: Estimate | None) -> list[float]:
    """Time steps of the curve in ps, ascending: those given or the default ones, the run's own, the wanted one."""
    limit = EulerMaruyama.limit / (max(_row(spring.diffusion)) * curvature) if curvature > 0 else np.inf
    chosen = [spring.time_step]
    if guess is not None and guess.value < limit and not np.isclose(guess.value, spring.time_step, rtol=1e-9, atol=0):
        chosen.append(guess.value)
    if steps is None:
        steps = [step for step in (factor * spring.time_step for factor in CURVE) if step < limit]
    return sorted({*chosen, *(s for s in steps if not any(np.isclose(s, c, rtol=1e-9, atol=0) for c in chosen))})


# ---- the estimators ----------------------------------------------------------------------------------


class _Values(NamedTuple):
    """curvature in 1/nm^2; slopes and growth [frames] in nats/ps^2; model part, grid part by the bridge and whole error
    [frames] in nats/ps; time steps of the curve in ps, and the last two at each of them [time steps, frames]."""

    curvature: float
    slopes: np.ndarray
    growth: np.ndarray | None
    model_part: np.ndarray | None
    bridge: np.ndarray
    whole: np.ndarray | None
    time_steps: list[float]
    curve: np.ndarray
    curve_whole: np.ndarray | None


class _Run(Probes):
    """Values at each frame, float64 [frames], whose means are the parts of the budget."""

    def __init__(self, evaluate: Evaluator, frames: Tensor, spring: Spring, multiplier: float, settings: Settings):
        super().__init__(evaluate, frames, spring.diffusion, settings.n_probes, settings.batch_size, settings.seed)
        self.spring, self.multiplier, self.settings = spring, multiplier, settings

    def values(self, curvature: float, truth: Any, progress: bool) -> _Values:
        """Everything that is measured; ``truth`` as `_check_truth` gives it, at these frames."""
        own, whole_law = self.spring.time_step, truth if callable(truth) else None
        with self.bar(progress, 3 * self.n_probes + 1) as bar:
            slopes = self.slopes(curvature)
            errors = None if truth is None else self.model_part(truth(self.frames) if callable(truth) else truth)
            here, whole = self.bridge([own], whole_law)
            growth = None if whole is None else (whole[0] - errors) / own
            guess = self.guess(slopes, growth, errors)
            steps = _curve(self.spring, curvature, self.settings.time_steps, guess)
            bar.reset(total=len(self.frames) * (1 + self.n_probes * len(steps)))
            curve, curve_whole = self.bridge(steps, whole_law)
        require(
            bool(np.isfinite(here).all()),
            self.spring.given,
            "a step inside which the score stays finite",
            f"{own:g} ps",
        )
        return _Values(
            curvature, slopes, growth, errors, here[0], None if whole is None else whole[0], steps, curve, curve_whole
        )

    def guess(self, slopes: np.ndarray, growth: np.ndarray | None, errors: np.ndarray | None) -> Estimate | None:
        """The time step for the wanted error, so that the curve has it."""
        if self.settings.rate is None:
            return None
        slope = next(mean for mean in (*([] if growth is None else [growth.mean()]), slopes.mean()) if mean >= 0)
        return wanted_time_step(
            Estimate(slope, 0.0), None if errors is None else Estimate(errors.mean(), 0.0), self.settings.rate
        )

    def divergence(self, difference: Tensor) -> Tensor:
        """1/(4 v) sum_a D_a |difference_a|^2 in nats/ps of [frames, atoms, 3] in 1/nm."""
        return (self.diffusion * difference.square()).sum((1, 2)) / (4 * self.multiplier)

    def slopes(self, curvature: float) -> np.ndarray:
        """Equation (2) over dt, nats/ps^2: 1/4 |D^1/2 J D^1/2 z|^2, mean over the probes z."""
        values = self.frames.new_zeros(len(self.frames))
        for part, _, product in self.products(curvature):
            values[part] += (self.diffusion * product.square()).sum((1, 2)) / 4
        return (values / self.n_probes).cpu().numpy()

    def model_part(self, true_score: Tensor) -> np.ndarray:
        """nats/ps; true_score [frames, atoms, 3] in 1/nm."""
        values = [self.divergence(self.evaluate(self.frames[part])[1] - true_score[part]) for part in self.batches()]
        return torch.cat(values).cpu().numpy()

    def bridge(self, time_steps: list[float], truth: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """The grid part [time steps, frames] in nats/ps; where truth is a function, also (1) itself.

        All time steps share their draws, which makes the curve smoother than its error bars.  (1) is the mean over
        both signs of the noise: what is odd in it, the larger the smaller the step, cancels.
        """
        generator = torch.Generator().manual_seed(self.settings.seed + 1)
        values = self.frames.new_zeros(len(time_steps), len(self.frames))
        whole = None if truth is None else torch.zeros_like(values)
        for part in self.batches():
            x = self.frames[part]
            start = self.score(x)
            for stratum in range(self.n_probes):
                share = (stratum + torch.rand(len(x), 1, 1, generator=generator, dtype=x.dtype)) / self.n_probes
                noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
                for k, time_step in enumerate(time_steps):
                    moved = self.diffusion * share.to(x.device) * time_step  # D t
                    middle, aside = x + moved * start, (2 * self.multiplier * moved).sqrt() * noise
                    values[k, part] += self.divergence(start - self.score(middle + aside))
                    if whole is not None:
                        for inside in (middle + aside, middle - aside):
                            whole[k, part] += self.divergence(start - truth(inside)) / 2
        values /= self.n_probes
        return values.cpu().numpy(), None if whole is None else (whole / self.n_probes).cpu().numpy()


# ---- their means -------------------------------------------------------------------------------------


def _assembled(
    run: _Run,
    values: _Values,
    pieces: list[np.ndarray],
    energy: np.ndarray | None,
    temperature: float,
    own_temperature: float,
) -> ErrorBudget:
    """Means and standard errors of the values; pieces are the frame numbers of each replica."""
    here, errors = values.bridge, values.model_part
    units = frame_units(
        pieces, [values.slopes, here, *[v for v in (errors, energy) if v is not None], gyration(run.frames)]
    )

    def estimate(of_frames: np.ndarray | None) -> Estimate | None:
        return None if of_frames is None or not np.isfinite(of_frames).all() else estimate_mean(units, of_frames)

    slope = estimate_mean(units, values.slopes)
    wholes = [None] * len(values.curve) if values.curve_whole is None else values.curve_whole
    curve = [
        GridPoint(step, slope.times(step), estimate_mean(units, row), estimate(whole))
        for step, row, whole in zip(values.time_steps, values.curve, wholes)
        if np.isfinite(row).all()
    ]
    return ErrorBudget(
        spring=run.spring,
        temperature=temperature,
        model_temperature=own_temperature,
        noise_level=run.evaluate.noise_level,
        curvature=values.curvature,
        slope=slope,
        growth=estimate(values.growth),
        grid_hutchinson=slope.times(run.spring.time_step),
        grid_bridge=estimate(here),
        model_part=estimate(errors),
        total=estimate(here if errors is None else here + errors),
        total_direct=estimate(values.whole),
        length=run.settings.length,
        wanted=run.settings.rate,
        curve=tuple(curve),
        n_frames=len(run.frames),
        n_probes=run.n_probes,
        units=units.description,
        reliable=units.reliable,
        reason=units.reason,
    )
