"""`report`: compare a run with reference frames; write figures, report.json and one HTML page."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, check_integer, check_number
from .comparison import Comparison, LengthStatistics, compare
from .consistency_table import check_target
from .figures import ALL_FIGURES, draw_all, symbol
from .page import build_page
from .verdict import HEADLINES, Statement, judge

if TYPE_CHECKING:
    from ..io import Snapshots

MAX_LAGS = 200  # points of an autocorrelation function in report.json
MOLECULE_NAME_LENGTH = 60


def report(
    trajectory: Snapshots,
    reference: Snapshots,
    out_dir: str | os.PathLike,
    dihedrals: Sequence | None = None,
    bins: int = 64,
    seed: int = 0,
    model: Any = None,
    *,
    n_pairs: int = 200,
    frame_interval: float | None = None,
    replicas_lost: int | None = None,
    energy_frames: int = 2000,
    inputs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare a trajectory with reference frames and write the result into a folder.

    trajectory, reference: from `diffmd_fast.io.read_snapshots`, the same atoms in the same order, nm.
    Replicas and times of the trajectory are used; of the reference only the order within each replica, to
    see whether consecutive frames are correlated.
    out_dir: made if missing; a report already there is replaced once all of the new one is written.
    dihedrals: names ("phi") or four atom indices each; the first two make the surface.  Default: from bonds.
    bins: per dihedral.  seed: of the bootstrap behind the sampling floor.  n_pairs: its size.
    model: something with ``energy(positions) -> [n]`` in kT0, for the energy trace.
    energy_frames: frames of the run (and of the reference) whose energy is computed.
    frame_interval: ps between frames, where the trajectory's own times are missing or wrong.
    replicas_lost: default from the trajectory's sidecar, else the replicas shorter than most.
    inputs: anything worth recording (file names, settings), kept under "inputs".

    Returns the content of report.json.  Writes summary.png, surface.png, autocorrelation.png, dihedrals.png,
    bonds.png, distances.png, energy.png (those that apply), report.json and report.html.
    Raises `InputError` for atoms that differ, unknown dihedrals, bad numbers, and frames that are not finite.
    """
    target = check_target(out_dir)
    check_integer(seed, "seed", minimum=0)
    check_integer(n_pairs, "n_pairs", minimum=20)
    check_integer(energy_frames, "energy_frames", minimum=1)
    if frame_interval is not None:
        frame_interval = check_number(frame_interval, "frame_interval", above=0, unit="ps")
    if replicas_lost is not None:
        replicas_lost = check_integer(replicas_lost, "replicas_lost", minimum=0)
    with _Progress(progress) as step:
        comparison = compare(
            trajectory,
            reference,
            dihedrals,
            bins,
            seed=seed,
            n_pairs=n_pairs,
            frame_interval=frame_interval,
            model=model,
            energy_frames=energy_frames,
            step=step,
        )
        metadata = getattr(trajectory, "metadata", None) or {}
        n_replicas = int(metadata.get("n_replicas", len(comparison.replicas.indices)))
        if replicas_lost is None:
            replicas_lost = len(metadata["lost"]) if "lost" in metadata else comparison.replicas.n_short
        level, statements = judge(
            comparison, replicas_lost, n_replicas, (trajectory.temperature, reference.temperature)
        )
        recorded = {
            "seed": seed,
            "bins": comparison.bins,
            "bootstrap_pairs": comparison.floor.n_pairs,
            "temperature_run": trajectory.temperature,
            "temperature_reference": reference.temperature,
            "run": _plain_settings(metadata.get("run") or {}),
            **(inputs or {}),
        }
        result = _result(comparison, level, statements, n_replicas, replicas_lost, recorded)
        text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        _write(target, comparison, result, text, level, statements, step)
    return json.loads(text)


class _Progress:
    """A bar that names the part at work; quiet where stderr is no terminal."""

    def __init__(self, shown: bool):
        self.shown = shown

    def __enter__(self) -> _Progress:
        from tqdm import tqdm

        self.bar = tqdm(
            desc="report", bar_format="{desc} [{elapsed}]", disable=None if self.shown else True, leave=False
        )
        return self

    def __call__(self, text: str) -> None:
        self.bar.set_description_str(f"report: {text}")

    def __exit__(self, *exception: object) -> None:
        self.bar.close()


# ---- the result ------------------------------------------------------------------------------------


def _result(
    comparison: Comparison,
    level: str,
    statements: list[Statement],
    n_replicas: int,
    replicas_lost: int,
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    from .. import __version__

    floor, functions = comparison.floor, comparison.autocorrelations
    deviation = np.abs(comparison.bonds.relative_deviation)
    far = np.abs(comparison.distances.relative_deviation)
    result = {
        "title": _title(comparison),
        "verdict": {
            "level": level,
            "headline": HEADLINES[level],
            "statements": [{"level": s.level, "text": s.text} for s in statements],
        },
        "js_divergence": comparison.js_divergence,
        "js_floor": floor.mean,
        "js_floor_sd": floor.sd,
        "js_floor_quantile_95": floor.quantile_95,
        "js_floor_independent_frames": floor.naive,
        "js_floor_reliable": floor.reliable,
        "js_excess": comparison.js_divergence - floor.mean,
        "js_p_value": floor.exceeded_by,
        "run_units": floor.run_units,
        "reference_units": floor.reference_units,
        "reference_equivalent_frames": floor.reference_equivalent,
        "surface": list(comparison.dihedrals.surface),
        "bins": comparison.bins,
        "n_frames": int(comparison.replicas.lengths.sum()),
        "n_replicas": n_replicas,
        "replicas_lost": replicas_lost,
        "n_reference_frames": comparison.n_reference,
        "frame_interval_ps": comparison.replicas.frame_interval,
        "dihedral_atoms": {
            name: atoms.tolist() for name, atoms in zip(comparison.dihedrals.names, comparison.dihedrals.quadruples)
        },
        "integrated_autocorrelation_time_ps": {n: f.integrated_time_ps for n, f in functions.items()},
        "integrated_autocorrelation_time_error_ps": {n: f.integrated_time_error_ps for n, f in functions.items()},
        "integrated_autocorrelation_time_frames": {n: f.integrated_time for n, f in functions.items()},
        "integrated_autocorrelation_time_error_frames": {n: f.integrated_time_error for n, f in functions.items()},
        "autocorrelation_resolved": {n: f.resolved for n, f in functions.items()},
        "autocorrelation_remark": {n: f.reason for n, f in functions.items() if f.reason},
        "effective_sample_size": {n: f.effective_sample_size for n, f in functions.items()},
        "effective_sample_size_min": comparison.effective_sample_size,
        "basin_populations": {
            name: {
                p.name: {
                    "run": p.run,
                    "run_error": p.run_error,
                    "reference": p.reference,
                    "reference_error": p.reference_error,
                }
                for p in populations
            }
            for name, populations in comparison.populations.items()
        },
        "bond_length_max_relative_deviation": float(deviation.max()) if deviation.size else None,
        "distance_max_relative_deviation": float(far.max()) if far.size else None,
        "bonds": _lengths(comparison.bonds),
        "distances": _lengths(comparison.shown_distances[0]),
        "energy": None
        if comparison.energy is None
        else {
            "run_mean": comparison.energy.run_mean,
            "reference_mean": comparison.energy.reference_mean,
            "reference_quantile_05": comparison.energy.reference_low,
            "reference_quantile_95": comparison.energy.reference_high,
        },
        "autocorrelation": {name: _curve(function) for name, function in functions.items()},
        "inputs": inputs,
        "package_version": __version__,
    }
    return _without_nan(result)


def _title(comparison: Comparison) -> str:
    residues = dict(zip(comparison.molecule.residue_index, comparison.molecule.residue_names))
    name = "-".join(residues.values())
    name = name if len(name) <= MOLECULE_NAME_LENGTH else name[: MOLECULE_NAME_LENGTH - 1] + "…"
    surface = ", ".join(symbol(part) for part in comparison.dihedrals.surface)
    return (
        f"{name}, {comparison.molecule.n_atoms} atoms; dihedrals {surface}; "
        f"{len(comparison.replicas.indices)} "
        f"replicas, {int(comparison.replicas.lengths.sum()):,} frames against {comparison.n_reference:,} "
        "reference frames"
    )


def _lengths(statistics: LengthStatistics) -> dict[str, dict[str, float]]:
    columns = {
        "run_mean": statistics.run_mean,
        "run_sd": statistics.run_sd,
        "reference_mean": statistics.reference_mean,
        "reference_sd": statistics.reference_sd,
        "relative_deviation": statistics.relative_deviation,
    }
    return {
        label: {key: float(values[k]) for key, values in columns.items()} for k, label in enumerate(statistics.labels)
    }


def _curve(function: Any) -> dict[str, list[float]]:
    """Up to `MAX_LAGS` lags, close together where the function changes fast."""
    last = len(function.lag) - 1
    shown = np.unique(np.concatenate([[0], np.geomspace(1, max(last, 1), MAX_LAGS).astype(int)]))
    shown = shown[shown <= last]
    return {
        "lag": function.lag[shown].tolist(),
        "circular": function.circular[shown].tolist(),
        "connected": function.connected[shown].tolist(),
    }


def _plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items() if isinstance(value, (str, int, float, bool, type(None)))}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None instead; everything numpy becomes plain."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


# ---- writing ---------------------------------------------------------------------------------------


def _write(
    target: Path,
    comparison: Comparison,
    result: dict,
    text: str,
    level: str,
    statements: list[Statement],
    step: _Progress,
) -> None:
    """Everything into a new folder beside the target first: what fails leaves an old report whole."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"out_dir: expected a place where a folder can be made, got {target} ({error.strerror})"
        ) from None
    try:
        figures = draw_all(comparison, folder, step)
        page = build_page(result, level, statements, figures, folder)
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8")
        target.mkdir(exist_ok=True)
        for name in [*figures, "report.json", "report.html"]:
            os.replace(folder / name, target / name)
        for name in set(ALL_FIGURES) - set(figures):  # of an older report with other contents
            (target / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
