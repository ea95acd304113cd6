"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .figures import symbol
from .verdict import HEADLINES, Statement

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #222; background: #fafafa;
       max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.sub { color: #666; margin: 0 0 1.2rem; }
.verdict { border-left: .4rem solid; border-radius: .3rem; padding: .8rem 1.2rem; background: #fff; }
.verdict h2 { border: 0; margin: 0 0 .4rem; padding: 0; font-size: 1.25rem; }
.verdict ul { margin: 0; padding-left: 0; list-style: none; }
.verdict li { margin: .35rem 0; padding-left: 1.6rem; position: relative; }
.verdict li::before { position: absolute; left: 0; font-weight: bold; }
.good { border-color: #3c8d5a; } li.good::before { content: "✓"; color: #3c8d5a; }
.caution { border-color: #d99a1c; } li.caution::before { content: "!"; color: #b87a00; left: .3rem; }
.bad { border-color: #c0392b; } li.bad::before { content: "✗"; color: #c0392b; }
figure { margin: 1rem 0; background: #fff; border: 1px solid #e4e4e4; border-radius: .4rem; padding: .8rem; }
figure img { max-width: 100%; display: block; margin: 0 auto; }
figcaption { color: #555; font-size: .9rem; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: #fff; font-size: .93rem; margin: .6rem 0; }
th, td { border: 1px solid #e0e0e0; padding: .3rem .7rem; text-align: right; }
td { font-variant-numeric: tabular-nums; }
th { background: #f2f4f6; font-weight: 600; }
td:first-child, th:first-child { text-align: left; }
details { margin-top: 1.5rem; }
summary { cursor: pointer; font-weight: 600; }
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: Any, pattern: str = "{:.4g}") -> str:
    return "–" if value is None else pattern.format(value)


def _dihedral_table(result: Mapping[str, Any]) -> str:
    in_ps = result["frame_interval_ps"] is not None
    key = "integrated_autocorrelation_time_" + ("ps" if in_ps else "frames")
    rows = []
    for name, tau in result[key].items():
        resolved = result["autocorrelation_resolved"][name]
        error = result[key.replace("time_", "time_error_")][name]
        text = (
            f"{_number(tau, '{:.3g}')} ± {_number(error, '{:.1g}')}" if resolved else f"above {_number(tau, '{:.3g}')}"
        )
        rows.append([symbol(name), text, f"{result['effective_sample_size'][name]:,.0f}", "yes" if resolved else "no"])
    return _table(
        [
            "dihedral",
            f"integrated autocorrelation time ({'ps' if in_ps else 'frames'})",
            "effective sample size",
            "resolved by the run",
        ],
        rows,
    )


def _population_table(result: Mapping[str, Any]) -> str:
    rows = [
        [
            symbol(name),
            basin,
            f"{_number(p['run'], '{:.4f}')} ± {_number(p['run_error'], '{:.4f}')}",
            f"{_number(p['reference'], '{:.4f}')} ± {_number(p['reference_error'], '{:.4f}')}",
        ]
        for name, basins in result["basin_populations"].items()
        for basin, p in basins.items()
    ]
    return _table(["dihedral", "basin", "run", "reference"], rows)


def _length_table(entries: Mapping[str, Mapping[str, float]], what: str) -> str:
    rows = [
        [
            label,
            f"{e['run_mean']:.4f}",
            f"{e['reference_mean']:.4f}",
            f"{100 * e['relative_deviation']:+.2f}",
            f"{e['run_sd']:.4f}",
            f"{e['reference_sd']:.4f}",
        ]
        for label, e in entries.items()
    ]
    return _table(
        [what, "run mean (nm)", "reference mean (nm)", "deviation (%)", "run sd (nm)", "reference sd (nm)"],
        rows,
    )


def _overview(result: Mapping[str, Any]) -> str:
    radius = result["radius_of_gyration"]
    rows = [
        ["Jensen–Shannon divergence", f"{result['js_divergence']:.4f} nats"],
        ["sampling floor (mean ± sd)", f"{result['js_floor']:.4f} ± {result['js_floor_sd']:.4f}"],
        ["sampling floor, 95 % quantile", f"{result['js_floor_quantile_95']:.4f}"],
        ["if all frames were independent", f"{result['js_floor_independent_frames']:.4f}"],
        ["bins", " × ".join([str(result["bins"])] * len(result["surface"]))],
        ["frames, run", f"{result['n_frames']:,} in {result['n_replicas']} replicas"],
        ["counted as independent, run", result["run_units"]],
        ["frames, reference", f"{result['n_reference_frames']:,}"],
        ["counted as independent, reference", result["reference_units"]],
        ["replicas lost", str(result["replicas_lost"])],
        *(
            [f"radius of gyration, {name} (mean ± error)", f"{_number(radius[name])} ± {_number(error, '{:.1g}')} nm"]
            for name, error in (("run", radius["run_error"]), ("reference", radius["reference_error"]))
        ),
    ]
    if result["frame_interval_ps"] is not None:
        rows.append(["time between frames", f"{result['frame_interval_ps']:.4g} ps"])
    return _table(["quantity", "value"], rows)


def figure_file(directory: Path, name: str, caption: str) -> str:
    data = base64.b64encode((directory / name).read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _inputs(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _inputs(value, f"{prefix}{key}.")
        else:
            rows.append([prefix + key, _short(value)])
    return rows


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 120 else text[:117] + "…"


def build_page(
    result: Mapping[str, Any],
    level: str,
    statements: Sequence[Statement],
    figures: Mapping[str, str],
    directory: Path,
) -> str:
    """The page's HTML.  result: content of report.json; figures: file in ``directory`` -> caption."""
    items = "".join(f'<li class="{s.level}">{escape(s.text)}</li>' for s in statements)
    pictures = {name: figure_file(directory, name, caption) for name, caption in figures.items()}
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Simulation report</title><style>{_CSS}</style></head><body>",
        "<h1>Simulation report</h1>",
        f'<p class="sub">{escape(result["title"])}</p>',
        f'<section class="verdict {level}"><h2>{escape(HEADLINES[level])}</h2><ul>{items}</ul></section>',
        pictures["summary.png"],
        "<h2>Numbers</h2>",
        _overview(result),
        "<h2>Dihedrals</h2>",
        pictures["surface.png"],
        pictures.get("dihedrals.png", ""),
        _population_table(result),
        "<h2>Correlation in time</h2>",
        pictures["autocorrelation.png"],
        _dihedral_table(result),
    ]
    if "bonds.png" in pictures:
        parts += ["<h2>Bonds</h2>", pictures["bonds.png"], _length_table(result["bonds"], "bond")]
    if "distances.png" in pictures:
        parts += [
            "<h2>Distances</h2>",
            pictures["distances.png"],
            _length_table(result["distances"], "distance"),
        ]
    parts += ["<h2>Size and shape</h2>", pictures["structure.png"]]
    if "energy.png" in pictures:
        parts += ["<h2>Energy</h2>", pictures["energy.png"]]
    parts += [
        "<h2>How to read this</h2><p>The Jensen–Shannon divergence is 0 for equal histograms and 0.693 for "
        "disjoint ones. Two finite samples of one density never give 0: the sampling floor is what they "
        "would give at the effective sizes of this run and this reference, found by resampling whole "
        "replicas (or blocks longer than the correlation time) of the run. Only the part above the floor "
        "is a difference. Frames close in time say nearly the same; the effective sample size counts how "
        "many independent ones they are worth.</p>",
        "<details><summary>Inputs and settings</summary>",
        _table(["setting", "value"], _inputs(result["inputs"])),
        f'</details><p class="sub">diffmd-fast {escape(result["package_version"])}</p></body></html>',
    ]
    return "\n".join(parts) + "\n"
