"""Integrators of the learned dynamics, by name.  docs/theory.md sections 1, 3 and 4.

A step has two parts with an evaluation between them: :meth:`move` takes the positions of step n to those of n + 1,
:meth:`finish` takes energy and score there.  csrc/resident_sampler.cpp does the same with the same functions.
The noise is a pure function of (seed, replica, step, atom), so no integrator but BAOAB, whose velocities are stored
with the positions, has any state beyond the positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backend import current_backend
from ..errors import require
from ..ops import em_step, get_num_threads
from ..ops._library import native
from ..reference.em_step import em_step_core
from ..reference.integrators import langevin_move_core, metropolis_core

# Domains of the noise: separate streams of one seed.  csrc/integrators.cpp has the third.
STEPS, REVERSE_DIFFUSION, METROPOLIS, VELOCITIES = 0, 1, 2, 3


@dataclass
class Part:
    """Replicas that are evaluated together, and what belongs to their present positions.

    ``positions`` [replicas, atoms, 3] nm, ``velocities`` nm/ps or None, ``accepted``: steps accepted, int64 [replicas]:
    all three views into the run's; ``first``: their first row there; ``first_replica``: their first number in the
    noise; ``energy`` [replicas] kT0, or None for a model without; ``score`` 1/nm; ``before``: the positions that a
    proposal was made from.
    """

    positions: Tensor
    first: int
    first_replica: int
    velocities: Tensor | None
    accepted: Tensor
    energy: Tensor | None = None
    score: Tensor | None = None
    before: Tensor | None = None


Evaluate = Callable[[Tensor], tuple[Tensor | None, Tensor]]
# A number, or int64 [1] where the positions are: a captured CUDA graph (graph.py) counts its steps on the device.
Step = int | Tensor


class EulerMaruyama:
    """x' = x + D dt s(x) + sqrt(2 D dt v) xi: one spring-tied denoising step (docs/theory.md section 1).

    Args:
        diffusion_time: D dt in nm^2, float64 [1] or [atoms], on the positions' device.
        seed: 0 .. 2^64 - 1.
    """

    name = "euler-maruyama"
    rule = 0  # csrc/resident_sampler.hpp
    needs_energy = uses_velocities = counts_acceptance = False
    number_text, limit = "D dt L", 2.0  # the number that says how large a step is, and where it becomes unstable

    def __init__(self, diffusion_time: Tensor, seed: int):
        self.diffusion_time, self.seed = diffusion_time, seed

    def move(self, part: Part, evaluate: Evaluate, step: Step, variance: Tensor) -> None:
        """Positions of ``step`` to those of ``step + 1``, in place; ``variance`` v = T/T0 of this step, float64 [1]."""
        self._step(part.positions, part.score, part, step, variance)

    def finish(self, part: Part, energy: Tensor | None, score: Tensor, step: Step, variance: Tensor) -> None:
        """Take energy and score at the new positions."""
        part.energy, part.score = energy, score

    @staticmethod
    def inflation(number: float) -> float:
        """What the step adds to the variance of a harmonic mode, relative, at a = D dt L."""
        return 1 / (1 - number / 2) - 1

    def _step(self, positions: Tensor, score: Tensor, part: Part, step: Step, variance: Tensor) -> None:
        move(positions, score, self.diffusion_time, variance, self.seed, part.first_replica, step)


class LeimkuhlerMatthews(EulerMaruyama):
    """x' = x + D dt s(x) + sqrt(2 D dt v) (xi_n + xi_(n+1))/2 (Appl. Math. Res. Express 2013, 34).

    Averages over the stationary state are right to second order in dt, and exact in a harmonic well, for one score a
    step.  What happens from one step to the next is not that of Langevin dynamics: neighbouring steps share noise.
    """

    name, rule = "leimkuhler-matthews", 1
    _zeros: Tensor | None = None

    def move(self, part: Part, evaluate: Evaluate, step: Step, variance: Tensor) -> None:
        if self._zeros is None or len(self._zeros) < len(part.positions):  # the first part is the largest
            self._zeros = torch.zeros_like(part.positions)
        self._step(part.positions, part.score, part, step, 0.25 * variance)
        self._step(part.positions, self._zeros[:len(part.positions)], part, step + 1, 0.25 * variance)

    @staticmethod
    def inflation(number: float) -> float:
        return 0.0


class Heun(EulerMaruyama):
    """x* = x + D dt s(x) + noise; x' = x + D dt (s(x) + s(x*))/2 + the same noise: two scores a step, second order."""

    name, rule = "heun", 2

    def move(self, part: Part, evaluate: Evaluate, step: Step, variance: Tensor) -> None:
        predicted, score = part.positions.clone(), part.score.clone()  # a module may answer twice in one memory
        self._step(predicted, part.score, part, step, variance)
        score.add_(evaluate(predicted)[1]).mul_(0.5)
        self._step(part.positions, score, part, step, variance)

    @staticmethod
    def inflation(number: float) -> float:
        return (2 - number) / (2 - number + number**2 / 2) - 1


class Metropolis(EulerMaruyama):
    """The Euler-Maruyama step as a proposal that is accepted or rejected: exact for the learned energy at any step.

    docs/theory.md section 3; at T != T0 the density is exp(-E/v).
    """

    name, rule = "metropolis", 3
    limit = float("inf")
    needs_energy = counts_acceptance = True

    def move(self, part: Part, evaluate: Evaluate, step: Step, variance: Tensor) -> None:
        part.energy, part.score = part.energy.clone(), part.score.clone()  # a module may answer twice in one memory
        part.before = part.positions.clone()
        self._step(part.positions, part.score, part, step, variance)

    def finish(self, part: Part, energy: Tensor | None, score: Tensor, step: Step, variance: Tensor) -> None:
        arguments = (part.before, part.score, part.energy, part.positions, score, energy)
        if _native_serves(part.positions, step):
            native("metropolis", part.positions.dtype)(
                *part.positions.shape[:2], *(tensor.data_ptr() for tensor in arguments),
                self.diffusion_time.data_ptr(), self.diffusion_time.numel() > 1, variance.item(), self.seed,
                part.first_replica, step, part.accepted.data_ptr())
        else:
            accepted = metropolis_core(*arguments, self.diffusion_time, variance, self.seed, part.first_replica, step,
                                       METROPOLIS)
            part.positions.copy_(torch.where(accepted[:, None, None], part.positions, part.before))
            score = torch.where(accepted[:, None, None], score, part.score)
            energy = torch.where(accepted, energy, part.energy)
            part.accepted += accepted
        part.energy, part.score = energy, score

    @staticmethod
    def inflation(number: float) -> float:
        return 0.0


class Baoab(EulerMaruyama):
    """Underdamped Langevin dynamics with masses, split as BAOAB (Leimkuhler and Matthews, 2013): second order.

    v += dt/2 kT0/m s(x); x += dt/2 v; v = c v + sqrt((1 - c^2) v_T kT0/m) xi with c = exp(-friction dt); x += dt/2 v;
    v += dt/2 kT0/m s(x').  The friction of an atom is kT0/(m D): its long-time diffusion is that of the spring's D.

    Args:
        masses: float64 [atoms], Da.
        thermal_energy: kT0 in kJ/mol, which is Da nm^2/ps^2.
        time_step: ps.
    """

    name, rule = "baoab", 4
    number_text, limit = "dt^2 L kT0/m", 4.0
    uses_velocities = True

    def __init__(self, diffusion_time: Tensor, seed: int, masses: Tensor, thermal_energy: float, time_step: float):
        super().__init__(diffusion_time, seed)
        speeds = thermal_energy / masses  # kT0/m, nm^2/ps^2
        friction = speeds * time_step / diffusion_time
        self.half_step, self.kick = 0.5 * time_step, 0.5 * time_step * speeds
        self.decay = torch.exp(-friction * time_step)
        self.amplitude = torch.sqrt(-torch.expm1(-2 * friction * time_step) * speeds)
        self.masses, self.thermal_speed = masses, torch.sqrt(speeds)
        self._half, self._one = masses.new_full((1,), 0.5), masses.new_ones(1)

    def draw_velocities(self, positions: Tensor, first_replica: int, variance: Tensor) -> Tensor:
        """Those of thermal equilibrium at the start, [replicas, atoms, 3] in nm/ps."""
        xi = self._noise(positions, first_replica, 0, VELOCITIES)
        return xi * (self.thermal_speed * variance.sqrt()).to(xi.dtype)[:, None]

    def _noise(self, positions: Tensor, first_replica: int, step: Step, domain: int) -> Tensor:
        """Standard normal noise of the positions' shape: a step from 0 with no score and D dt = 1/2."""
        xi, no_score = torch.zeros_like(positions), torch.zeros_like(positions)
        move(xi, no_score, self._half, self._one, self.seed, first_replica, step, domain)
        return xi

    def move(self, part: Part, evaluate: Evaluate, step: Step, variance: Tensor) -> None:
        noise = self._noise(part.positions, part.first_replica, step, STEPS)
        if _native_serves(part.positions, step):
            self._native("langevin_move", part, part.score, noise, variance)
        else:
            langevin_move_core(part.positions, part.velocities, part.score, noise, self.half_step, self.kick,
                               self.decay, self.amplitude * variance.sqrt())

    def finish(self, part: Part, energy: Tensor | None, score: Tensor, step: Step, variance: Tensor) -> None:
        if _native_serves(part.positions, step):
            self._native("langevin_kick", part, score, score, variance)
        else:
            part.velocities += self.kick.to(score.dtype)[:, None] * score
        part.energy, part.score = energy, score

    def _native(self, name: str, part: Part, score: Tensor, noise: Tensor, variance: Tensor) -> None:
        native(name, part.positions.dtype)(
            *part.positions.shape[:2], part.positions.data_ptr(), part.velocities.data_ptr(), score.data_ptr(),
            noise.data_ptr(), self.half_step, self.kick.data_ptr(), self.decay.data_ptr(), self.amplitude.data_ptr(),
            variance.item())

    @staticmethod
    def inflation(number: float) -> float:
        return 0.0


INTEGRATORS = {each.name: each for each in (EulerMaruyama, LeimkuhlerMatthews, Heun, Metropolis, Baoab)}


def find_integrator(name: str) -> type[EulerMaruyama]:
    """The class of that name; InputError with the names there are otherwise."""
    require(isinstance(name, str) and name in INTEGRATORS, "integrator", "one of " + ", ".join(INTEGRATORS), repr(name))
    return INTEGRATORS[name]


def _native_serves(positions: Tensor, step: Step) -> bool:
    return positions.device.type == "cpu" and not isinstance(step, Tensor) and current_backend() in ("auto", "native")


def move(
    positions: Tensor,
    score: Tensor,
    diffusion_time: Tensor,
    variance: Tensor,
    seed: int,
    first_replica: int,
    step: Step,
    domain: int = STEPS,
) -> None:
    """em_step in place.  On the CPU nothing is checked: that was done before the loop that calls this.

    Args as of the operator ``torch.ops.diffmd_fast.em_step``; positions and score contiguous and of one
    dtype.  ``domain`` separates streams of one seed.
    """
    if _native_serves(positions, step):
        # The native function itself: the operator's dispatch costs more than a step of 64 small molecules.
        address = positions.data_ptr()
        native("em_step", positions.dtype)(
            positions.shape[0],
            positions.shape[1],
            address,
            score.data_ptr(),
            diffusion_time.data_ptr(),
            diffusion_time.numel() > 1,
            variance.data_ptr(),
            variance.numel() > 1,
            seed,
            first_replica,
            step,
            domain,
            address,
            0,
            0,
            get_num_threads(),
        )
    elif isinstance(step, Tensor) and current_backend() != "reference":
        signed = seed - 2**64 if seed >= 2**63 else seed  # a schema's int is signed; the bits are the same
        stream = signed, first_replica, step, domain
        torch.ops.diffmd_fast.em_step_at_(positions, score, diffusion_time, variance, *stream)
    elif current_backend() == "reference" or domain != STEPS:
        arguments = (positions, score, diffusion_time, variance, seed, first_replica, step, domain)
        positions.copy_(em_step_core(*arguments)[0])
    else:
        stream = {"seed": seed, "first_replica": first_replica, "step": step}
        positions.copy_(em_step(positions, score, diffusion=diffusion_time, time_step=1.0, variance=variance, **stream))
