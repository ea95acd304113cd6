"""The fuzz targets do not rot, and a run of them notices what it must.  The long runs are `make fuzz`."""

import sys

import pytest

from . import broken
from .runner import run_case, supervise
from .targets import TARGETS

CASES = 12


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_cases_of(target):
    for seed in range(CASES):
        outcome, text = run_case(target, TARGETS[target], seed)
        assert outcome in ("served", "refused"), text


def test_a_seed_is_a_case():
    first, again = (run_case("torsions", TARGETS["torsions"], 5) for _ in range(2))
    assert first == again and "torsions seed 5: " in first[1]


def test_what_goes_wrong_is_noticed_and_named(capfd):
    """One process for the first five targets, which the fifth kills, and one for the last, which is killed."""
    command = [sys.executable, "-m", "tests.fuzz", "--table", "tests.fuzz.broken", "--cases", "1", "--worker"]
    summary = supervise(broken.TARGETS, 0, 1, 120.0, command, patience=3.0)
    outcomes = {target: next(iter(counts)) for target, counts in summary.counts.items()}
    assert outcomes == {"served": "served", "refused": "refused", "valid_refused": "failed",
                        "wrong_exception": "failed", "crashes": "crashed", "hangs": "hung"}
    assert summary.bad == [("valid_refused", 0, "failed"), ("wrong_exception", 0, "failed"), ("crashes", 0, "crashed"),
                           ("hangs", 0, "hung")]
    report = capfd.readouterr().err
    assert "IndexError" in report and "valid arguments were refused" in report
