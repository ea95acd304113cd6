"""Writing trajectories: formats, layouts, lost replicas, extension, and nothing half overwritten."""

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

from diffmd_fast.errors import InputError
from diffmd_fast.io import (
    Molecule,
    TrajectoryStore,
    check_output,
    formats,
    read_snapshots,
    sources,
    trajectory,
    write_trajectory,
)

pytest.importorskip("tables", reason="HDF5 needs the package tables")

FORMATS = ("xtc", "dcd", "h5", "npz")
EXACT = ("dcd", "h5", "npz")
# XTC rounds to 1/1000 nm (from 10 atoms on); DCD is in Angstrom, and a division by 10 costs a rounding.
TOLERANCE = {"xtc": 0.00051, "dcd": 1.5e-7, "h5": 0.0, "npz": 0.0}
N_ATOMS, N_REPLICAS = 12, 3
MOLECULE = Molecule(
    names=[f"C{i}" for i in range(N_ATOMS)],
    atomic_numbers=[6] * (N_ATOMS - 1) + [0],
    residue_names=["ALK"] * N_ATOMS,
    residue_index=[0] * N_ATOMS,
    bonds=[(i, i + 1) for i in range(N_ATOMS - 1)],
)
HEADER = {
    "n_replicas": N_REPLICAS, "n_atoms": N_ATOMS, "dtype": "float32", "save_every": 5, "time_step": 0.02,
    "temperature": 310.0,
}  # fmt: skip


def run_positions(n_frames: int) -> np.ndarray:
    """[n_frames, replicas, atoms, 3]; a longer run begins with the shorter one."""
    rng = np.random.default_rng(5)
    return np.stack([rng.normal(size=(N_REPLICAS, N_ATOMS, 3)) for _ in range(n_frames)]).astype(np.float32)


def append(store: TrajectoryStore, start: int, stop: int, lost_from: dict | None = None) -> None:
    positions = run_positions(stop)
    for index in range(start, stop):
        alive = np.array([index < (lost_from or {}).get(r, stop) for r in range(N_REPLICAS)])
        frame = positions[index].copy()
        frame[~alive] = np.nan
        store.append(5 * index, frame, alive)


def stored_run(path: Path, n_frames: int, lost_from: dict | None = None, **changes) -> TrajectoryStore:
    store = TrajectoryStore.create(path, {**HEADER, **changes})
    append(store, 0, n_frames, lost_from)
    return store


def check_replicas(found, n_frames, tolerance: float, counts=None) -> None:
    counts = counts or [n_frames] * N_REPLICAS
    wanted = run_positions(n_frames)
    assert found.replica.tolist() == np.repeat(np.arange(N_REPLICAS), counts).tolist()
    for replica, count in enumerate(counts):
        mine = found.positions[found.replica == replica]
        np.testing.assert_allclose(mine, wanted[:count, replica], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found.time[found.replica == replica], 0.1 * np.arange(count), atol=1e-6)


@pytest.mark.parametrize("per_replica", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(tmp_path, suffix, per_replica):
    path = tmp_path / f"traj.{suffix}"
    with stored_run(tmp_path / "run.restart", 6) as store:
        content = write_trajectory(path, store, MOLECULE, per_replica=per_replica)
    found = read_snapshots(path)
    check_replicas(found, 6, TOLERANCE[suffix])
    assert found.molecule == MOLECULE
    assert found.positions.dtype == np.float32
    assert found.temperature == 310.0
    assert found.metadata == content == json.loads((tmp_path / "traj.json").read_text())
    assert content["run"] == HEADER
    assert content["frames_per_replica"] == [6, 6, 6]
    assert content["time_between_frames"] == pytest.approx(0.1)
    names = [f"traj_r{r:04d}.{suffix}" for r in range(3)] if per_replica else [f"traj.{suffix}"]
    assert {file.name for file in tmp_path.iterdir()} == {*names, "traj.json", "traj.pdb", "run.restart"}
    one = read_snapshots(tmp_path / names[-1])
    assert set(one.replica) == ({2} if per_replica else {0, 1, 2})
    many = read_snapshots([tmp_path / name for name in names])
    np.testing.assert_array_equal(many.positions, found.positions)
    np.testing.assert_array_equal(many.replica, found.replica)


@pytest.mark.parametrize("suffix", ["xtc", "h5", "npz"])
def test_replicas_are_found_without_the_sidecar(tmp_path, suffix):
    path = tmp_path / f"traj.{suffix}"
    with stored_run(tmp_path / "run.restart", 4) as store:
        write_trajectory(path, store, MOLECULE)
    (tmp_path / "traj.json").unlink()
    found = read_snapshots(path)
    check_replicas(found, 4, TOLERANCE[suffix])
    assert found.metadata is None
    assert found.molecule == MOLECULE


def test_files_are_good_for_mdtraj(tmp_path):
    import mdtraj

    with stored_run(tmp_path / "run.restart", 4) as store:
        for suffix in ("xtc", "dcd", "h5"):
            write_trajectory(tmp_path / f"traj.{suffix}", store, MOLECULE)
            loaded = mdtraj.load(str(tmp_path / f"traj.{suffix}"), top=str(tmp_path / "traj.pdb"))
            np.testing.assert_allclose(loaded.xyz[4:8], run_positions(4)[:, 1], atol=0.00051)
            assert loaded.topology.n_bonds == N_ATOMS - 1
            assert loaded.unitcell_lengths is None


def test_small_molecules_are_exact_in_xtc(tmp_path):
    butane = MOLECULE.select(range(4))
    positions = run_positions(3)[:, :, :4]
    write_trajectory(tmp_path / "traj.xtc", positions, butane, [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(read_snapshots(tmp_path / "traj.xtc").positions[3:6], positions[:, 1])


def test_float64_runs(tmp_path):
    with TrajectoryStore.create(tmp_path / "double", {**HEADER, "dtype": "float64"}) as store:
        for index in range(3):
            store.append(5 * index, run_positions(3)[index].astype(np.float64))
        for suffix in FORMATS:
            write_trajectory(tmp_path / f"traj.{suffix}", store, MOLECULE)
            check_replicas(read_snapshots(tmp_path / f"traj.{suffix}"), 3, TOLERANCE[suffix])


@pytest.mark.parametrize("per_replica", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_frames_after_a_loss_are_not_written(tmp_path, suffix, per_replica):
    path = tmp_path / f"traj.{suffix}"
    with stored_run(tmp_path / "run.restart", 6, {0: 0, 1: 4}) as store:
        content = write_trajectory(
            path,
            store,
            MOLECULE,
            per_replica=per_replica,
            lost=[{"replica": 1, "step": 17, "reason": "not finite"}],
        )
    assert content["frames_per_replica"] == [0, 4, 6]
    assert content["lost"] == [
        {"replica": 0, "step": 0, "reason": "lost before this frame was saved"},
        {"replica": 1, "step": 17, "reason": "not finite"},
    ]
    check_replicas(read_snapshots(path), 6, TOLERANCE[suffix], [0, 4, 6])
    assert not (tmp_path / f"traj_r0000.{suffix}").exists()


def test_array_source(tmp_path):
    positions = run_positions(5)
    alive = np.ones((5, 3), bool)
    alive[2, 1] = False  # and alive again afterwards, which must not count
    positions[2, 1] = np.inf
    content = write_trajectory(
        tmp_path / "a.npz", positions, MOLECULE, 0.1 * np.arange(5), alive=alive, run={"a": 1}
    )
    assert content["frames_per_replica"] == [5, 2, 5]
    assert content["run"] == {"a": 1}
    found = read_snapshots(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.positions[5:7], positions[:2, 1])
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["positions"].shape == (12, N_ATOMS, 3)
        assert archive["replica"].dtype == np.int32
        assert archive["time"].dtype == np.float64
        assert archive["n_replicas"] == 3


def test_uneven_times(tmp_path):
    times = np.array([0.0, 1.0, 1.5])
    for suffix in ("xtc", "npz", "h5"):
        content = write_trajectory(tmp_path / f"a.{suffix}", run_positions(3), MOLECULE, times)
        assert content["time_between_frames"] is None
        assert read_snapshots(tmp_path / f"a.{suffix}").time.tolist() == [0.0, 1.0, 1.5] * 3


@pytest.mark.parametrize("blocks", ["whole", "few replicas", "few frames"])
def test_blocks(tmp_path, monkeypatch, blocks):
    """The same file however little of the run fits into memory at once."""
    frame_bytes = N_ATOMS * 12
    monkeypatch.setattr(
        trajectory,
        "_BLOCK_BYTES",
        {"whole": 1 << 26, "few replicas": 2 * 7 * frame_bytes, "few frames": 3 * frame_bytes}[blocks],
    )
    with stored_run(tmp_path / "run.restart", 7, {1: 5}) as store:
        write_trajectory(tmp_path / "traj.h5", store, MOLECULE)
    check_replicas(read_snapshots(tmp_path / "traj.h5"), 7, 0.0, [7, 5, 7])


# ---- extension -------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_replica", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_extension(tmp_path, monkeypatch, suffix, per_replica):
    """Three legs, each shrunk at its end, give the file that one run gives; twice over is no different."""
    monkeypatch.setattr(formats, "frame_chunk", lambda n_atoms: 2)
    monkeypatch.setattr(sources, "frame_chunk", lambda n_atoms: 2)
    path = tmp_path / f"traj.{suffix}"
    losses = {0: 6, 2: 2}
    with stored_run(tmp_path / "whole.restart", 9, losses) as store:
        write_trajectory(tmp_path / f"whole.{suffix}", store, MOLECULE, per_replica=per_replica)
    whole = read_snapshots(tmp_path / f"whole.{suffix}")

    with stored_run(tmp_path / "run.restart", 4, losses) as store:
        write_trajectory(
            path,
            store,
            MOLECULE,
            per_replica=per_replica,
            lost=[{"replica": 2, "step": 8, "reason": "left the support"}],
        )
        store.shrink()
    for start, stop in ((4, 5), (5, 9)):
        with TrajectoryStore.open(tmp_path / "run.restart", append=True) as store:
            append(store, start, stop, losses)
            for _ in range(2):  # as after a kill between writing and shrinking
                write_trajectory(path, store, MOLECULE, per_replica=per_replica, previous=path)
            store.shrink()
    found = read_snapshots(path)
    np.testing.assert_array_equal(found.positions, whole.positions)
    np.testing.assert_array_equal(found.replica, whole.replica)
    np.testing.assert_allclose(found.time, whole.time, atol=1e-9)
    assert found.metadata["frames_per_replica"] == [6, 9, 2]
    assert [(loss["replica"], loss["reason"]) for loss in found.metadata["lost"]] == [
        (0, "lost before this frame was saved"),
        (2, "left the support"),
    ]


@pytest.mark.parametrize("suffix", ["xtc", "h5", "npz"])
def test_extension_when_the_sidecar_is_of_the_shorter_run(tmp_path, suffix):
    """A kill between the two renames leaves the new trajectory with the old sidecar."""
    path = tmp_path / f"traj.{suffix}"
    with stored_run(tmp_path / "run.restart", 4) as store:
        write_trajectory(path, store, MOLECULE)
        store.shrink()
        append(store, 4, 7)
        old = (tmp_path / "traj.json").read_text()
        write_trajectory(path, store, MOLECULE, previous=path)
        (tmp_path / "traj.json").write_text(old)
        with pytest.raises(InputError, match="^path: expected 12 frames .* got 21"):
            read_snapshots(path)
        write_trajectory(path, store, MOLECULE, previous=path)
    check_replicas(read_snapshots(path), 7, TOLERANCE[suffix])


def test_extension_of_an_array(tmp_path):
    positions = run_positions(5)
    write_trajectory(tmp_path / "a.npz", positions[:2], MOLECULE, [0.0, 0.1])
    write_trajectory(
        tmp_path / "b.dcd", positions[2:], MOLECULE, [0.2, 0.3, 0.4], previous=tmp_path / "a.npz"
    )
    check_replicas(read_snapshots(tmp_path / "b.dcd"), 5, TOLERANCE["dcd"])


def test_extension_needs_the_earlier_frames(tmp_path):
    path = tmp_path / "traj.npz"
    with stored_run(tmp_path / "run.restart", 4) as store:
        write_trajectory(tmp_path / "short.npz", store.block(slice(0, 2), slice(None)), MOLECULE, [0.0, 0.1])
        write_trajectory(
            tmp_path / "other.npz", run_positions(4)[:, :, :3], MOLECULE.select(range(3)), np.arange(4.0)
        )
        more = np.repeat(run_positions(4), 2, axis=1)
        write_trajectory(tmp_path / "more.npz", more, MOLECULE, np.arange(4.0))
        store.shrink()
        append(store, 4, 6)
        for previous in (None, "short.npz", "other.npz", "more.npz", "absent.npz"):
            with pytest.raises(InputError, match=r"^previous: expected [^\n]*$"):
                write_trajectory(path, store, MOLECULE, previous=previous and tmp_path / previous)
    assert not path.exists()


# ---- what must not be lost -------------------------------------------------------------------------


def test_an_existing_trajectory_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "traj.xtc"
    write_trajectory(path, run_positions(3), MOLECULE, np.arange(3.0))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for value in (np.nan, 5e6):
        bad = run_positions(4)
        bad[3, 2, 0, 0] = value
        with pytest.raises(InputError, match=r"^(source|positions): expected [^\n]*replica 2[^\n]*$"):
            write_trajectory(path, bad, MOLECULE, np.arange(4.0))
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_far_away_molecules(tmp_path):
    far = run_positions(2) + np.float32(2000.0)
    write_trajectory(tmp_path / "traj.h5", far, MOLECULE, [0.0, 1.0])
    np.testing.assert_array_equal(read_snapshots(tmp_path / "traj.h5").positions[:2], far[:, 0])
    assert read_snapshots(tmp_path / "traj.pdb").n_atoms == N_ATOMS


def test_a_foreign_structure_beside_is_not_overwritten(tmp_path):
    mine = tmp_path / "traj.pdb"
    mine.write_text("HEADER    MY OWN STRUCTURE\n")
    content = write_trajectory(tmp_path / "traj.xtc", run_positions(2), MOLECULE, [0.0, 1.0])
    assert mine.read_text() == "HEADER    MY OWN STRUCTURE\n"
    assert content["topology"] == "traj_topology.pdb"
    assert read_snapshots(tmp_path / "traj.xtc").molecule == MOLECULE
    (tmp_path / "data.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="^out: expected a name whose companion data.json is free"):
        check_output(tmp_path / "data.xtc", "out")


def test_a_corrupt_restart_file_is_not_converted(tmp_path):
    path = tmp_path / "run.restart"
    stored_run(path, 5).close()
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with (
        TrajectoryStore.open(path) as store,
        pytest.raises(InputError, match="^store: expected intact frames"),
    ):
        write_trajectory(tmp_path / "traj.npz", store, MOLECULE)
    assert [file.name for file in tmp_path.iterdir()] == ["run.restart"]


def test_a_running_store_can_be_converted(tmp_path):
    with stored_run(tmp_path / "run.restart", 3) as writing:
        with TrajectoryStore.open(tmp_path / "run.restart") as reading:
            write_trajectory(tmp_path / "traj.npz", reading, MOLECULE)
        append(writing, 3, 5)
    check_replicas(read_snapshots(tmp_path / "traj.npz"), 3, 0.0)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"path": "traj.trr"}, "path"),
        ({"path": "traj"}, "path"),
        ({"path": "nowhere/traj.xtc"}, "path"),
        ({"source": np.zeros((2, 3, 4))}, "source"),
        ({"source": np.zeros((2, 3, N_ATOMS + 1, 3))}, "source"),
        ({"source": np.zeros((0, 3, N_ATOMS, 3))}, "source"),
        ({"source": np.zeros((2, 3, N_ATOMS, 3), int)}, "source"),
        ({"alive": np.zeros((2, 3), bool)}, "source"),
        ({"alive": np.zeros((3, 2), bool)}, "alive"),
        ({"times": None}, "times"),
        ({"times": [0.0]}, "times"),
        ({"times": [0.0, 0.0]}, "times"),
        ({"times": [0.0, np.nan]}, "times"),
        ({"lost": [{"replica": 3, "step": 1, "reason": "x"}]}, "lost.replica"),
        ({"lost": [{"replica": 0, "step": -1, "reason": "x"}]}, "lost.step"),
        ({"lost": [{"replica": 0}]}, "lost"),
        ({"run": {"model": object()}}, "run"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, changes, argument):
    monkeypatch.chdir(tmp_path)
    arguments = {
        "path": "traj.xtc",
        "source": run_positions(2),
        "molecule": MOLECULE,
        "times": [0.0, 1.0],
        **changes,
    }
    with pytest.raises(InputError, match=rf"^{argument}: expected [^\n]*, got [^\n]*$"):
        write_trajectory(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_with_a_store(tmp_path):
    with (
        TrajectoryStore.create(tmp_path / "empty", HEADER) as empty,
        pytest.raises(InputError, match="^source: "),
    ):
        write_trajectory(tmp_path / "traj.xtc", empty, MOLECULE)
    with stored_run(tmp_path / "run.restart", 2, time_step=None) as store:
        with pytest.raises(InputError, match="^times: expected times"):
            write_trajectory(tmp_path / "traj.xtc", store, MOLECULE)
        with pytest.raises(InputError, match="^molecule: expected 12 atoms"):
            write_trajectory(tmp_path / "traj.xtc", store, MOLECULE.select(range(3)), [0.0, 1.0])


def test_hdf5_without_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^out: expected the package tables for HDF5 \(pip install tables\)"
    ):
        check_output(tmp_path / "traj.h5", "out")
    assert check_output(tmp_path / "traj.dcd") == tmp_path / "traj.dcd"


def test_nothing_is_printed(tmp_path, capfd):
    """MDTraj's C code greets on stdout and complains on stderr; users see neither."""
    for suffix in ("dcd", "xtc"):
        path = tmp_path / f"a.{suffix}"
        write_trajectory(path, run_positions(4), MOLECULE, np.arange(4.0))
        read_snapshots(path)
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(InputError):
            read_snapshots(path)
    ctypes.CDLL(None).fflush(None)  # what C code printed may still wait in its own buffer
    assert capfd.readouterr() == ("", "")
