"""Energy and score of whole molecules, and one training step."""

import torch

from diffmd_fast import use_backend
from diffmd_fast.training import denoising_loss, draw_noise_levels
from diffmd_fast.training.denoising import draw_noise

from .common import ALL, BACKENDS, HEAVY, median_seconds, molecule, pin, schnet, speedup


class EnergyAndScore:
    params = [BACKENDS, [HEAVY, ALL], [1, 16, 256]]
    param_names = ["backend", "atoms", "molecules"]

    def setup(self, backend, atoms, molecules):
        pin()
        self.model, self.x = schnet(atoms), molecule(molecules, atoms)

    def time_energy_and_score(self, backend, atoms, molecules):
        with use_backend(backend):
            self.model.energy_and_score(self.x)


def track_evaluations_per_cpu_second(atoms, molecules):
    pin()
    model, x = schnet(atoms), molecule(molecules, atoms)
    return molecules / median_seconds(lambda: model.energy_and_score(x))


def track_speedup_energy_and_score(atoms, molecules):
    pin()
    model, x = schnet(atoms), molecule(molecules, atoms)
    return speedup(lambda: model.energy_and_score(x), 5)


for track in (track_evaluations_per_cpu_second, track_speedup_energy_and_score):
    track.params, track.param_names = [[HEAVY, ALL], [1, 16, 256]], ["atoms", "molecules"]
track_evaluations_per_cpu_second.unit = "1/s"
track_speedup_energy_and_score.unit = "reference/native"


def track_speedup_over_compiled_reference(molecules):
    """The reference under torch.compile (graph breaks allowed, forward and backward compiled) over ours, 22 atoms."""
    pin()
    model, x = schnet(ALL).requires_grad_(False), molecule(molecules, ALL)
    noise = torch.full((molecules,), model.noise_level)

    def compiled_call():
        moving = x.detach().requires_grad_()
        energy = compiled(moving, noise)
        (gradient,) = torch.autograd.grad(energy.sum(), moving)
        return energy.detach(), -gradient

    with use_backend("reference"):  # a compiled function keeps the backend that it was compiled under
        compiled = torch.compile(model)
        score = compiled_call()[1]
        compiled_seconds = median_seconds(compiled_call, 15)
    torch.testing.assert_close(score, model.score(x), rtol=1e-2, atol=1e-2 * score.abs().max().item())
    return compiled_seconds / median_seconds(lambda: model.energy_and_score(x), 31)


track_speedup_over_compiled_reference.params = [1, 16, 256]
track_speedup_over_compiled_reference.param_names = ["molecules"]
track_speedup_over_compiled_reference.unit = "compiled reference/native"
track_speedup_over_compiled_reference.timeout = 900  # compiling takes minutes


class TrainingStep:
    """Loss of 256 noised molecules and its gradient with respect to the parameters, two threads."""

    params = [BACKENDS, [HEAVY, ALL]]
    param_names = ["backend", "atoms"]
    threads = 2

    def setup(self, backend, atoms):
        pin(self.threads)
        generator = torch.Generator().manual_seed(0)
        self.model, self.x = schnet(atoms), molecule(256, atoms)
        self.noise = draw_noise(self.x.shape, generator)
        self.levels = draw_noise_levels(256, (0.002, 0.5), generator)

    def step(self):
        self.model.zero_grad()
        denoising_loss(self.model, self.x, self.noise, self.levels).mean().backward()

    def time_training_step(self, backend, atoms):
        with use_backend(backend):
            self.step()


def track_speedup_training_step(atoms):
    case = TrainingStep()
    case.setup("auto", atoms)
    return speedup(case.step, 3)


track_speedup_training_step.params, track_speedup_training_step.param_names = [HEAVY, ALL], ["atoms"]
track_speedup_training_step.unit = "reference/native"
