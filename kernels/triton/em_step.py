"""One spring-tied denoising step on a GPU; the same step as csrc/em_step.cpp, which documents it."""

import torch
import triton
import triton.language as tl

from .arithmetic import exact_sqrt
from .philox import counter_arguments, philox_normals, signed32
from .tuning import tuned

BLOCK = 256  # sites (a site is an atom of a replica) of one program
# No fused multiply-adds: every result is then the one that the interpreter and csrc/em_step.cpp give, bit for bit, so
# what is proven without a GPU holds on one.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


# Counters change with every call and must not make new kernels, hence do_not_specialize.
@triton.jit(do_not_specialize=["n_sites", "n_atoms", "first_replica", "seed_low", "seed_high", "step_low",
                               "step_high_and_domain"])
def em_step_kernel(positions, score, diffusion_time, variance, new_positions, noise, n_sites, n_atoms, first_replica,
                   seed_low, seed_high, step_low, step_high_and_domain, clock, DIFFUSION_PER_ATOM: tl.constexpr,
                   VARIANCE_PER_REPLICA: tl.constexpr, WITH_NOISE: tl.constexpr, WIDE: tl.constexpr,
                   BLOCK: tl.constexpr):
    """Arrays and their units as in csrc/em_step.hpp; WIDE when sites must be counted in 64 bits.

    ``clock``, where there is one, is where the step is read, int64: the arguments then have the domain alone.
    """
    DTYPE: tl.constexpr = positions.dtype.element_ty
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    site = block * BLOCK + tl.arange(0, BLOCK)
    inside = site < n_sites
    replica = site // n_atoms
    atom = site % n_atoms
    if DIFFUSION_PER_ATOM:
        d = tl.load(diffusion_time + atom, mask=inside, other=0.0)
    else:
        d = tl.load(diffusion_time)
    if VARIANCE_PER_REPLICA:
        v = tl.load(variance + replica, mask=inside, other=0.0)
    else:
        v = tl.load(variance)
    drift = d.to(DTYPE)
    amplitude = exact_sqrt(2.0 * d * v).to(DTYPE)
    low = step_low.to(tl.uint32, bitcast=True)
    high = step_high_and_domain.to(tl.uint32, bitcast=True)
    if clock is not None:
        step = tl.load(clock)
        low = step.to(tl.uint32)
        high = high | (step >> 32).to(tl.uint32)
    xi = philox_normals(atom.to(tl.uint32), replica.to(tl.uint32) + first_replica.to(tl.uint32, bitcast=True),
                        seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True), low, high, DTYPE)
    for component in tl.static_range(3):
        at = 3 * site.to(tl.int64) + component
        x = tl.load(positions + at, mask=inside)
        s = tl.load(score + at, mask=inside)
        tl.store(new_positions + at, x + (drift * s + amplitude * xi[component]), mask=inside)
        if WITH_NOISE:
            tl.store(noise + at, xi[component], mask=inside)


def em_step(positions: torch.Tensor, score: torch.Tensor, diffusion_time: torch.Tensor, variance: torch.Tensor,
            seed: int, first_replica: int, step: int | torch.Tensor, domain: int = 0, *, with_noise: bool = True,
            wide: bool | None = None, moved: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(new positions, noise), both [replicas, atoms, 3]; the noise is empty unless ``with_noise``.

    Arguments are checked by ops/em_step.py.  ``step``: an integer, or int64 [1], which the host does not look at.
    ``wide`` None counts sites in 64 bits only where 32 are too few.  ``moved``: where to write, contiguous
    ``positions`` themselves included, as a lane reads its atom before it writes it.
    """
    positions, score = positions.contiguous(), score.contiguous()
    moved = torch.empty_like(positions) if moved is None else moved
    clock, number = (step, 0) if isinstance(step, torch.Tensor) else (None, step)
    noise = torch.empty_like(positions) if with_noise else positions.new_empty(0)
    n_replicas, n_atoms, _ = positions.shape
    n_sites = n_replicas * n_atoms
    if n_sites == 0:
        return moved, noise
    launch = {"BLOCK": BLOCK, **LAUNCH, **tuned("em_step", str(positions.dtype), positions.device)}
    if wide is None:
        wide = n_sites + launch["BLOCK"] >= 2**31
    with torch.cuda.device_of(positions):  # Triton launches on the current device
        em_step_kernel[triton.cdiv(n_sites, launch["BLOCK"]),](
            positions, score, diffusion_time, variance, moved, noise, n_sites, n_atoms, signed32(first_replica),
            *counter_arguments(seed, number, domain), clock, DIFFUSION_PER_ATOM=diffusion_time.numel() > 1,
            VARIANCE_PER_REPLICA=variance.numel() > 1, WITH_NOISE=with_noise, WIDE=wide, **launch)
    return moved, noise
