"""Which implementation runs: the switch, its errors, and what a fallback says."""

import contextvars
import importlib
import sys
import warnings

import pytest
import torch

from diffmd_fast import _C, InputError, UnavailableError, backend, current_backend, ops, use_backend
from diffmd_fast.backend import run_reference, unavailable
from diffmd_fast.ops._library import cuda_kernel

ARGUMENTS = dict(diffusion=0.002, time_step=1e-3, seed=7, step=5)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(40, 50, 3, generator=generator) for _ in range(2)]


def test_unknown_backend():
    with pytest.raises(InputError, match="^backend: expected one of auto, reference, .*, got 'gpu'$"):
        use_backend("gpu")
    assert current_backend() == "auto"


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_unavailable_backend_says_why(name):
    reason = unavailable(name)
    if reason is None:
        pytest.skip(f"{name} can run here")
    with pytest.raises(UnavailableError) as error:
        use_backend(name)
    assert str(error.value) == f"backend: {name!r} cannot run here: {reason}" and "\n" not in reason
    assert current_backend() == "auto"


def test_reasons():
    assert [unavailable(name) for name in ("auto", "reference", "native")] == [None] * 3
    reason, here = unavailable("cuda"), _C.cuda_probe() or "it can"
    assert reason.startswith("no operator has a CUDA kernel; ")
    assert reason.endswith(f'The sampler\'s loop has one, which "auto" chooses where it can run (here: {here})')
    if not torch.cuda.is_available() and torch.version.cuda is None:
        assert unavailable("triton") is None or f"torch {torch.__version__} is a CPU build" in unavailable("triton")


def test_context_manager_restores():
    with use_backend("reference"):
        assert current_backend() == "reference"
        with use_backend("native"):
            assert current_backend() == "native"
        assert current_backend() == "reference"
    with pytest.raises(ZeroDivisionError), use_backend("native"):
        raise ZeroDivisionError
    assert current_backend() == "auto"


def test_a_call_lasts():
    def program():
        use_backend("reference")
        return current_backend(), run_reference("cpu", "em_step")

    assert contextvars.copy_context().run(program) == ("reference", True)
    assert current_backend() == "auto"  # the context of `program` ended with it


def test_reference_and_native_agree():
    results = {}
    for name in ("auto", "native", "reference"):
        with use_backend(name):
            results[name] = ops.em_step(*inputs(), **ARGUMENTS, return_noise=True)
    assert torch.equal(results["auto"].noise, results["native"].noise)
    assert not torch.equal(results["native"].noise, results["reference"].noise)  # two implementations did run
    for name in ("positions", "noise"):
        torch.testing.assert_close(getattr(results["native"], name), getattr(results["reference"], name),
                                   rtol=1e-5, atol=1e-5)


def test_native_is_for_cpu_tensors():
    with use_backend("native"), pytest.raises(InputError, match="^backend: expected CPU tensors for em_step"):
        run_reference("cuda", "em_step")


def test_fallback_says_once_why(monkeypatch):
    monkeypatch.setattr(backend, "_said", set())
    with pytest.warns(UserWarning, match="em_step: no mps kernel in this version; running the plain PyTorch reference"):
        assert run_reference("mps", "em_step")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_reference("mps", "em_step")


def test_switch_is_no_break_in_a_compiled_graph():
    def program(x, s):
        return 2 * ops.em_step(x, s, **ARGUMENTS)

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs()), program(*inputs()))


@pytest.mark.skipif(unavailable("triton") is None, reason="Triton runs here, so CUDA tensors do not fall back")
def test_cuda_tensors_fall_back_to_the_reference(monkeypatch):
    """The kernel registered for CUDA tensors, given CPU tensors since no others exist here."""
    monkeypatch.setattr(backend, "_said", set())
    module = importlib.import_module("diffmd_fast.ops.em_step")
    kernel = cuda_kernel("em_step", module._triton, module._other)
    positions, score = inputs()
    one = torch.ones(1, dtype=torch.float64)
    with pytest.warns(UserWarning, match="em_step: torch .*; running the plain PyTorch reference"):
        moved, noise, log_density = kernel(positions, score, one, one, 7, 0, 5, True, True)
    with pytest.raises(UnavailableError, match="em_step: no kernel for CUDA tensors: torch "):
        cuda_kernel("em_step", module._triton, None)(positions, score)
    with use_backend("reference"):
        want = ops.em_step(positions, score, diffusion=1.0, time_step=1.0, seed=7, step=5, return_noise=True,
                           return_log_density=True)
    assert torch.equal(moved, want.positions) and torch.equal(noise, want.noise)
    assert torch.equal(log_density, want.log_density)


def test_without_triton_the_reason_names_it(monkeypatch):
    """On a machine with a GPU but no Triton; the GPU is pretended, the missing import is Python's own."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    for module in [m for m in sys.modules if m.startswith("diffmd_fast.kernels.triton")]:
        monkeypatch.delitem(sys.modules, module)
    assert backend._no_triton.__wrapped__().startswith("Triton cannot be imported (")
