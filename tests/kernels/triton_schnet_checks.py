"""SchNet on the Triton kernels, all of them together: score, and the gradient of a denoising loss."""

import torch

from diffmd_fast import use_backend
from diffmd_fast.training.denoising import denoising_loss

from ..models.test_schnet import chain_positions, make
from .common import DEVICE


def results(model, positions, backend):
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(positions.shape, generator=generator, dtype=torch.float64).to(DEVICE)
    level = torch.full(positions.shape[:1], 0.01, dtype=torch.float64, device=DEVICE)
    model.zero_grad()
    with use_backend(backend):
        energy, score = model.energy_and_score(positions)
        denoising_loss(model, positions, noise, level).sum().backward()
    return [energy, score, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_score_and_training_gradient_equal_the_reference():
    model, positions = make(n_features=8, n_blocks=1).to(DEVICE), chain_positions(1).to(DEVICE)
    got, want = results(model, positions, "triton"), results(model, positions, "reference")
    assert len(got) == len(want) > 10 and all(bool(t.any()) for t in want)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * b.abs().max().item())
