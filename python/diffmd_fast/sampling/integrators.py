"""Rules that move positions by one step, by name; the run's state is not theirs."""

from __future__ import annotations

from torch import Tensor

from ..backend import current_backend
from ..errors import require
from ..ops import em_step, get_num_threads
from ..ops._library import native
from ..reference.em_step import em_step_core

STEPS, REVERSE_DIFFUSION = 0, 1  # domains of the noise: separate streams of one seed


class EulerMaruyama:
    """x' = x + D dt s(x) + sqrt(2 D dt v) xi: one spring-tied denoising step (docs/theory.md section 1).

    Args:
        diffusion_time: D dt in nm^2, float64 [1] or [atoms], on the positions' device.
        variance: v = T/T0, float64 [1].
        seed: 0 .. 2^64 - 1.
    """

    name = "euler-maruyama"
    resident = True  # csrc/resident_sampler.cpp has it

    def __init__(self, diffusion_time: Tensor, variance: Tensor, seed: int):
        self.diffusion_time, self.variance, self.seed = diffusion_time, variance, seed

    def step(self, positions: Tensor, score: Tensor, first_replica: int, step: int) -> None:
        """Advance ``positions`` [replicas, atoms, 3] in place from ``step`` to ``step + 1``."""
        move(positions, score, self.diffusion_time, self.variance, self.seed, first_replica, step)


INTEGRATORS = {EulerMaruyama.name: EulerMaruyama}


def find_integrator(name: str):
    """The class of that name; InputError with the names there are otherwise."""
    require(name in INTEGRATORS, "integrator", "one of " + ", ".join(INTEGRATORS), repr(name))
    return INTEGRATORS[name]


def move(
    positions: Tensor,
    score: Tensor,
    diffusion_time: Tensor,
    variance: Tensor,
    seed: int,
    first_replica: int,
    step: int,
    domain: int = STEPS,
) -> None:
    """em_step in place.  On the CPU nothing is checked: that was done before the loop that calls this.

    Args as of the operator ``torch.ops.diffmd_fast.em_step``; positions and score contiguous and of one
    dtype.  ``domain`` separates streams of one seed.
    """
    backend, on_cpu = current_backend(), positions.device.type == "cpu"
    if on_cpu and backend in ("auto", "native"):
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
    elif backend == "reference" or domain != STEPS:
        arguments = (positions, score, diffusion_time, variance, seed, first_replica, step, domain)
        positions.copy_(em_step_core(*arguments)[0])
    else:
        stream = {"seed": seed, "first_replica": first_replica, "step": step}
        positions.copy_(em_step(positions, score, diffusion=diffusion_time, time_step=1.0, variance=variance, **stream))
