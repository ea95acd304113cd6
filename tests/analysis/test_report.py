"""The report end to end: the alkane data, and a peptide backbone built from known angles."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from diffmd_fast.analysis import compare, correlation_matrix, radius_of_gyration, report
from diffmd_fast.analysis.verdict import judge
from diffmd_fast.errors import InputError
from diffmd_fast.io import Molecule, Snapshots, read_snapshots

from .chains import two_angles

BACKBONE = Molecule(
    names=("C", "N", "CA", "C", "N"),
    atomic_numbers=(6, 7, 6, 6, 7),
    residue_names=("ACE", "ALA", "ALA", "ALA", "NME"),
    residue_index=(0, 1, 1, 1, 2),
    bonds=((0, 1), (1, 2), (2, 3), (3, 4)),
)
FIGURES = {
    "summary.png",
    "surface.png",
    "autocorrelation.png",
    "dihedrals.png",
    "bonds.png",
    "distances.png",
    "structure.png",
}


def backbone(angles: np.ndarray, rng: np.random.Generator, bond: float = 0.15) -> np.ndarray:
    """Positions [frames, 5, 3] float32 of a chain with the given (phi, psi) and slightly fluctuating bonds."""
    n = len(angles)
    lengths = bond + 0.003 * rng.standard_normal((n, 4))
    bend = np.radians(112.0)
    positions = np.zeros((n, 5, 3))
    positions[:, 1, 0] = lengths[:, 0]
    positions[:, 2] = positions[:, 1] + lengths[:, 1, None] * np.array([-np.cos(bend), np.sin(bend), 0])
    for k in range(2):
        a, b, c = (positions[:, k + m] for m in range(3))
        axis = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
        normal = np.cross(b - a, axis)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        side = np.cross(normal, axis)
        cosine, sine = np.cos(angles[:, k, None]), np.sin(angles[:, k, None])
        direction = -np.cos(bend) * axis + np.sin(bend) * (cosine * side + sine * normal)
        positions[:, k + 3] = c + lengths[:, k + 2, None] * direction
    return positions.astype(np.float32)


@pytest.fixture(scope="module")
def run() -> Snapshots:
    rng = np.random.default_rng(31)
    angles = two_angles(rng, 40, 100, 4.0, 0.1)
    return Snapshots(
        positions=backbone(angles.reshape(-1, 2), rng),
        molecule=BACKBONE,
        temperature=300.0,
        replica=np.repeat(np.arange(40), 100).astype(np.int32),
        time=np.tile(np.arange(100) * 0.5, 40),
    )


@pytest.fixture(scope="module")
def reference() -> Snapshots:
    rng = np.random.default_rng(32)
    return Snapshots(backbone(two_angles(rng, 1, 3000, 0.0, 1.0)[0], rng), BACKBONE, 300.0)


class Stretch:
    """Energy of the bonds (kT0): what `report` needs of a model."""

    def energy(self, positions):
        return ((positions.diff(dim=1).norm(dim=-1) - 0.15) ** 2).sum(-1) / (2 * 0.003**2)


def test_backbone_has_the_angles_asked_for():
    from diffmd_fast.analysis import dihedral_angles

    angles = np.random.default_rng(1).uniform(-3, 3, (20, 2))
    found = dihedral_angles(backbone(angles, np.random.default_rng(2)), [[0, 1, 2, 3], [1, 2, 3, 4]])
    np.testing.assert_allclose(found, angles, atol=1e-5)


@pytest.fixture(scope="module")
def written(run, reference, tmp_path_factory):
    """Folder and result of a report with everything in it."""
    out = tmp_path_factory.mktemp("report") / "new" / "report"
    return out, report(run, reference, out, model=Stretch(), n_pairs=60, inputs={"trajectory": "<b>.xtc"})


def test_report_of_an_equal_density(written):
    out, result = written
    assert {path.name for path in out.iterdir()} == FIGURES | {"energy.png", "report.json", "report.html"}
    assert json.loads((out / "report.json").read_text()) == result
    assert not list(out.parent.glob(".*"))  # nothing temporary is left

    assert result["n_frames"] == 4000 and result["n_replicas"] == 40 and result["replicas_lost"] == 0
    assert result["surface"] == ["phi", "psi"] and result["bins"] == 64
    assert result["run_units"] == "40 replicas" and result["reference_units"] == "3,000 frames"
    # Equal densities: five standard deviations of the bootstrap.
    assert abs(result["js_divergence"] - result["js_floor"]) < 5 * result["js_floor_sd"]
    assert result["js_floor_independent_frames"] < result["js_floor"] < result["js_floor_quantile_95"]
    assert set(result["integrated_autocorrelation_time_ps"]) == {"phi", "psi"}
    assert 1 < result["integrated_autocorrelation_time_ps"]["psi"] < 10  # exchange every 10 frames of 0.5 ps
    assert 100 < result["effective_sample_size_min"] < 1000
    assert result["bond_length_max_relative_deviation"] < 0.003
    shares = result["basin_populations"]["phi, psi"]
    assert sum(basin["run"] for basin in shares.values()) == pytest.approx(1)
    assert shares["alphaR"]["reference"] == pytest.approx(0.41, abs=0.05)
    assert result["energy"]["run_mean"] == pytest.approx(2.0, abs=0.2)  # four bonds, kT0/2 each
    assert result["autocorrelation"]["phi"]["connected"][0] == 1
    assert result["package_version"] and result["inputs"]["seed"] == 0

    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES) + 1
    assert "http://" not in page and "https://" not in page and 'src="data' in page
    assert "&lt;b&gt;.xtc" in page and "<b>.xtc" not in page
    assert "sampling floor" in page


def test_size_and_shape(run, reference):
    comparison = compare(run, reference, n_pairs=20)
    shape = comparison.structure
    np.testing.assert_array_equal(shape.run_radii, radius_of_gyration(run.positions))
    np.testing.assert_allclose(shape.correlation, correlation_matrix(run.positions[:100]))
    assert shape.stride == 1 and shape.correlation.shape == (100, 100)
    assert 0 < shape.run_radius.error < 5e-3 and shape.reference_radius.mean == shape.reference_radii.mean()
    # One replica of 3,000 frames: 300 of them, ten apart.
    long = compare(replace(reference, time=np.arange(3000.0)), reference, n_pairs=20).structure
    np.testing.assert_allclose(long.correlation, correlation_matrix(reference.positions[::10]))
    assert long.stride == 10


def test_a_wrong_run_is_called_wrong(run, reference):
    rng = np.random.default_rng(33)
    angles = two_angles(rng, 40, 100, 4.0, 0.1).reshape(-1, 2) + np.radians([25.0, 0.0])
    wrong = replace(run, positions=backbone(angles, rng, bond=0.154))
    comparison = compare(wrong, reference, n_pairs=40)
    level, statements = judge(comparison, replicas_lost=7, n_replicas=40, temperatures=(350.0, 300.0))
    assert level == "bad"
    assert comparison.js_divergence > comparison.floor.mean + 0.1 and comparison.floor.exceeded_by < 0.05
    np.testing.assert_allclose(comparison.bonds.relative_deviation, 0.004 / 0.15, atol=0.002)
    text = " ".join(statement.text for statement in statements)
    assert "350 K" in text
    assert "clearly different" in text and "7 of 40 replicas were lost" in text and "bond" in text


def test_trapped_replicas_are_reported_as_unresolved(reference, run, tmp_path):
    rng = np.random.default_rng(34)
    trapped = replace(run, positions=backbone(two_angles(rng, 40, 100, 4.0, 0.0).reshape(-1, 2), rng))
    trapped = replace(trapped, metadata={"lost": [{"replica": 40, "step": 9, "reason": "x"}], "n_replicas": 41})
    result = report(trapped, reference, tmp_path / "out", n_pairs=40)
    assert result["replicas_lost"] == 1 and result["n_replicas"] == 41
    assert not result["autocorrelation_resolved"]["psi"] and result["autocorrelation_remark"]["psi"]
    assert result["effective_sample_size"]["psi"] < 120
    assert result["verdict"]["level"] != "good"
    assert "above" in (tmp_path / "out" / "report.html").read_text()


def test_an_old_report_is_replaced_whole_or_not_at_all(run, reference, written, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(written[0], out)
    (out / "mine.txt").write_text("kept")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    class Broken:
        def energy(self, positions):
            raise RuntimeError("no energy today")

    with pytest.raises(RuntimeError):
        report(run, reference, out, model=Broken(), n_pairs=20)
    with pytest.raises(InputError):
        report(run, reference, out, dihedrals=["omega"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    module = sys.modules["diffmd_fast.analysis.report"]  # the package has a function of that name
    monkeypatch.setattr(module, "build_page", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(run, reference, out, n_pairs=20)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()

    second = report(run, reference, out, n_pairs=60)
    assert not (out / "energy.png").exists()  # of the first report; this one has no model
    assert (out / "mine.txt").read_text() == "kept"
    assert all(second[key] == written[1][key] for key in ("js_divergence", "js_floor", "bonds"))


def test_without_times_lags_are_frames(run, reference, tmp_path):
    bare = replace(run, time=None)
    result = report(bare, reference, tmp_path / "out", dihedrals=["psi"], n_pairs=20)
    assert result["integrated_autocorrelation_time_ps"] == {"psi": None}
    assert result["integrated_autocorrelation_time_frames"]["psi"] > 2
    assert set(result["basin_populations"]["psi"]) == {"trans", "gauche+", "gauche-"}
    assert not (tmp_path / "out" / "dihedrals.png").exists()
    again = compare(bare, reference, ["1-2-3-4"], n_pairs=20, frame_interval=2.0)
    time = again.autocorrelations["1-2-3-4"].integrated_time_ps
    assert time == pytest.approx(2 * result["integrated_autocorrelation_time_frames"]["psi"])


def test_butane_against_its_reference(shared_data, tmp_path):
    trajectory = read_snapshots(shared_data / "butane_traj_brownian_300K.npz")
    reference = read_snapshots(shared_data / "butane_ua_300K.npz")
    short = replace(
        trajectory,
        positions=trajectory.positions[::10],
        replica=(np.arange(10000) // 500).astype(np.int32),
        time=np.tile(np.arange(500) * 2.5, 20),
    )
    reference = replace(reference, positions=reference.positions[:5000])
    result = report(short, reference, tmp_path / "out", n_pairs=40)
    assert result["surface"] == ["C1-C2-C3-C4"]
    # 33 +- 3 ps by two longer runs; this one alone 37 ps, known to about 15 %.
    assert 18 < result["integrated_autocorrelation_time_ps"]["C1-C2-C3-C4"] < 60
    assert result["js_divergence"] < result["js_floor"] + 6 * result["js_floor_sd"]
    shares = result["basin_populations"]["C1-C2-C3-C4"]
    assert shares["trans"]["reference"] == pytest.approx(0.66275, abs=5 * 0.0067)
    assert shares["trans"]["run"] == pytest.approx(0.707, abs=0.02)
    assert result["bond_length_max_relative_deviation"] < 0.01
    radius = result["radius_of_gyration"]
    assert abs(radius["run"] - radius["reference"]) < 5 * np.hypot(radius["run_error"], radius["reference_error"])
    assert radius["reference"] == pytest.approx(0.14604, abs=5 * radius["reference_error"])


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"dihedrals": ["omega"]}, "dihedrals: expected names among phi, psi"),
        ({"dihedrals": ["phi", "phi"]}, "dihedrals: expected each dihedral once"),
        ({"dihedrals": [(0, 1, 2, 9)]}, "dihedrals: expected four different atom indices from 0 to 4"),
        ({"dihedrals": "phi"}, "dihedrals: expected a list"),
        ({"dihedrals": []}, "dihedrals: expected a list"),
        ({"bins": 0}, "bins: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"n_pairs": 1}, "n_pairs: expected"),
        ({"frame_interval": 0}, "frame_interval: expected"),
        ({"replicas_lost": -1}, "replicas_lost: expected"),
        ({"energy_frames": 0, "model": Stretch()}, "energy_frames: expected"),
    ],
)
def test_bad_arguments(run, reference, tmp_path, changes, start):
    with pytest.raises(InputError) as error:
        report(run, reference, tmp_path / "out", **changes)
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def _changed(snapshots: Snapshots, what: str) -> Snapshots:
    if what == "one atom less":
        return replace(snapshots, positions=snapshots.positions[:, :4], molecule=BACKBONE.select(range(4)))
    if what == "another element":
        return replace(snapshots, molecule=replace(BACKBONE, atomic_numbers=(6, 7, 6, 8, 7)))
    if what == "empty":
        return replace(snapshots, positions=snapshots.positions[:0])
    if what == "no bonds":
        return replace(snapshots, molecule=replace(BACKBONE, bonds=()))
    positions = snapshots.positions.copy()
    positions[5, 2, 1] = np.nan
    return replace(snapshots, positions=positions)


@pytest.mark.parametrize(
    ("side", "what", "start"),
    [
        ("reference", "one atom less", "reference: expected the 5 atoms of the trajectory, got 4"),
        ("trajectory", "one atom less", "reference: expected the 4 atoms of the trajectory, got 5"),
        ("reference", "another element", "reference: expected the atoms of the trajectory in the same order"),
        ("reference", "empty", "reference: expected at least one frame"),
        ("trajectory", "empty", "trajectory: expected at least one frame"),
        ("reference", "nan", "reference: expected finite positions, got a NaN or an infinity in frame 5"),
        ("trajectory", "nan", "trajectory: expected finite positions"),
        ("both", "no bonds", "dihedrals: expected a molecule with three bonds in a row"),
    ],
)
def test_bad_frames(run, reference, tmp_path, side, what, start):
    first = _changed(run, what) if side in ("trajectory", "both") else run
    second = _changed(reference, what) if side in ("reference", "both") else reference
    with pytest.raises(InputError) as error:
        report(first, second, tmp_path / "out")
    assert str(error.value).startswith(start)
    assert not (tmp_path / "out").exists()


def test_out_dir_that_is_a_file(run, reference, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match="^out_dir: expected"):
            report(run, reference, out, n_pairs=20)
    assert (tmp_path / "file").read_text() == "mine"
