"""The result as Markdown: the card and its ceilings, what was asked for, and every check."""

from __future__ import annotations

from collections import Counter
from typing import Any

WORDS = {"done": "right", "wrong": "**WRONG**", "error": "**ERROR**", "skipped": "not available",
         "not run": "**not run**"}


def markdown(report: dict[str, Any]) -> str:
    machine, on_cpu = report["machine"], report["machine"]["device"] == "cpu"
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("card", "device"))
    lines = [f"# gpu-check on {machine['card']}", "",
             f"{report['date']}, commit {report['commit']}, {report['seconds']:.0f} s. {facts}. "
             f"Extension: {report['build']}.", ""]
    if on_cpu:
        lines += ["**This ran on a CPU, at small sizes: it says nothing about a GPU.**", ""]
    return "\n".join([*lines, *_benchmarks(report), "", *_checks(report)]) + "\n"


def _benchmarks(report: dict[str, Any]) -> list[str]:
    rates = {case["case"]: case["result"]["rate"] for case in report["benchmarks"]
             if case["state"] == "done" and case["case"].startswith(("copy", "matrix"))}
    said = [f"copy {rates['copy bandwidth'] / 1e9:.4g} GB/s (read and written)"] if "copy bandwidth" in rates else []
    said += [f"{name.split(', ')[1]} products {value / 1e12:.3g} TFLOP/s" for name, value in rates.items()
             if name.startswith("matrix")]
    lines = [f"Measured in this run: {'; '.join(said) or 'no ceiling'}. Floors are counted operations or bytes at "
             "these rates.", "",
             "| work | measured | floor | measured/floor | wanted | reached | eager reference | compiled reference | "
             "peak memory |", "|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(row) for row in report["rows"]]
    if any(row.get("judged") is False for row in report["rows"]):
        lines += ["", "What was wanted was asked of an H200; this is another device, so nothing is called reached."]
    return lines


def _row(row: dict[str, Any]) -> str:
    wanted = "" if row["wanted"] is None else f"{row['sense']} {number(row['wanted'])}"
    if row["measured"] is None:
        return f"| {row['work']} | – ({_one_line(row['why'])}) | | | {wanted} | | | | |"
    reached = "" if row["reached"] is None or not row["judged"] else "yes" if row["reached"] else "**missed**"
    floor = time(row["floor seconds"]) if "over floor" in row else ""
    over = f"{number(row['over floor'])} ({time(row['seconds'])})" if "over floor" in row else ""
    cells = [row["work"], f"{number(row['measured'])} {row['unit']}".strip(), floor, over, wanted, reached,
             _reference(row.get("eager")), _reference(row.get("compiled")), memory(row["peak bytes"])]
    return "| " + " | ".join(cells) + " |"


def _reference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "why" in found:
        return f"– ({_one_line(found['why'])})"
    held = f", {memory(found['peak bytes'])}" if found["peak bytes"] is not None else ""
    return f"{time(found['seconds'])}, × {number(found['times'])}{held}"


def _checks(report: dict[str, Any]) -> list[str]:
    lines = []
    for title, name in (("Correctness", "correctness"), ("compute-sanitizer", "sanitizer"),
                        ("Benchmarks that came to no figure", "benchmarks")):
        cases = report[name]
        counts = Counter(WORDS[case["state"]].strip("*") for case in cases)
        if name == "benchmarks":
            cases = [case for case in cases if case["state"] != "done"]
            if not cases:
                continue
        said = ", ".join(f"{count} {word}" for word, count in counts.items()) if name != "benchmarks" else ""
        lines += [f"## {title}", "", *([said + ".", ""] if said else []), "| case | | |", "|---|---|---|"]
        for case in cases:
            found = case.get("result") or {}
            detail = case.get("why") or ", ".join(f"{k}: {v}" for k, v in found.items())
            lines.append(f"| {case['case']} | {WORDS[case['state']]} | {_one_line(detail, 300)} |")
        lines.append("")
    return lines[:-1]


def _one_line(text: str, most: int = 160) -> str:
    return " ".join(text.split()).replace("|", "/")[:most]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}"
    return ""


def memory(n_bytes: float | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 2**20:,.3g} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.3g} GiB"
