"""Fixtures shared by all tests.  Reference data beside the project is optional: users do not have it."""

import signal
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """../shared/data; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("reference data ../shared/data is not on this machine")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A shell's background job ignores Ctrl-C, and so would the runs in it that tests stop that way."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator: every test draws the same numbers each time."""
    return torch.Generator().manual_seed(20251117)
