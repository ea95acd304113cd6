"""What `consistency` found, for people: one table in plain text, one figure, one JSON file."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, check_new_folder
from .figures import MAX_ENERGY, REFERENCE, RUN, SERIES, draw_surface, figure_file, scale, symbol
from .free_energy import bin_centers, free_energy

if TYPE_CHECKING:
    from .consistency import Consistency

COLORS = {"generated": SERIES[2], "simulated": RUN, "snapshots": REFERENCE, "reference": "#888888"}
FIGURE, NUMBERS, TABLE = "consistency.png", "consistency.json", "consistency.txt"
MAX_BOND_ROWS = 12


def table(result: Consistency) -> str:
    """Divergences with floors, basin populations and bond lengths, as text."""
    frames = ", ".join(f"{face} {n:,} frames" for face, n in result.frames.items())
    settings = result.settings
    lines = [
        frames,
        f"run: {result.n_replicas} replicas x {settings['n_steps']:,} steps of {settings['time_step_ps']:.3g} ps "
        f"({settings['integrator']}, D dt L = {settings['d_dt_l']:.2g}: the stiffest variance is "
        f"{100 * settings['widening_of_the_stiffest_variance']:.0f}% too wide under Euler-Maruyama); "
        f"{result.lost} replicas lost",
        "",
        "Jensen-Shannon divergence (nats) and its sampling floor",
        f"  {'dihedrals':<22} {'faces':<26} {'divergence':>10} {'floor':>16} {'excess':>9}",
    ]
    for one in result.agreements:
        names = ", ".join(one.dihedrals)
        names = names if len(names) <= 22 else names[:21] + "…"
        remark = "" if one.level == "good" else "  above the floor" if one.level == "caution" else "  DIFFERENT"
        remark += "" if one.floor.reliable else "  (floor is a guess: run longer)"
        lines.append(f"  {names:<22} {one.first + ' / ' + one.second:<26} {one.divergence:>10.4f} "
                     f"{one.floor.mean:>8.4f} ± {one.floor.sd:.4f} {one.excess:>+9.4f}{remark}")
    lines += ["", "Basin populations (%, ± standard error)"]
    for title, basins in result.populations.items():
        for basin, faces in basins.items():
            shares = "   ".join(f"{face} {100 * share:.2f} ± {100 * error:.2f}"
                                for face, (share, error) in faces.items())
            lines.append(f"  {title + ' ' + basin:<24} {shares}")
    if result.bonds:
        lines += ["", "Bond lengths, mean (standard deviation) in nm; snapshots carry the model's noise too"]
        for label, faces in list(result.bonds.items())[:MAX_BOND_ROWS]:
            values = "   ".join(f"{face} {mean:.5f} ({sd:.5f})" for face, (mean, sd) in faces.items())
            lines.append(f"  {label:<16} {values}")
        if len(result.bonds) > MAX_BOND_ROWS:
            lines.append(f"  ... and {len(result.bonds) - MAX_BOND_ROWS} more, in {NUMBERS}")
    return "\n".join(lines)


def as_dict(result: Consistency) -> dict[str, Any]:
    """Everything in plain numbers, JSON-able; lengths in nm, divergences in nats."""
    from .. import __version__

    return {
        "level": result.level,
        "frames": result.frames,
        "n_replicas": result.n_replicas,
        "replicas_lost": result.lost,
        "surface": list(result.dihedrals.surface),
        "divergences": [
            {"dihedrals": list(one.dihedrals), "first": one.first, "second": one.second,
             "js_divergence": one.divergence, "js_floor": one.floor.mean, "js_floor_sd": one.floor.sd,
             "js_floor_quantile_95": one.floor.quantile_95, "js_floor_reliable": one.floor.reliable,
             "js_excess": one.excess, "p_value": one.floor.exceeded_by, "level": one.level}
            for one in result.agreements
        ],
        "populations": {
            title: {basin: {face: {"share": share, "error": None if np.isnan(error) else error}
                            for face, (share, error) in faces.items()} for basin, faces in basins.items()}
            for title, basins in result.populations.items()
        },
        "bonds": {label: {face: {"mean": mean, "sd": sd} for face, (mean, sd) in faces.items()}
                  for label, faces in result.bonds.items()},
        "settings": result.settings,
        "package_version": __version__,
    }


def draw(result: Consistency, path: Path) -> None:
    """Free-energy surfaces side by side on one scale, or the curves of the only dihedral in one panel."""
    names, faces = result.dihedrals.surface, result.histograms
    if len(names) == 2:
        with figure_file(path, 3.4 * len(faces) + 0.9, 3.7) as figure:
            panels = figure.subplots(1, len(faces))
            for axes, (face, histogram) in zip(panels, faces.items()):
                frames = f" ({result.frames[face]:,} frames)" if face in result.frames else ""
                image = draw_surface(axes, histogram, names, face.capitalize() + frames)
                axes.set_ylabel(axes.get_ylabel() if axes is panels[0] else "")
            scale(panels[-1], image, "free energy ($kT$)", list(range(int(MAX_ENERGY) + 1)))
        return
    with figure_file(path, 9.6, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for face, histogram in faces.items():
            centers, width = np.degrees(bin_centers(len(histogram))), 360 / len(histogram)
            left.step(centers, histogram / histogram.sum() / width, where="mid", color=COLORS[face], label=face)
            right.plot(centers, free_energy(histogram), color=COLORS[face])
        for axes, label in ((left, "probability per degree"), (right, "free energy ($kT$)")):
            axes.set(xlim=(-180, 180), xticks=range(-180, 181, 60), xlabel=f"{symbol(names[0])} (degrees)",
                     ylabel=label, ylim=(0, None))
        left.legend(loc="best")


def write(result: Consistency, out_dir: str | os.PathLike) -> None:
    """consistency.png, consistency.json and consistency.txt into a folder; each replaces an older one whole."""
    from ..io.sidecar import write_atomically

    target = check_new_folder(out_dir, "out_dir")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=target) as folder:
            draw(result, Path(folder) / FIGURE)
            os.replace(Path(folder) / FIGURE, target / FIGURE)
        write_atomically(target / NUMBERS, json.dumps(as_dict(result), indent=1, allow_nan=False) + "\n")
        write_atomically(target / TABLE, table(result) + "\n")
    except OSError as error:
        raise InputError(f"out_dir: expected a folder to write into, got {target} ({error.strerror})") from None
