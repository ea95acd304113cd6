"""What the machine gives in the very run whose figures are quoted: the two numbers that every floor is made of."""

import torch

from .common import median_seconds, pin


def track_copy_bandwidth():
    """Two arrays read and one written, 120 MB in all, one thread: the traffic of em_step, without its arithmetic."""
    pin()
    x, y, z = (torch.randn(10_000_000) for _ in range(3))
    return 12 * x.numel() / median_seconds(lambda: torch.add(x, y, out=z), 15) / 1e9


def track_matrix_rate():
    """torch.mm of [1408, 64] with [64, 64] in float32, one thread: the layers of 64 molecules of 22 atoms."""
    pin()
    a, b = torch.randn(1408, 64), torch.randn(64, 64)
    out = torch.empty(1408, 64)
    return 2 * a.numel() * 64 / median_seconds(lambda: torch.mm(a, b, out=out), 200) / 1e9


track_copy_bandwidth.unit, track_matrix_rate.unit = "GB/s", "GFLOP/s"
