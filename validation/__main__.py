"""Run the validation and write docs/validation.md.

    python -m validation                       # every part; the page says what each took
    python -m validation harmonic double_well  # only these; the page has them and what else is in validation-output/
    python -m validation --page                # the page again from the results there are

Each part runs on one thread in a process of its own, whose time and memory are stated; as many run at once as there are
cores.  Results are kept in validation-output/, so a run that was stopped has lost only the parts it was in.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import date
from pathlib import Path

from tqdm import tqdm

from .learned import Absent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "validation-output"
PAGE = ROOT / "docs" / "validation.md"
BEGIN, END = "<!-- begin: written by make validate -->", "<!-- end: written by make validate -->"

# name: module and function; in the order of the page.
PARTS = {
    "harmonic": "exact.harmonic",
    "double_well": "exact.double_well",
    "muller_brown": "exact.muller_brown",
    "temperature": "exact.temperature",
    "error_budgets": "budget.error_budgets",
    "butane_exact": "alkanes.butane_exact",
    "butane_temperature": "alkanes.butane_temperature",
    "butane": "alkanes.butane",
    "tridecane": "alkanes.tridecane",
    "hexadecane": "alkanes.hexadecane",
    "heavy_atoms": "alanine.heavy_atoms",
    "five_beads": "alanine.five_beads",
    "all_atoms": "alanine.all_atoms",
    "all_atoms_dynamics": "dynamics.all_atoms_dynamics",
}
# Run first, so that no core waits at the end.
LONGEST = ["all_atoms_dynamics", "hexadecane", "tridecane", "all_atoms", "butane", "five_beads", "heavy_atoms"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m validation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS) + "; default: all")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # run one part in this process
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f"PART: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    RESULTS.mkdir(exist_ok=True)
    if arguments.here:
        run_here(arguments.parts[0])
        return
    failed = [] if arguments.page else run_parts(arguments.parts or list(PARTS))
    write_page()
    print(f"page in {PAGE.relative_to(ROOT)}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


def run_parts(names: list[str]) -> list[str]:
    """Run them, the longest first, and return those that failed; Ctrl-C stops the parts that run."""
    names = [name for name in LONGEST if name in names] + [name for name in names if name not in LONGEST]
    started, failed = time.monotonic(), []
    pool = ThreadPoolExecutor(os.cpu_count())
    parts = {pool.submit(run_apart, name): name for name in names}
    try:
        for part in tqdm(as_completed(parts), total=len(parts), unit="part"):
            done, name = part.result(), parts[part]
            tqdm.write(f"== {name}\n{done.stdout}", end="")
            failed += [name] if done.returncode else []
            write_page()
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{len(names)} parts in {(time.monotonic() - started) / 60:.1f} minutes")
    return failed


def run_apart(name: str) -> subprocess.CompletedProcess:
    """A part in a process of its own, on one thread; its standard error goes where ours does."""
    return subprocess.run([sys.executable, "-m", "validation", "--here", name], cwd=ROOT, stdout=subprocess.PIPE,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def run_here(name: str) -> None:
    module, function = PARTS[name].split(".")
    started = time.monotonic()
    try:
        part = getattr(importlib.import_module(f"validation.{module}"), function)()
    except Absent as why:
        print(f"   left out: {why}", flush=True)
        return
    result = asdict(part) | {
        "date": str(date.today()), "commit": commit(), "machine": machine(), "seconds": time.monotonic() - started,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))
    for row in part.rows:
        print("  ", verdict(row.reached), f"{row.system}: {row.quantity}: {row.measured} (wanted {row.wanted})",
              row.remark)
    print(f"   {result['seconds']:.0f} s, {result['megabytes']:.0f} MB", flush=True)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def machine() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores"


def verdict(reached: bool | None) -> str:
    return {True: "reached", False: "**missed**", None: "shown"}[reached]


def write_page() -> None:
    """The part of the page between its two marks, from every result there is."""
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}\n\n{document()}\n{after}")


def document() -> str:
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in PARTS
               if (RESULTS / f"{name}.json").is_file()}
    rows = [row for result in results.values() for row in result["rows"] if row["reached"] is not None]
    missed = [row for row in rows if not row["reached"]]
    seconds = sum(result["seconds"] for result in results.values())
    lines = [f"{len(rows) - len(missed)} of {len(rows)} reached; the parts took {seconds / 60:.0f} minutes "
             "together by the clock, without models and runs that were kept."]
    absent = [name for name in PARTS if name not in results]
    if absent:
        lines.append(f"Not run: {', '.join(absent)}.")
    for result in results.values():
        lines += ["", f"## {result['title']}", "",
                  f"{result['date']}, commit {result['commit']}, {result['machine']}: {result['seconds']:.0f} s, "
                  f"{result['megabytes']:.0f} MB.", "",
                  "| system | quantity | measured | wanted | | |", "|---|---|---|---|---|---|"]
        for row in result["rows"]:
            cells = (*(row[key] for key in ("system", "quantity", "measured", "wanted")), verdict(row["reached"]),
                     row["remark"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        for remark in result["remarks"]:
            lines += ["", remark]
        for path, caption in result["pictures"]:
            lines += ["", f"![{caption}]({path})", "", f"*{caption}*"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
