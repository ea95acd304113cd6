"""Reading: reference files, selections, topologies from every place, and one line for each bad file."""

import json
import zipfile

import numpy as np
import pytest

from diffmd_fast.errors import InputError
from diffmd_fast.io import Molecule, load_topology, read_snapshots, write_trajectory

pytest.importorskip("tables", reason="HDF5 needs the package tables")

N_ATOMS = 11
POSITIONS = np.random.default_rng(3).normal(size=(8, N_ATOMS, 3)).astype(np.float32)
MOLECULE = Molecule(
    names=[f"C{i}" for i in range(6)] + [f"H{i}" for i in range(5)],
    atomic_numbers=[6] * 6 + [1] * 5,
    residue_names=["MOL"] * N_ATOMS,
    residue_index=[0] * N_ATOMS,
    bonds=[(i, i + 1) for i in range(5)] + [(i, i + 6) for i in range(5)],
)


@pytest.fixture
def files(tmp_path):
    """The same frames in every format, with names of their own so that no companion is shared."""
    for suffix in ("xtc", "dcd", "h5", "npz"):
        write_trajectory(tmp_path / f"{suffix}.{suffix}", POSITIONS[:, None], MOLECULE, np.arange(8.0))
    return tmp_path


def save_pdb(path, positions=POSITIONS):
    import mdtraj

    mdtraj.Trajectory(positions, MOLECULE.to_mdtraj()).save_pdb(str(path))
    return path


def test_pdb(tmp_path):
    found = read_snapshots(save_pdb(tmp_path / "models.pdb"))
    np.testing.assert_allclose(found.positions, POSITIONS, atol=0.00006)
    assert found.molecule == MOLECULE
    assert found.time is None
    assert found.replica is None


@pytest.mark.parametrize("suffix", ["xtc", "dcd", "h5", "npz"])
def test_atoms(files, suffix):
    path = files / f"{suffix}.{suffix}"
    whole = read_snapshots(path).positions
    for atoms, indices in (("heavy", range(6)), ("name H1 or name C0", [0, 7])):
        found = read_snapshots(path, atoms=atoms)
        np.testing.assert_array_equal(found.positions, whole[:, indices])
        assert found.molecule == MOLECULE.select(indices)
    for bad in ("name Q", "what is this", ""):
        with pytest.raises(InputError, match=r"^atoms: expected [^\n]*, got [^\n]*$"):
            read_snapshots(path, atoms=bad)


def test_topology_from_every_place(files, tmp_path):
    path = files / "xtc.xtc"
    (files / "xtc.json").unlink()
    assert read_snapshots(path).molecule == MOLECULE, "from the PDB of the same stem"
    (files / "xtc.pdb").unlink()
    with pytest.raises(InputError, match="^topology: expected a structure file"):
        read_snapshots(path)
    for topology in (MOLECULE, files / "npz.npz", files / "h5.h5", files / "npz.pdb", str(files / "h5.pdb")):
        assert read_snapshots(path, topology).molecule == MOLECULE
    renamed = Molecule(**{**MOLECULE.to_dict(), "residue_names": ["LIG"] * N_ATOMS})
    assert read_snapshots(files / "npz.npz", renamed).molecule == renamed, "what is given comes first"


def test_wrong_topology(files, tmp_path):
    garbage = tmp_path / "garbage.pdb"
    garbage.write_text("hello\n")
    odd = tmp_path / "structure.docx"
    odd.write_bytes(b"\x00\xff")
    for bad in (MOLECULE.select(range(5)), garbage, odd, tmp_path / "absent.pdb"):
        for name in ("xtc.xtc", "npz.npz"):
            with pytest.raises(InputError, match=r"^topology: expected [^\n]*, got [^\n]*$"):
                read_snapshots(files / name, bad)


def test_several_files(files, tmp_path):
    found = read_snapshots([files / "npz.npz", str(files / "h5.h5"), files / "dcd.dcd"])
    assert found.replica.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert found.time.tolist() == list(range(8)) * 3
    assert found.metadata is None
    np.savez(tmp_path / "other.npz", positions=POSITIONS)
    with pytest.raises(InputError, match="^path: expected files of one molecule"):
        read_snapshots([files / "npz.npz", tmp_path / "other.npz"])
    with pytest.raises(InputError, match="^path: expected at least one file"):
        read_snapshots([])


def test_train_and_valid(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz",
        train_positions=POSITIONS[:6],
        valid_positions=POSITIONS[6:],
        train_run=np.arange(6),
        temperature=np.float64(280),
        **MOLECULE.to_npz_arrays(),
    )
    found = read_snapshots(tmp_path / "a.npz", atoms="heavy")
    np.testing.assert_array_equal(found.positions, POSITIONS[:6, :6])
    np.testing.assert_array_equal(found.valid_positions, POSITIONS[6:, :6])
    assert found.replica.tolist() == list(range(6))
    assert found.temperature == 280.0


def test_float64_and_bare_npz(tmp_path):
    np.savez(tmp_path / "a.npz", positions=POSITIONS.astype(np.float64), time_between_frames=0.5)
    found = read_snapshots(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.positions, POSITIONS)
    assert found.positions.dtype == np.float32
    assert found.molecule.names[:2] == ("X1", "X2")
    assert found.time.tolist() == [0.5 * i for i in range(8)]


# ---- damaged files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("suffix", ["xtc", "dcd", "h5", "npz"])
def test_truncated(files, suffix, sidecar):
    path = files / f"{suffix}.{suffix}"
    whole = path.read_bytes()
    if not sidecar:
        (files / f"{suffix}.json").unlink()
    cuts = {1, 2, 5, 40, 150, len(whole) // 2, len(whole) - 50, len(whole) - 3, len(whole)}
    if suffix == "xtc":  # its frames lean on nothing but their own length; only a cut between two cannot be seen
        import mdtraj

        with mdtraj.formats.XTCTrajectoryFile(str(path)) as file:
            starts = file.offsets.tolist()
        cuts |= {len(whole) - start - more for start in starts[1:] for more in (1, 3, 30)}
    for missing in cuts:
        path.write_bytes(whole[: len(whole) - missing])
        with pytest.raises(InputError, match=r"^snapshots: expected [^\n]*, got [^\n]*$"):
            read_snapshots(path, MOLECULE, argument="snapshots")


@pytest.mark.parametrize("suffix", ["xtc", "dcd", "h5", "npz", "pdb"])
def test_garbage(tmp_path, suffix):
    path = tmp_path / f"garbage.{suffix}"
    for seed in range(3):
        path.write_bytes(np.random.default_rng(seed).bytes(700))
        with pytest.raises(InputError, match=r"^path: expected [^\n]*, got [^\n]*$"):
            read_snapshots(path, MOLECULE)


@pytest.mark.parametrize("suffix", ["xtc", "dcd", "h5", "npz"])
def test_not_finite(tmp_path, suffix):
    import mdtraj

    bad = POSITIONS.copy()
    bad[5, 2, 1] = np.inf
    path = tmp_path / f"bad.{suffix}"
    if suffix == "npz":
        np.savez(path, positions=bad)
    elif suffix == "xtc":  # below 10 atoms XTC keeps plain floats
        mdtraj.Trajectory(bad[:, :4], MOLECULE.select(range(4)).to_mdtraj()).save(str(path))
    else:
        mdtraj.Trajectory(bad, MOLECULE.to_mdtraj()).save(str(path))
    molecule = MOLECULE.select(range(4)) if suffix == "xtc" else MOLECULE
    with pytest.raises(InputError, match="^path: expected finite positions, got NaN or infinity in frame 5"):
        read_snapshots(path, molecule)


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    "arrays",
    [
        {"coordinates": POSITIONS},
        {"positions": POSITIONS[0]},
        {"positions": POSITIONS[..., :2]},
        {"positions": POSITIONS[:0]},
        {"positions": POSITIONS[:, :0]},
        {"positions": POSITIONS.astype(int)},
        {"positions": np.array([Payload()], object)},
        {"positions": POSITIONS, "atom_names": np.array([Payload()] * N_ATOMS, object)},
        {"positions": POSITIONS, "atom_names": np.array(["C"])},
        {"positions": POSITIONS, "bonds": np.array([[0, N_ATOMS]])},
        {"positions": POSITIONS, "time": np.arange(7.0)},
        {"positions": POSITIONS, "temperature": np.array("warm")},
        {"train_positions": POSITIONS, "valid_positions": POSITIONS[:, :3]},
        {"train_positions": POSITIONS, "valid_positions": POSITIONS * np.nan},
    ],
    ids=lambda arrays: "-".join(f"{key}{np.shape(value)}" for key, value in arrays.items()),
)
def test_bad_npz(tmp_path, arrays):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=r"^path: expected [^\n]*, got [^\n]*$"):
        read_snapshots(tmp_path / "bad.npz")


def test_npz_whose_header_promises_too_much(tmp_path):
    """Memory is not reserved on the word of a header: a small file cannot hold 10^12 frames."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("positions.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f4", "fortran_order": False, "shape": (10**12, N_ATOMS, 3)}
        )
        member.write(bytes(1000))
    with pytest.raises(InputError, match="^path: expected a whole NPZ file"):
        read_snapshots(path)


def test_missing_and_unknown(tmp_path):
    for name in ("absent.xtc", "absent.npz", "frames.txt", "frames"):
        with pytest.raises(InputError, match=r"^path: expected [^\n]*, got [^\n]*$"):
            read_snapshots(tmp_path / name)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match="^path: expected an existing file"):
        read_snapshots(tmp_path / "folder.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2}, {"version": None}, {"frames_per_replica": [-8]}, {"frames_per_replica": 8},
        {"n_replicas": 2},
        {"frames_per_replica": [7]}, {"per_replica": 1}, {"molecule": None}, {"molecule": {}}, {"lost": None},
        {"first_time": "now"},
    ],
    ids=str,
)  # fmt: skip
def test_edited_sidecar(files, changes):
    sidecar = files / "npz.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))
    with pytest.raises(InputError, match=r"^path: expected [^\n]*, got [^\n]*$"):
        read_snapshots(files / "npz.npz")


def test_other_peoples_json_is_passed_over(files):
    for text in ("{", "[]", '{"format": "something else"}', "\x00"):
        (files / "npz.json").write_text(text)
        assert read_snapshots(files / "npz.npz").metadata is None


# ---- the reference data ----------------------------------------------------------------------------


def test_reference_files(shared_data):
    found = read_snapshots(shared_data / "ala2_implicit_300K_train.npz", atoms="heavy")
    assert found.positions.shape == (40000, 10, 3)
    assert found.valid_positions.shape == (4947, 10, 3)
    assert found.temperature == 300.0
    assert set(found.replica) == set(range(16))
    butane = read_snapshots(shared_data / "butane_traj_brownian_300K.npz")
    assert butane.time[-1] == pytest.approx(24999.75)
    assert list(butane.molecule.find_dihedrals()) == ["C1-C2-C3-C4"]
    cluster = read_snapshots(shared_data / "lj13_reduced.npz")
    assert cluster.temperature is None
    assert cluster.molecule.bonds == ()
    assert load_topology(shared_data / "hexadecane_ua_300K.npz").n_atoms == 16
