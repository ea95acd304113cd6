"""One spring-tied step of 10^6 coordinates."""

import statistics
import time

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


def ratio(numerator, denominator, repeats: int = 9) -> float:
    """Time of one call over that of the other, medians of alternating calls."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + 1):
        for call, taken in zip((numerator, denominator), seconds):
            started = time.perf_counter()
            call()
            if i:  # the first round warms up
                taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


class InPlace:
    """10^7 coordinates, one thread: our step in place, the best form in torch, and a pass over the same memory."""

    def __init__(self):
        pin()
        self.x, self.score = torch.randn(333334, 10, 3), torch.randn(333334, 10, 3)
        self.noise = torch.empty_like(self.x)

    def ours(self):
        ops.em_step(self.x, self.score, diffusion=0.001, time_step=1e-3, seed=1, out=self.x)

    def plain(self):
        self.noise.normal_()
        self.x.add_(self.score, alpha=1e-6).add_(self.noise, alpha=1e-3)

    def copy(self):
        """Reads 8 bytes and writes 4 for each coordinate, as the step does."""
        torch.add(self.x, self.score, out=self.noise)


def track_ratio_to_plain_torch():
    """In-place torch step (normal_, add_, add_) over ours, 10^7 coordinates, one thread."""
    case = InPlace()
    return ratio(case.plain, case.ours)


track_ratio_to_plain_torch.unit = "torch/native"


def track_ratio_to_copy():
    """Ours over a pass that reads and writes the same bytes, 10^7 coordinates, one thread."""
    case = InPlace()
    return ratio(case.ours, case.copy)


track_ratio_to_copy.unit = "native/copy"
