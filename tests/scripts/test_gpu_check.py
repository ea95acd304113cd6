"""make gpu-check where there is no card: the build, the checks on CPU tensors, the watch over cases, the tables."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scripts.gpu_check import build, rows, sanitizer, table
from scripts.gpu_check.cases import Wrong
from scripts.gpu_check.checks import check_operator, error_ratio, same_bits
from scripts.gpu_check.correctness import CASES
from scripts.gpu_check.run import run_cases

from diffmd_fast import ops, reference

from .unruly_cases import CASES as UNRULY

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("SchNet: 22", "resident: 22", "resident: 64", "operators as torch", "sampler: step by step", "sampler: 80")

CHEAP_RUNS = ("resident: 5 beads, euler-maruyama, 20 steps", "sampler: lost replicas",
              "sampler: a module of the user's own")


def entry(*words, **environment):
    return subprocess.run([sys.executable, "-m", "scripts.gpu_check", *words], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **environment})


# ---- the entry ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_it_says_so_and_ends(tmp_path):
    said = entry("--out", str(tmp_path))
    assert said.returncode == 2 and said.stdout == ""
    assert said.stderr.startswith("gpu-check: torch ") and said.stderr.count("\n") == 1
    assert "without CUDA" in said.stderr or "no CUDA device" in said.stderr
    assert not (tmp_path / "gpu-check.json").exists()


@pytest.mark.slow
def test_direct_build_and_checks_on_the_cpu(tmp_path):
    """Compilers called directly, CUDA code too where nvcc is, then every check through that package's native code."""
    nvcc = build.find_nvcc()
    how = build.build(tmp_path / "package", "90", 600, by_cmake=False)
    assert how.startswith(("g++ directly", "c++ directly")) and ("for sm_90" in how) == (nvcc is not None)
    results = []
    names = [case.name for case in CASES if not case.name.startswith(SLOW)]
    run_cases("correctness", names, "cpu", tmp_path / "package", 400, results.append, patience=200)
    assert [result["case"] for result in results] == names
    assert {result["state"] for result in results} == {"done", "skipped"}, results
    info = results[0]["result"]
    assert info["simd_compiled"] == ["baseline"] and ("sm_90" in info["cuda_compiler"]) == (nvcc is not None)


@pytest.mark.slow
def test_the_whole_entry_on_the_cpu(tmp_path):
    """In the time that it is given, into which not everything fits; what there is is on disk."""
    started = time.monotonic()
    said = entry("--device", "cpu", "--out", str(tmp_path), "--seconds", "400", "--only", "benchmarks")
    assert time.monotonic() - started < 430 and said.returncode == 0, said.stderr
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert "on the CPU" in report["machine"]["card"]
    found = {case["case"]: case["result"] for case in report["benchmarks"] if case["state"] == "done"}
    assert found["copy bandwidth"]["rate"] > 0 and found["resident, fp32"]["loop"] == "loop in native code"
    assert not any(row.get("judged") for row in report["rows"])
    assert "says nothing about a GPU" in (tmp_path / "gpu-check.md").read_text()


# ---- checks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if not case.name.startswith((*SLOW, "the probe kernel"))
                                  and (not case.name.startswith(("resident", "sampler")) or case.name in CHEAP_RUNS)],
                         ids=lambda case: case.name)
def test_the_native_code_passes(case):
    case.run("cpu")


def test_checks_find_what_is_wrong(rng):
    x = torch.randn(4, 6, 3, generator=rng)
    quadruples = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]])

    def good(y):
        return ops.torsions(y, quadruples)

    def plain(y):
        return reference.torsions(y, quadruples)

    check_operator("cpu", good, plain, x)
    with pytest.raises(Wrong, match="value: rms error"):
        check_operator("cpu", lambda y: good(y) * (1 + 1e-5), plain, x)
    with pytest.raises(Wrong, match="first derivative 0: rms error"):
        check_operator("cpu", lambda y: good(y) + 1e-5 * (y - y.detach()).sum(), plain, x)
    calls = iter(range(9))
    with pytest.raises(Wrong, match="computed twice: .* numbers differ"):
        check_operator("cpu", lambda y: good(y) + 1e-7 * next(calls), plain, x)
    with pytest.raises(Wrong, match="rms error nan"):
        error_ratio("x", x * float("nan"), x, x.double())
    with pytest.raises(Wrong, match="1 of 72 numbers differ"):
        same_bits("x", torch.where(x == x[1, 2, 0], x + 1, x), x)


# ---- cases that crash, hang, or are never reached -------------------------------------------------------------


def test_one_case_costs_itself_alone(tmp_path):
    results, started = [], time.monotonic()
    run_cases("tests.scripts.unruly_cases", [case.name for case in UNRULY], "cpu", tmp_path, 60, results.append,
              patience=5)
    assert time.monotonic() - started < 60
    assert [(result["case"], result["state"]) for result in results] == [
        ("good", "done"), ("wrong", "wrong"), ("crash", "error"), ("skipped", "skipped"), ("hang", "error"),
        ("error", "error"), ("good again", "done")]
    why = {result["case"]: result.get("why") for result in results}
    assert why["wrong"] == "off by 3" and why["skipped"] == "not here" and why["error"] == "ValueError: no such thing"
    assert "ended with status -11" in why["crash"] and why["hang"].startswith("stopped after 5 s")


def test_time_that_is_over_is_said_of_every_case(tmp_path):
    results = []
    run_cases("tests.scripts.unruly_cases", ["hang", "good", "wrong"], "cpu", tmp_path, 2, results.append, patience=60)
    assert [result["state"] for result in results] == ["error", "not run", "not run"]
    assert "when the time of this part was over" in results[0]["why"] and "2 s of this part" in results[1]["why"]


def test_the_sanitizers_last_line_decides():
    cases, late = [{"case": "a", "state": "done"}], [{"case": "a", "state": "not run"}]
    clean = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
    race = ("========= COMPUTE-SANITIZER\n========= Error: Race reported between Write access at kernel+0x10\n"
            "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n")
    assert sanitizer.verdict([clean], cases) == {"state": "done", "result": {"cases": ["a"]}}
    found = sanitizer.verdict([clean, race], cases)
    assert found["state"] == "wrong" and "2 hazards" in found["why"] and "Race reported" in found["why"]
    assert sanitizer.verdict([], cases)["state"] == "not run" == sanitizer.verdict([clean], late)["state"]
    assert sanitizer.verdict([clean, "killed"], cases)["state"] == "not run"
    bad = [{"case": "a", "state": "wrong", "why": "off"}]
    assert sanitizer.verdict([clean], bad) == {"state": "error", "why": "a: off"}


# ---- rows and tables --------------------------------------------------------------------------------------------

RATES = [{"case": "copy bandwidth", "state": "done", "result": {"rate": 4e12, "seconds": 1}},
         {"case": "matrix rate, fp32", "state": "done", "result": {"rate": 5e13, "seconds": 1}}]
STEP = {"case": "em_step", "state": "done",
        "result": {"seconds": 3.2e-3, "coordinates": 10**9, "peak bytes": 4 * 10**8}}


def test_rows_are_counted_judged_and_explained():
    crashed = {"case": "resident, tf32", "state": "error", "why": "it crashed"}
    lines = rows.judge(rows.ROWS, [*RATES, STEP, crashed], "X H200")
    by_work = {line["work"].split(":")[0]: line for line in lines}
    step = by_work["em_step, 10^9 coordinates"]
    assert step["floor seconds"] == pytest.approx(3e-3) and step["measured"] == pytest.approx(3 / 3.2)
    assert step["reached"] and step["judged"] and step["eager"] == {"why": "not measured"}
    assert step["over floor"] == pytest.approx(3.2 / 3)
    resident = next(line for line in lines if line["work"].startswith("resident"))
    assert resident["measured"] is None and resident["why"] == "resident, tf32: it crashed"
    slow = rows.judge(rows.ROWS, [*RATES, {**STEP, "result": {**STEP["result"], "seconds": 4e-3}}], "X H200")
    assert not next(line for line in slow if line["work"].startswith("em_step"))["reached"]
    elsewhere = rows.judge(rows.ROWS, [*RATES, STEP], "another card")
    assert next(line for line in elsewhere if line["work"].startswith("em_step"))["judged"] is False


def test_every_row_names_cases_that_exist():
    from scripts.gpu_check.benchmarks import CASES as MEASUREMENTS

    names = {case.name for case in MEASUREMENTS}
    result = {"seconds": 2.0, "rate": 3.0, "peak bytes": 5, "edges": 7, "particles": 3, "coordinates": 11, "atoms": 5,
              "features": 4, "blocks": 2, "replicas": 3, "edges a replica": 20}
    everything = dict.fromkeys(names, result)
    for row in rows.ROWS:
        assert {row.case, row.eager or row.case, row.compiled or row.case} <= names
        assert row.value(everything) > 0 and (row.floor is None or row.floor(everything) > 0)


def test_bytes_of_spline_conv_are_those_of_its_arrays():
    found = {"atoms": 10, "edges": 40, "features": 8}
    h, x, c, lists = 4 * 10 * 8, 12 * 10, 4 * 103 * 8, 40 * 4 + 40 * 12 + 10 * 8
    forward = h + x + c + lists + h  # reads features, positions, coefficients, the list; writes messages
    backward = 2 * h + x + c + lists + h + x + c  # reads the cotangent too; writes three gradients
    assert rows.spline_bytes(found, gathered=False, coefficients=True) == forward + backward
    assert rows.spline_bytes(found, True, True) == forward + backward + 3 * 40 * 8 * 4


def test_markdown_tells_reached_from_missed():
    report = {"date": "2000-01-01", "commit": "abc", "machine": {"card": "X H200", "device": "cuda", "torch": "2"},
              "seconds": 1.0, "build": "CMake", "correctness": [{"case": "c|d", "state": "wrong", "why": "off\nby 3"}],
              "sanitizer": [{"case": "memcheck", "state": "skipped", "why": "not here"}],
              "benchmarks": [*RATES, STEP], "rows": rows.judge(rows.ROWS, [*RATES, STEP], "X H200")}
    text = table.markdown(report)
    line = next(line for line in text.splitlines() if line.startswith("| em_step"))
    assert "| 0.938 | 3 ms | 1.07 (3.2 ms) | at least 0.85 | yes | – (not measured) |  | 381 MiB |" in line
    assert "copy 4000 GB/s" in text and "**WRONG** | off by 3 |" in text and "not available | not here" in text
    assert len({row.count("|") for row in text.split("|---")[0].splitlines() if row.startswith("| ")}) == 1
