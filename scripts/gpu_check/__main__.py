"""Build, check, sanitize, measure, and write both tables after every case; see the package's docstring.

    python3 -m scripts.gpu_check [--device cuda|cpu] [--out FOLDER] [--seconds 470] [--only PART ...]

Exit status: 0, 1 where a check failed or could not be run to its end, 2 where this machine has nothing to check on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import ROOT
from .build import BuildError, build
from .run import environment, run_cases
from .sanitizer import sanitize
from .table import markdown

PARTS = ("correctness", "sanitizer", "benchmarks")
# Seconds that each part may take, at most; what one does not use is left to the benchmarks.
LIMITS = {"build": 150, "correctness": 140, "sanitizer": 90, "benchmarks": 470}
PATIENCE = {"correctness": 60, "benchmarks": 120}  # for one case; torch.compile has to fit


class Report:
    """What is known so far, on disk after every addition."""

    def __init__(self, out: Path, machine: dict[str, Any], started: float):
        self.out, self.started = out, started
        self.content: dict[str, Any] = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "commit": _commit(), "machine": machine,
            "seconds": 0.0, "build": "not built", "rows": [], **{part: [] for part in PARTS}}

    def add(self, part: str, case: dict[str, Any]) -> None:
        self.content[part].append(case)
        state = "" if case["state"] == "done" else f" {case['state'].upper()}: {case.get('why', '')[:300]}"
        print(f"{time.monotonic() - self.started:5.0f} s  {part}: {case['case']}{state}", flush=True)
        self.write()

    def write(self) -> None:
        from .rows import ROWS, judge

        self.content["rows"] = judge(ROWS, self.content["benchmarks"], self.content["machine"]["card"])
        self.content["seconds"] = round(time.monotonic() - self.started, 1)
        for name, text in (("gpu-check.json", json.dumps(self.content, indent=1) + "\n"),
                           ("gpu-check.md", markdown(self.content))):
            unfinished = self.out / (name + ".part")
            unfinished.write_text(text)
            unfinished.replace(self.out / name)

    def failed(self) -> bool:
        """Whether a check failed, or is not known to hold; speeds do not count."""
        states = [case["state"] for part in ("correctness", "sanitizer") for case in self.content[part]]
        return any(state in ("wrong", "error", "not run") for state in states)


def main(words: list[str] | None = None) -> int:
    options, started = parser().parse_args(words), time.monotonic()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    machine = ask_machine(options.device)
    if "missing" in machine:
        print(f"gpu-check: {machine['missing']}", file=sys.stderr)
        return 2
    report, end = Report(out, machine, started), started + options.seconds
    folder = out / "package"
    folder.mkdir(exist_ok=True)
    for log in folder.glob("*.log"):
        log.unlink()
    try:
        report.content["build"] = build(folder, machine.get("architecture"),
                                        min(LIMITS["build"], end - time.monotonic()))
    except BuildError as error:
        print(f"gpu-check: the extension could not be built: {error}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - report.started:5.0f} s  built by {report.content['build']}", flush=True)
    for part in options.only:
        seconds = min(LIMITS[part], end - time.monotonic())
        names = list_cases("correctness" if part == "sanitizer" else part, folder, sanitized=part == "sanitizer")
        if part == "sanitizer":
            sanitize(names, options.device, folder, seconds, lambda case: report.add("sanitizer", case))
        else:
            run_cases(part, names, options.device, folder, seconds, lambda case, part=part: report.add(part, case),
                      patience=PATIENCE[part])
    report.write()
    print((out / "gpu-check.md").read_text() + f"\n{out}/gpu-check.json, {out}/gpu-check.md")
    return 1 if report.failed() else 0


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    words.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                       help="cpu: the same checks through the native code, at small sizes")
    words.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", metavar="FOLDER")
    words.add_argument("--seconds", type=float, default=470, help="for everything; default %(default)s")
    words.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    return words


def ask_machine(device: str) -> dict[str, Any]:
    """What machine.py says, or why it said nothing."""
    try:
        said = subprocess.run([sys.executable, "-m", f"{__package__}.machine", device], cwd=ROOT, capture_output=True,
                              text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return {"missing": "torch did not start up within 90 s"}
    lines = [line for line in said.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"missing": f"torch ended this python: {said.stderr.strip()[-300:]}"}


def list_cases(part: str, folder: Path, sanitized: bool) -> list[str]:
    """Names of the part's cases; asked of another process, as importing them imports torch."""
    code = f"import json; from {__package__}.worker import names; print(json.dumps(names({part!r}, {sanitized})))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(folder), capture_output=True,
                          text=True)
    if said.returncode:
        raise SystemExit(f"gpu-check: the package cannot be imported:\n{said.stderr[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])


def _commit() -> str:
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # a source tree without git is served too
        return "unknown"
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
