"""A case: something to check or to measure, and the ways in which it does not come to a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Wrong(AssertionError):
    """A check has failed; the message says by how much."""


class Skipped(Exception):
    """There is nothing to check or to measure here; the message says why."""


@dataclass(frozen=True)
class Case:
    """``run(device)`` does it and returns what is worth keeping, as plain JSON."""

    name: str
    run: Callable[[str], dict[str, Any]]
    sanitized: bool = False  # small enough, and worth it, to run under compute-sanitizer too
