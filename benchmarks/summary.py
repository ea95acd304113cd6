"""What ``make bench`` measured, as a table and a roofline: into docs/performance.md and docs/images/roofline.png.

    python benchmarks/summary.py            # the newest results of this machine
    python benchmarks/summary.py --print    # only show the table

Reads asv's result file; a benchmark that was skipped or failed shows as such, never as a number.
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

import floors

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "performance.md"
FIGURE = HERE.parent / "docs" / "images" / "roofline.png"
BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"
EM_STEP_OPERATIONS = 83  # a coordinate: 250 vector operations of 16 lanes for 48, see docs/performance.md
MATMUL, COPY = "machine.track_matrix_rate", "machine.track_copy_bandwidth"


class Results:
    """The newest asv result file of an existing environment: ``results(name, *parameters)`` is a number or NaN."""

    def __init__(self, folder: Path):
        files = sorted(folder.glob("*/*existing*.json"), key=lambda path: path.stat().st_mtime)
        if not files:
            raise SystemExit(f"no results in {folder}: run make bench first")
        content = json.loads(files[-1].read_text())
        self.commit, self.machine = content["commit_hash"][:8], content["params"]
        self.table: dict[tuple, float] = {}
        started = []
        for name, entry in content["results"].items():
            values = dict(zip(content["result_columns"], entry))
            started.append(values.get("started_at") or 0)
            for key, value in zip(product(*values["params"]), values["result"] or []):
                number = math.nan if value is None else float(value)
                self.table[(name, *(word.strip("'") for word in key))] = number
        self.date = datetime.fromtimestamp(max(started) / 1000, timezone.utc).strftime("%Y-%m-%d")

    def __call__(self, name: str, *parameters) -> float:
        return self.table.get((name, *map(str, parameters)), math.nan)


def rows(results: Results) -> list[tuple[str, float, str, float]]:
    """(work, measured, "at least" or "at most", wanted)."""
    matmul, copy = 1e9 * results(MATMUL), 1e9 * results(COPY)
    floor = floors.evaluation(22).floor(matmul, copy)
    table = []
    for molecules in (1, 16, 256):
        table.append((f"energy and score, 22 atoms × {molecules}: times the reference, eager",
                      results("schnet.track_speedup_energy_and_score", 22, molecules), "at least", 20))
    for molecules, wanted in ((1, 5), (16, 3), (256, 3)):
        table.append((f"… × {molecules}: times the reference under torch.compile",
                      results("schnet.track_speedup_over_compiled_reference", molecules), "at least", wanted))
    for molecules in (16, 256):
        table.append((f"… × {molecules}: evaluations per CPU-second",
                      results("schnet.track_evaluations_per_cpu_second", 22, molecules), "at least", 9000))
    table.append(("… × 256: measured / counted floor",
                  1 / results("schnet.track_evaluations_per_cpu_second", 22, 256) / floor, "at most", 2))
    for atoms in (10, 22):
        table.append((f"resident sampling, {atoms} atoms × 64, 2 threads: times the reference sampler",
                      results("sampler.track_resident_over_reference", atoms), "at least", 20))
    table.append(("resident sampling, 5 beads, 2 blocks: replica-steps per CPU-second",
                  results("sampler.track_five_beads_per_cpu_second"), "at least", 50_000))
    for atoms in (10, 22):
        table.append((f"… {atoms} atoms × 64: two threads over one",
                      results("sampler.track_two_threads_over_one", atoms), "at least", 1.85))
    table.append(("em_step, 10^7 coordinates: times the best in-place torch form",
                  results("em_step.track_ratio_to_plain_torch"), "at least", 3))
    table.append(("… time over that of a plain copy of the same bytes",
                  results("em_step.track_ratio_to_copy"), "at most", 2))
    for atoms in (10, 22):
        table.append((f"training step, {atoms} atoms × 256, 2 threads: times the reference operators",
                      results("schnet.track_speedup_training_step", atoms), "at least", 5))
    table.append(("neighbor list, 256 molecules × 22 atoms: times the fastest peer",
                  results("neighbor_list.track_speedup_over_peers_molecules"), "at least", 4))
    for particles in (1000, 8000, 64000):
        table.append((f"neighbor list, {particles:,} particles, periodic: times the fastest peer",
                      results("neighbor_list.track_speedup_over_peers_fluid", particles), "at least", 2))
    table.append(("energy and score, one periodic box: time per particle, 10^6 over 10^5",
                  results("large_systems.track_ratio_of_a_million_to_100000"), "at most", 1.15))
    return table


def verdict(value: float, bound: str, wanted: float) -> str:
    if math.isnan(value):
        return "not measured"
    if (value >= wanted) if bound == "at least" else (value <= wanted):
        return "reached"
    return f"**missed** by {100 * abs(value / wanted - 1):.0f}%"


def number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def document(results: Results) -> str:
    cpu = f"{results.machine.get('cpu', 'unknown processor')}, {results.machine.get('num_cpu', '?')} cores"
    lines = [BEGIN, "",
             f"`make bench` of {results.date} at commit {results.commit} on: {cpu}. One thread and medians unless "
             "said; denormals flushed on both sides; ratios from alternating or successive calls in one process. In "
             f"that run the machine gave {number(results(MATMUL))} GFLOP/s in `torch.mm` of 1408×64×64 and "
             f"{number(results(COPY))} GB/s in `torch.add` of two arrays into a third, one thread each.", "",
             "| work | measured | asked for | |", "|---|---|---|---|"]
    lines += [f"| {work} | {number(value)} | {bound} {number(wanted)} | {verdict(value, bound, wanted)} |"
              for work, value, bound, wanted in rows(results)]
    lines += ["", "![Rates of the kernels against what the machine can do](images/roofline.png)", "",
              "*Each kernel's rate against the two roofs of the machine that the same run measured. `torch.mm` and "
              "`torch.add` draw the roofs: the first is not the processor's peak, so a kernel may touch it.*"]
    return "\n".join([*lines, "", END])


def points(results: Results) -> list[tuple[str, floors.Count, float]]:
    """(kernel, count of its unit, seconds of one unit) for the roofline."""
    edges = 256 * 22 * 21 * floors.FEATURES
    found = [(f"energy and score, {atoms} atoms", floors.evaluation(atoms),
              1 / results("schnet.track_evaluations_per_cpu_second", atoms, 256)) for atoms in (10, 22)]
    found.append(("spline_conv forward", floors.spline_conv("forward"),
                  results("spline_conv.SplineConv.time_forward", "native", 22) / edges))
    found.append(("em_step into new memory", floors.em_step(EM_STEP_OPERATIONS),
                  results("em_step.EmStep.time_em_step", "native") / 1_000_020))
    return [point for point in found if not math.isnan(point[2])]


def roofline(results: Results) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    peak, bandwidth = results(MATMUL), results(COPY)
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    intensity = np.geomspace(0.1, 1e5, 200)
    axes.loglog(intensity, np.minimum(peak, bandwidth * intensity), color="black", lw=1.5)
    axes.annotate(f"{peak:.0f} GFLOP/s (torch.mm)", (2e3, peak), (0, 4), textcoords="offset points", fontsize=9)
    axes.annotate(f"{bandwidth:.0f} GB/s (torch.add)", (0.2, 0.2 * bandwidth), (8, -4), textcoords="offset points",
                  fontsize=9)
    for name, count, seconds in points(results):
        rate = count.operations / seconds / 1e9
        ratio = seconds / count.floor(1e9 * peak, 1e9 * bandwidth)
        axes.plot(count.intensity, rate, "o", label=f"{name}: {rate:.3g} GFLOP/s, {ratio:.2g} × the floor's time")
    axes.set_xlabel("operations per byte of main memory")
    axes.set_ylabel("10$^9$ operations per second, one thread")
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title(f"Measured on {results.date}, commit {results.commit}", fontsize=10)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="only_print", help="write no file")
    arguments = parser.parse_args()
    results = Results(HERE / ".asv" / "results")
    text = document(results)
    print(text)
    if arguments.only_print:
        return
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(before + text + after)
    roofline(results)
    print(f"written into {DOCUMENT} and {FIGURE}")


if __name__ == "__main__":
    main()
