"""Times and ceilings: CUDA events, the L2 flushed, medians; what a copy and a matrix product reach on this card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

REPEATS = 20


def clock(call: Callable[[], Any], device: str) -> float:
    """Seconds of one call, its work on the device included: events on the current stream, or on a CPU the clock."""
    if device == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def median_seconds(call: Callable[[], Any], device: str, repeats: int = REPEATS, seconds: float = 3.0,
                   warm_up: int = 3) -> dict[str, float]:
    """Median, quartiles and number of calls; the L2 holds nothing of theirs when one begins.

    At most ``repeats`` calls and about ``seconds`` in all, at least three.
    """
    flush = torch.empty(cache_bytes() // 4, dtype=torch.int32, device=device) if device == "cuda" else None
    for _ in range(warm_up):
        call()
    taken: list[float] = []
    while len(taken) < 3 or (len(taken) < repeats and sum(taken) < seconds):
        if flush is not None:
            flush.zero_()  # queued before the first event: the call's launches are then waiting when it ends
        taken.append(clock(call, device))
    low, middle, high = statistics.quantiles(taken, n=4)
    return {"seconds": middle, "lower quartile": low, "upper quartile": high, "calls": len(taken)}


def seconds_per_step(run: Callable[[int], Any], device: str, seconds: float = 0.5) -> dict[str, float]:
    """Of a run of many steps, without what comes before the first: the slope between n and 4 n steps, median of three.

    n is chosen so that n steps take about a quarter of ``seconds`` or more.
    """
    def taken(n: int) -> float:
        return clock(lambda: run(n), device)

    run(4)
    n = 4
    while taken(n) < seconds / 4 and n < 2**20:
        n *= 4
    slopes, starts = [], []
    for _ in range(3):
        short, long = taken(n), taken(4 * n)
        slopes.append((long - short) / (3 * n))
        starts.append(short - n * slopes[-1])
    return {"seconds": statistics.median(slopes), "lower quartile": min(slopes), "upper quartile": max(slopes),
            "before the first step": statistics.median(starts), "steps": 4 * n}


def cache_bytes() -> int:
    """Four times the card's L2."""
    return 4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def peak_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Memory of torch's allocator that ``call`` took at its peak, beyond what was held before."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_bandwidth(device: str) -> dict[str, Any]:
    """Bytes read and written a second, of a copy between two large arrays of random numbers."""
    n = 2**28 if device == "cuda" else 2**23
    source = torch.randn(n, device=device)
    target = torch.empty_like(source)
    found = median_seconds(lambda: target.copy_(source), device)
    return found | {"rate": 2 * source.nbytes / found["seconds"], "bytes": 2 * source.nbytes}


def matrix_rate(precision: str):
    """Operations a second of a square product of random numbers; "highest" is float32, "high" allows tf32."""
    def run(device: str) -> dict[str, Any]:
        n = 8192 if device == "cuda" else 512
        before = torch.get_float32_matmul_precision()
        a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
        torch.set_float32_matmul_precision(precision)
        try:
            found = median_seconds(lambda: a @ b, device, repeats=10, seconds=1.0)
        finally:
            torch.set_float32_matmul_precision(before)
        return found | {"rate": 2 * n**3 / found["seconds"], "size": n}
    return run
