"""Sine and cosine of 20 torsions of 256 molecules, and the gradient of their gradient."""

import torch

from diffmd_fast import ops, use_backend

from .common import ALL, BACKENDS, molecule, pin, speedup


class Torsions:
    params = [BACKENDS]
    param_names = ["backend"]

    def setup(self, backend):
        pin()
        self.x = molecule(256, ALL).requires_grad_()
        self.quadruples = torch.arange(ALL - 3)[:, None] + torch.arange(4)

    def double_backward(self):
        angles = ops.torsions(self.x, self.quadruples)
        (gradient,) = torch.autograd.grad(angles.square().sum() + angles.sum(), self.x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), self.x)

    def time_forward(self, backend):
        with use_backend(backend), torch.no_grad():
            ops.torsions(self.x, self.quadruples)

    def time_double_backward(self, backend):
        with use_backend(backend):
            self.double_backward()


def track_speedup_double_backward():
    case = Torsions()
    case.setup("auto")
    return speedup(case.double_backward)


track_speedup_double_backward.unit = "reference/native"
