"""Neighbor lists: many small molecules, and one periodic fluid."""

import torch

from diffmd_fast import ops, use_backend

from .common import ALL, BACKENDS, molecule, pin, speedup


def fluid(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n particles at reduced density 0.8 in a cubic box."""
    length = (n / 0.8) ** (1 / 3)
    return length * torch.rand(1, n, 3, generator=torch.Generator().manual_seed(1)), torch.full((3,), length)


class Molecules:
    params = [BACKENDS]
    param_names = ["backend"]

    def setup(self, backend):
        pin()
        self.x = molecule(256, ALL)

    def time_256_molecules_with_distances(self, backend):
        with use_backend(backend):
            ops.neighbor_list(self.x, 0.5, return_distances=True)


class Fluid:
    params = [BACKENDS, [1000, 8000]]
    param_names = ["backend", "particles"]

    def setup(self, backend, particles):
        pin()
        self.x, self.box = fluid(particles)

    def time_periodic_with_distances(self, backend, particles):
        with use_backend(backend):
            ops.neighbor_list(self.x, 2.5, box=self.box, return_distances=True)


def track_speedup_molecules():
    pin()
    x = molecule(256, ALL)
    return speedup(lambda: ops.neighbor_list(x, 0.5, return_distances=True))


def track_speedup_fluid_1000():
    pin()
    x, box = fluid(1000)
    return speedup(lambda: ops.neighbor_list(x, 2.5, box=box, return_distances=True), 3)


track_speedup_molecules.unit = track_speedup_fluid_1000.unit = "reference/native"
