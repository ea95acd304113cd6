"""Exact answers: harmonic well, double well, the surface of Muller and Brown, temperature through the spring."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from diffmd_fast.analysis.fokker_planck import compare_relaxation, double_well_rates, muller_brown_rates
from diffmd_fast.models.analytic import DoubleWell, Harmonic, MullerBrown
from diffmd_fast.sampling import Sampler, Spring
from diffmd_fast.sampling.spring import MOLAR_GAS_CONSTANT

from .figures import order_figure
from .measure import Part, Row, measured_order, number, stationary_mean, within

THERMAL_ENERGY = MOLAR_GAS_CONSTANT * 300  # kJ/mol
MASS = 12.0  # Da
S2 = 0.01  # nm^2


# ---- harmonic well ---------------------------------------------------------------------------------


def harmonic() -> Part:
    """Variances and autocorrelation of every integrator, of about 800,000 independent coordinates each."""
    part, a = Part("Harmonic well"), 0.5
    model = Harmonic(64, standard_deviation=S2**0.5)
    for name, factor in (("euler-maruyama", 1 / (1 - a / 2)), ("leimkuhler-matthews", 1.0),
                         ("heun", (2 - a) / (2 - a + a * a / 2)), ("metropolis", 1.0), ("baoab", 1.0)):
        # Metropolis accepts replica by replica: small ones.
        atoms, replicas = (1, 262144) if name == "metropolis" else (64, 4096)
        diffusion, masses = (0.1, MASS) if name == "baoab" else (0.5, None)
        spring = Spring.from_time_step(a * S2 / diffusion, diffusion)
        sampler = Sampler(Harmonic(atoms, standard_deviation=S2**0.5), spring, integrator=name, seed=1, masses=masses)
        run = sampler.run(normal((replicas, atoms, 3), S2), 100, 100, check_every=100)
        value, error = mean_of_replicas(run.final_positions.astype(np.float64) ** 2 / S2)
        part.rows.append(within("harmonic well", f"variance/s² of {name}, D Δt/s² = {a:g}", value, error, factor,
                                relative=0.01))
        if name == "baoab":
            value, error = mean_of_replicas(run.final_velocities.astype(np.float64) ** 2 * MASS / THERMAL_ENERGY)
            exact = baoab_velocity_factor(a * S2 / diffusion, diffusion)
            part.rows.append(within("harmonic well", "variance of baoab's velocities, m/kT0", value, error, exact,
                                    relative=0.01))
    variance = S2 / (1 - a / 2)
    frames = Sampler(model, Spring.from_time_step(a * S2 / 0.5, 0.5), seed=2).run(
        normal((4096, 64, 3), variance), 6, 1, check_every=6).positions.astype(np.float64)
    for lag in (1, 2, 4):
        value, error = mean_of_replicas(frames[0] * frames[lag] / variance)
        part.rows.append(within("harmonic well", f"autocorrelation of euler-maruyama at lag {lag}", value, error,
                                (1 - a) ** lag, remark="(1 − a)ⁿ"))
    return part


def normal(shape: tuple[int, ...], variance: float) -> Tensor:
    return variance**0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(5))


def mean_of_replicas(values: np.ndarray) -> tuple[float, float]:
    """Mean of [replicas, ...] and its standard error: the replicas are independent, what is in one need not be."""
    means = values.reshape(len(values), -1).mean(1)
    return float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5)


def baoab_velocity_factor(time_step: float, diffusion: float) -> float:
    """<v^2> m/kT of the BAOAB chain in the well, from its matrices."""
    speed = THERMAL_ENERGY / MASS
    c = math.exp(-speed / diffusion * time_step)
    kick = np.array([[1, 0], [-time_step / 2 * speed / S2, 1]])
    drift = np.array([[1, time_step / 2], [0, 1]])
    step = kick @ drift @ np.diag([1.0, c]) @ drift @ kick
    added = (kick @ drift) @ np.diag([0.0, (1 - c * c) * speed]) @ (kick @ drift).T
    return solve_discrete_lyapunov(step, added)[1, 1] / speed


# ---- double well, Muller and Brown: order of the stationary error ----------------------------------

# D dt L for each; dt^2 L kT0/m for baoab, so that its steps go like the square root.
NUMBERS: dict[str, tuple[float, ...]] = {
    "euler-maruyama": (0.05, 0.1, 0.15, 0.2),
    "leimkuhler-matthews": (0.5, 0.6, 0.7, 0.8),
    "heun": (0.15, 0.2, 0.3, 0.4),
    "baoab": (0.6, 0.8, 1.0, 1.2),
    "metropolis": (0.4, 0.8),
}
# Smoother walls: larger steps are stable there, and needed for errors above the noise.
LARGER = {"leimkuhler-matthews": (0.5, 0.7, 0.9, 1.1), "baoab": (0.8, 1.0, 1.2, 1.5)}


class Surface:
    """An energy of few coordinates: starting frames drawn from a grid, and a mean that is known and measured.

    ``above``, ``over``: the functions whose means' ratio is measured (None: 1), ``exact`` what it is.
    """

    def __init__(self, name: str, quantity: str, model, curvature: float, axes: list[np.ndarray], relaxation: float,
                 n_replicas: int):
        self.name, self.quantity, self.model, self.curvature = name, quantity, model, curvature
        self.relaxation, self.n_replicas = relaxation, n_replicas
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
        self.points = torch.zeros(len(grid), 1, 3, dtype=torch.float64)
        self.points[:, 0, : len(axes)] = torch.from_numpy(grid)
        self.n_axes = len(axes)
        with torch.no_grad():
            energies = model(self.points)
        self.probability = torch.exp(-(energies - energies.min()))
        self.probability /= self.probability.sum()
        self.above, self.over = self.energy, None
        self.exact = (self.probability * energies).sum().item()

    def start(self) -> Tensor:
        """Frames [replicas, 1, 3] drawn from the grid, the coordinates beyond it from their normal distribution."""
        generator = torch.Generator().manual_seed(6)
        drawn = torch.rand(self.n_replicas, generator=generator, dtype=torch.float64)
        chosen = torch.searchsorted(torch.cumsum(self.probability, 0), drawn).clamp_max(len(self.points) - 1)
        x = self.points[chosen].float()
        shape = (self.n_replicas, 3 - self.n_axes)
        x[:, 0, self.n_axes :] = self.model.stiffness**-0.5 * torch.randn(shape, generator=generator)
        return x

    def energy(self, positions: Tensor) -> Tensor:
        """The surface's own, kT0, without the harmonic coordinates beside it."""
        flat = positions.clone()
        flat[..., self.n_axes :] = 0
        with torch.no_grad():
            return self.model(flat)


def double_well() -> Part:
    model = DoubleWell(barrier=1.5)
    end = model.half_distance * (1 + (40 / model.barrier) ** 0.5) ** 0.5
    surface = Surface("double well", "⟨E⟩, kT0", model, model.well_stiffness, [np.linspace(-end, end, 20001)], 4.0,
                      131072)
    part = Part("Double well")
    orders(part, surface, NUMBERS)
    relaxation(part, "double well", DoubleWell(barrier=3.0), double_well_rates, 1)
    return part


def muller_brown() -> Part:
    """Valleys are a hundred times softer than their walls, so means of E settle slowly and their noise would cover the
    step's error; the configurational temperature is made by the walls, and is known: 1 T0."""
    model = MullerBrown(energy_scale=0.03)
    axes = [np.linspace(-0.45, 0.3, 751), np.linspace(-0.3, 0.45, 751)]  # the rim is beyond 30 kT0
    surface = Surface("Müller–Brown", "⟨|∇E|²⟩/⟨ΔE⟩", model, muller_brown_curvature(model), axes, 10.0, 32768)
    surface.above, surface.over, surface.exact = (lambda x: derivatives(model, x)[0]), (
        lambda x: derivatives(model, x)[1]), 1.0
    part = Part("Surface of Müller and Brown")
    orders(part, surface, NUMBERS | LARGER)
    relaxation(part, "Müller–Brown", model, muller_brown_rates, 2)
    return part


def derivatives(model: MullerBrown, positions: Tensor) -> tuple[Tensor, Tensor]:
    """|grad E|^2 and the Laplacian of E in x and y, 1/nm^2, at positions [replicas, 1, 3]."""
    height, a, b, c, x0, y0 = model.terms.unbind(-1)
    x, y = (positions[:, 0, k, None].double() / model.length_scale - start for k, start in ((0, x0), (1, y0)))
    value = model.energy_scale * height * torch.exp(a * x**2 + b * x * y + c * y**2)
    along_x, along_y = 2 * a * x + b * y, b * x + 2 * c * y
    gradient = (value * along_x).sum(-1) ** 2 + (value * along_y).sum(-1) ** 2
    laplacian = (value * (along_x**2 + along_y**2 + 2 * (a + c))).sum(-1)
    return gradient / model.length_scale**2, laplacian / model.length_scale**2


def muller_brown_curvature(model: MullerBrown) -> float:
    """Largest curvature at the deepest minimum, 1/nm^2."""
    x = torch.tensor([[[-0.0558, 0.1442, 0.0]]], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda y: model(y.reshape(1, 1, 3)).sum(), x.flatten())
    return torch.linalg.eigvalsh(hessian)[-1].item()


def orders(part: Part, surface: Surface, numbers_of: dict[str, tuple[float, ...]]) -> None:
    """Error of the surface's mean at several steps, and its slope in log-log, for every integrator."""
    exact, start, lines = surface.exact, surface.start(), {}
    for name, numbers in numbers_of.items():
        found = [stationary_error(surface, start, name, value) for value in numbers]
        steps, errors, standard_errors = (list(column) for column in zip(*found))
        lines[name] = (steps, errors, standard_errors)
        if name == "metropolis":
            for value, error, standard in zip(numbers, errors, standard_errors):
                quantity = f"{surface.quantity} of metropolis, D Δt L = {value:g}"
                part.rows.append(within(surface.name, quantity, exact + error, standard, exact))
            continue
        slope, error = measured_order(steps, errors, standard_errors)
        first = name == "euler-maruyama"
        shown = ", ".join(f"{e:+.4f}" for e in errors)
        sizes = f"{'Δt² L kT0/m' if name == 'baoab' else 'D Δt L'} = {', '.join(map(str, numbers))}"
        quantity = f"order of the error of {surface.quantity} with {name}"
        part.rows.append(Row(surface.name, quantity, number(slope, error),
                             "1.0 ± 0.2" if first else "at least 1.8", 0.8 <= slope <= 1.2 if first else slope >= 1.8,
                             f"errors {shown} (each ± {max(standard_errors):.4f}) at {sizes}"))
    caption = (f"{surface.name}: error of {surface.quantity} against the time step, each in units of its integrator's "
               "largest; lines are the fitted orders.")
    part.pictures.append((order_figure(surface.name, surface.quantity, lines), caption))


def stationary_error(surface: Surface, start: Tensor, name: str, value: float) -> tuple[float, ...]:
    """(time step, error of the mean, standard error) at one step."""
    L, masses, diffusion = surface.curvature, None, 1.0
    if name == "baoab":  # friction omega: critically slow neither way
        speed, masses = THERMAL_ENERGY / MASS, MASS
        time_step, diffusion = math.sqrt(value / (L * speed)), math.sqrt(speed / L)
        per_relaxation = 2 / math.sqrt(value)
    else:
        time_step, per_relaxation = value / L, 1 / value
    n_steps = int(20 * surface.relaxation * per_relaxation)
    every = max(1, int(0.5 * per_relaxation))
    sampler = Sampler(surface.model, Spring.from_time_step(time_step, diffusion), integrator=name, masses=masses,
                      seed=7, force=True)
    mean, error = stationary_mean(sampler, start, surface.above, n_steps, n_steps // 5, every, surface.over)
    print(f"   {surface.name}, {name} at {value:g}: {mean - surface.exact:+.5f} +- {error:.5f}", flush=True)
    return time_step, mean - surface.exact, error


def relaxation(part: Part, system: str, model, rates_of, n_axes: int) -> None:
    """The slowest relaxation time of a run against the eigenvalue of the Fokker-Planck operator."""
    diffusion = 0.01
    rates = rates_of(model, diffusion)
    curvature = model.well_stiffness if n_axes == 1 else muller_brown_curvature(model)
    time_step = 0.04 / (curvature * diffusion)  # the step's own effect is of order D dt L
    every = max(1, int(rates.times[0] / 40 / time_step))
    n_steps = int(30 * rates.times[0] / time_step) // every * every
    start = torch.zeros(2048, 1, 3)
    start[:, 0, : n_axes] = torch.tensor([model.half_distance] if n_axes == 1 else [-0.0558, 0.1442])
    frames = Sampler(model, Spring.from_time_step(time_step, diffusion), seed=8).run(
        start, n_steps, every, check_every=n_steps).positions[:, :, 0, :n_axes]
    settled = frames[len(frames) // 12 :]
    series = [settled[:, r, 0] if n_axes == 1 else settled[:, r] for r in range(settled.shape[1])]
    found = compare_relaxation(series, rates, every * time_step)
    good = abs(found.relative_deviation) <= 0.03 and found.reliable
    part.rows.append(Row(system, "slowest relaxation time, ps", number(found.time, found.error),
                         f"{found.exact:.4g} (Fokker–Planck operator) within 3%", good,
                         f"{100 * found.relative_deviation:+.2f} ± {100 * found.relative_error:.2f} %"))


# ---- temperature through the spring ----------------------------------------------------------------


def temperature() -> Part:
    """The double well at other temperatures than the energy's: what the noise's factor does."""
    model, part = DoubleWell(barrier=3.0), Part("Temperature through the spring: double well")
    end = model.half_distance * (1 + (80 / model.barrier) ** 0.5) ** 0.5
    u = np.linspace(-end, end, 40001) / model.half_distance
    start = torch.zeros(65536, 1, 3)
    start[:32768, 0, 0], start[32768:, 0, 0] = model.half_distance, -model.half_distance
    for ratio in (0.8, 1.25, 1.5):
        weights = np.exp(-model.barrier * (u * u - 1) ** 2 / ratio)
        exact = weights[np.abs(u) < 0.5].sum() / weights.sum()
        for name in ("leimkuhler-matthews", "metropolis"):
            sampler = Sampler(model, Spring.from_time_step(0.2 / model.well_stiffness, 1.0), temperature=300 * ratio,
                              integrator=name, seed=9)
            value, error = stationary_mean(
                sampler, start, lambda x: (x[:, 0, 0].abs() < 0.5 * model.half_distance).double(), 1500, 300, 5)
            part.rows.append(within("double well", f"share on the barrier (|x| < a/2) at {ratio:g} T0, {name}", value,
                                    error, float(exact)))
    return part
