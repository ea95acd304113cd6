"""Filter convolution of 256 molecules, all pairs, 64 features: forward, gradient, gradient of the gradient."""

import torch

from diffmd_fast import ops, use_backend

from .common import ALL, BACKENDS, HEAVY, molecule, pin, speedup


class SplineConv:
    params = [BACKENDS, [HEAVY, ALL]]
    param_names = ["backend", "atoms"]

    def setup(self, backend, atoms):
        pin()
        self.x = molecule(256, atoms).requires_grad_()
        self.h = torch.randn(256, atoms, 64, requires_grad=True)
        self.coefficients = torch.randn(103, 64, requires_grad=True)
        self.neighbors = ops.neighbor_list(self.x.detach(), None)

    def forward(self):
        return ops.spline_conv(self.h, self.x, self.coefficients, self.neighbors, 1.0)

    def backward(self):
        return torch.autograd.grad(self.forward().square().sum(), (self.x, self.h, self.coefficients))

    def double_backward(self):
        (gradient,) = torch.autograd.grad(self.forward().square().sum(), self.x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (self.h, self.coefficients))

    def time_forward(self, backend, atoms):
        with use_backend(backend), torch.no_grad():
            self.forward()

    def time_backward(self, backend, atoms):
        with use_backend(backend):
            self.backward()

    def time_double_backward(self, backend, atoms):
        with use_backend(backend):
            self.double_backward()


def track_speedup(pass_name):
    case = SplineConv()
    case.setup("auto", ALL)
    return speedup(getattr(case, pass_name), 3)


track_speedup.params = ["forward", "backward", "double_backward"]
track_speedup.param_names = ["pass"]
track_speedup.unit = "reference/native"
