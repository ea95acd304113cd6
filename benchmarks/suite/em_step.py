"""One spring-tied step of 10^6 coordinates."""

import torch

from diffmd_fast import ops, use_backend

from .common import BACKENDS, pin, speedup


class EmStep:
    params = [BACKENDS]
    param_names = ["backend"]

    def setup(self, backend):
        pin()
        self.x = torch.randn(33334, 10, 3)
        self.score = torch.randn_like(self.x)

    def step(self):
        ops.em_step(self.x, self.score, diffusion=0.002, time_step=1e-3, seed=1, step=5)

    def time_em_step(self, backend):
        with use_backend(backend):
            self.step()


def track_speedup_em_step():
    case = EmStep()
    case.setup("auto")
    return speedup(case.step)


track_speedup_em_step.unit = "reference/native"


def track_ratio_to_plain_torch():
    """In-place torch step (normal_, add_, add_) over ours, 10^7 coordinates, one thread."""
    from .common import median_seconds

    pin()
    x, score = torch.randn(333334, 10, 3), torch.randn(333334, 10, 3)
    noise = torch.empty_like(x)

    def plain():
        noise.normal_()
        x.add_(score, alpha=1e-6).add_(noise, alpha=1e-3)

    ours = median_seconds(lambda: ops.em_step(x, score, diffusion=0.001, time_step=1e-3, seed=1), 5)
    return median_seconds(plain, 5) / ours


track_ratio_to_plain_torch.unit = "torch/native"
