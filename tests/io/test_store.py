"""The restart file survives kills, torn ends and tampering, and gives back exactly what went in."""

import os
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmd_fast.errors import InputError
from diffmd_fast.io import TrajectoryStore

HEADER = {"n_replicas": 3, "n_atoms": 2, "dtype": "float32", "save_every": 10, "time_step": 0.002, "seed": 7}


def frame(step: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(step).normal(size=(3, 2, 3)).astype(dtype)


def filled(path: Path, n_frames: int = 4, **changes) -> Path:
    header = {**HEADER, **changes}
    with TrajectoryStore.create(path, header) as store:
        for step in range(0, 10 * n_frames, 10):
            store.append(step, frame(step, header["dtype"]))
    return path


def record_size(dtype: str = "float32") -> int:
    return 8 + 3 + 3 * 2 * 3 * np.dtype(dtype).itemsize + 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(tmp_path, dtype):
    path = filled(tmp_path / "run.restart", dtype=dtype)
    with TrajectoryStore.open(path) as store:
        assert store.header == {**HEADER, "dtype": dtype}
        assert (store.n_frames, store.first_frame, store.dtype) == (4, 0, np.dtype(dtype))
        assert store.steps().tolist() == [0, 10, 20, 30]
        for step, positions, alive in store.frames():
            assert positions.dtype == dtype
            np.testing.assert_array_equal(positions, frame(step, dtype))
            assert alive.all()
        np.testing.assert_array_equal(store.block(slice(1, 3), slice(2, 3))[1, 0], frame(20, dtype)[2])
        assert store.last()[0] == 30
        store.verify()
    empty = filled(tmp_path / "empty.restart", 0, dtype=dtype)
    assert path.stat().st_size == empty.stat().st_size + 4 * record_size(dtype)


def test_append_after_reopening(tmp_path):
    path = filled(tmp_path / "run.restart", 2)
    with TrajectoryStore.open(path, append=True) as store:
        store.append(20, frame(20), np.array([True, False, True]))
        assert store.n_frames == 3
        assert store.steps().tolist() == [0, 10, 20], "the map of the file follows it as it grows"
        store.append(30, frame(30), np.array([True, False, True]))
    with TrajectoryStore.open(path) as store:
        assert store.steps().tolist() == [0, 10, 20, 30]
        assert store.frames_alive().tolist() == [4, 2, 4]
        assert store.last()[2].tolist() == [True, False, True]


def test_kill_9(tmp_path):
    """A process writing as fast as it can is killed; what is left is whole frames, and can be continued."""
    path = tmp_path / "run.restart"
    code = f"""
import numpy as np
from diffmd_fast.io import TrajectoryStore
store = TrajectoryStore.create({str(path)!r}, dict(n_replicas=64, n_atoms=100, dtype="float64"))
print("ready", flush=True)
step = 0
while True:
    store.append(step, np.full((64, 100, 3), float(step)))
    if step == 200: print("running", flush=True)
    step += 1
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert writer.stdout.readline() == "ready\n"
        assert writer.stdout.readline() == "running\n"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert writer.returncode == -signal.SIGKILL
    with TrajectoryStore.open(path, append=True) as store:
        assert store.n_frames > 200
        store.verify()
        step, positions, _ = store.last()
        assert step == store.n_frames - 1
        assert (positions == step).all()
        store.append(step + 1, positions + 1)
    with TrajectoryStore.open(path) as store:
        assert store.steps().tolist() == list(range(step + 2))


def test_truncated_at_every_byte_of_the_last_frame(tmp_path):
    whole = filled(tmp_path / "whole.restart", 3).read_bytes()
    path = tmp_path / "cut.restart"
    for missing in range(1, record_size() + 1):
        path.write_bytes(whole[:-missing])
        with TrajectoryStore.open(path) as store:
            assert store.n_frames == 2
        assert path.stat().st_size == len(whole) - missing, "reading leaves the file alone"
        with TrajectoryStore.open(path, append=True) as store:
            assert store.last()[0] == 10
            store.append(20, frame(20))
        assert path.read_bytes() == whole


def test_truncated_at_every_byte_of_the_header(tmp_path):
    whole = filled(tmp_path / "whole.restart", 0).read_bytes()
    path = tmp_path / "cut.restart"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"^path: expected [^\n]*cut off in its header$"):
            TrajectoryStore.open(path)
    path.write_bytes(whole)
    with TrajectoryStore.open(path) as store:
        assert store.n_frames == 0
        with pytest.raises(InputError, match="^store: expected"):
            store.last()


def test_corrupt_frames(tmp_path):
    whole = filled(tmp_path / "whole.restart", 3).read_bytes()
    path = tmp_path / "bad.restart"
    at_last, at_middle = len(whole) - 30, len(whole) - 30 - record_size()
    path.write_bytes(whole[:at_last] + b"\xff" + whole[at_last + 1 :])
    with TrajectoryStore.open(path) as store:
        assert store.n_frames == 2, "a damaged last frame is left out"
    path.write_bytes(whole[:at_middle] + b"\xff" + whole[at_middle + 1 :])
    with TrajectoryStore.open(path) as store:
        assert store.n_frames == 3
        assert store.last()[0] == 20, "the run can go on"
        with pytest.raises(
            InputError, match="^store: expected intact frames, got a wrong checksum in frame 1"
        ):
            store.verify()


def test_edited_header(tmp_path):
    whole = filled(tmp_path / "whole.restart").read_bytes()
    path = tmp_path / "edited.restart"
    assert whole.count(b'"seed": 7') == 1
    path.write_bytes(whole.replace(b'"seed": 7', b'"seed": 8'))
    with pytest.raises(InputError, match="^path: expected an intact restart file, got a header .* edited"):
        TrajectoryStore.open(path)


def test_crafted_headers(tmp_path):
    """Headers with a right checksum and wrong content must not get far either."""
    path = tmp_path / "crafted.restart"
    for text in (
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"run": 3, "first_frame": 0}',
        b'{"run": {}, "first_frame": 0}',
        b'{"run": {"n_replicas": 2000000000, "n_atoms": 2000000000, "dtype": "float64"}, "first_frame": 0}',
        b'{"run": {"n_replicas": 1, "n_atoms": 1, "dtype": "object"}, "first_frame": 0}',
        b'{"run": {"n_replicas": 1, "n_atoms": 1, "dtype": "float32"}, "first_frame": -1}',
    ):
        path.write_bytes(struct.pack("<8sIII", b"DMDSTORE", 1, len(text), zlib.crc32(text)) + text)
        with pytest.raises(InputError, match=r"^path[^\n]*: expected [^\n]*$"):
            TrajectoryStore.open(path)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"PK\x03\x04 something quite different", "something else"),
        (struct.pack("<8sIII", b"DMDSTORE", 3, 0, 0), "version 3"),
        (struct.pack("<8sIII", b"DMDSTORE", 0, 0, 0), "damaged header"),
        (struct.pack("<8sIII", b"DMDSTORE", 1, 2**32 - 1, 0), "damaged header"),
    ],
)
def test_not_a_restart_file(tmp_path, content, got):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^restart: expected [^\n]*{got}[^\n]*$"):
        TrajectoryStore.open(path, argument="restart")
    with pytest.raises(InputError, match="^path: expected an existing restart file"):
        TrajectoryStore.open(tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"n_replicas": 0}, "header.n_replicas"),
        ({"n_atoms": 1.5}, "header.n_atoms"),
        ({"n_atoms": None}, "header.n_atoms"),
        ({"n_replicas": 2**30}, "header.n_replicas"),
        ({"dtype": "float16"}, "header.dtype"),
        ({"lr": float("nan")}, "header"),
        ({"model": object()}, "header"),
    ],
)
def test_bad_headers(tmp_path, changes, argument):
    with pytest.raises(InputError, match=rf"^{argument}: expected [^\n]*$"):
        TrajectoryStore.create(tmp_path / "run.restart", {**HEADER, **changes})
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_kept(tmp_path):
    path = filled(tmp_path / "run.restart")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"^path: expected a new restart file"):
        TrajectoryStore.create(path, HEADER)
    assert path.read_bytes() == before
    with TrajectoryStore.create(path, HEADER, overwrite=True) as store:
        assert store.n_frames == 0
    for bad in (tmp_path / "no" / "run.restart", tmp_path):
        with pytest.raises(InputError, match="^path: expected"):
            TrajectoryStore.create(bad, HEADER, overwrite=True)


def test_one_writer_at_a_time(tmp_path):
    path = filled(tmp_path / "run.restart")
    with TrajectoryStore.open(path, append=True) as store:
        with pytest.raises(InputError, match="^path: expected a restart file that no running process writes"):
            TrajectoryStore.open(path, append=True)
        with pytest.raises(InputError, match="^path: expected a restart file that no running process writes"):
            TrajectoryStore.create(path, HEADER, overwrite=True)
        store.shrink()
        with pytest.raises(InputError, match="^path: expected a restart file that no running process writes"):
            TrajectoryStore.open(path, append=True)
        with TrajectoryStore.open(path) as reader:
            assert reader.n_frames == 1
    TrajectoryStore.open(path, append=True).close()


NAN = frame(40)
NAN[1, 0, 2] = np.nan


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((30, frame(30)), "step"),
        ((-1, frame(30)), "step"),
        ((40.5, frame(30)), "step"),
        ((40, frame(40)[:2]), "positions"),
        ((40, frame(40, "float64")), "positions"),
        ((40, NAN), "positions"),
        ((40, frame(40), np.ones(2, bool)), "alive"),
    ],
)
def test_bad_frames(tmp_path, arguments, argument):
    path = filled(tmp_path / "run.restart")
    before = path.read_bytes()
    with (
        TrajectoryStore.open(path, append=True) as store,
        pytest.raises(InputError, match=f"^{argument}: expected"),
    ):
        store.append(*arguments)
    assert path.read_bytes() == before


def test_lost_replicas(tmp_path):
    path = filled(tmp_path / "run.restart")
    lost = np.array([True, False, True])
    with TrajectoryStore.open(path, append=True) as store:
        store.append(40, NAN, lost)  # a lost replica may hold anything
        with pytest.raises(InputError, match="^alive: expected lost replicas to stay lost"):
            store.append(50, frame(50))
    stay_lost = pytest.raises(InputError, match="^alive: expected lost replicas to stay lost")
    with TrajectoryStore.open(path, append=True) as store, stay_lost:
        store.append(50, frame(50))
    with TrajectoryStore.open(path) as store, pytest.raises(InputError, match="^store: expected"):
        store.append(50, frame(50), lost)


def test_shrink(tmp_path):
    path = filled(tmp_path / "run.restart", dtype="float64")
    full = path.stat().st_size
    with TrajectoryStore.open(path, append=True) as store:
        store.shrink(n_steps=100)
        assert (store.n_frames, store.first_frame) == (1, 3)
        store.append(40, frame(40, "float64"))
        assert store.steps().tolist() == [30, 40]
    assert path.stat().st_size < full - record_size("float64")
    with TrajectoryStore.open(path, append=True) as store:
        assert store.header["n_steps"] == 100
        assert (store.n_frames, store.first_frame) == (2, 3)
        np.testing.assert_array_equal(next(store.frames())[1], frame(30, "float64"))
        store.shrink()
        assert (store.n_frames, store.first_frame) == (1, 4)
        with pytest.raises(InputError, match="^n_atoms: expected no change"):
            store.shrink(n_atoms=3)
    assert [file.name for file in tmp_path.iterdir()] == ["run.restart"]
    with (
        TrajectoryStore.create(tmp_path / "new", HEADER) as store,
        pytest.raises(InputError, match="^store: "),
    ):
        store.shrink()


def test_a_failed_write_is_undone(tmp_path, monkeypatch):
    """As on a full disk: half of a record gets through, then an error."""
    path = filled(tmp_path / "run.restart")
    before = path.read_bytes()
    with TrajectoryStore.open(path, append=True) as store:
        real = os.pwrite

        def half(fd, data, offset):
            real(fd, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="No space"):
            store.append(40, frame(40))
        monkeypatch.undo()
        assert path.read_bytes() == before
        store.append(40, frame(40))
        assert store.steps().tolist() == [0, 10, 20, 30, 40]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_history(data):
    """Random appends, reopenings, cuts and shrinkings against a plain list of what should be there."""
    n_replicas, n_atoms = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    header = {"n_replicas": n_replicas, "n_atoms": n_atoms, "dtype": dtype}
    expected, first, step, alive = [], 0, -1, np.ones(n_replicas, bool)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.restart"
        TrajectoryStore.create(path, header).close()
        for action in data.draw(st.lists(st.sampled_from(["append", "append", "cut", "shrink"]), max_size=8)):
            if action == "cut" and expected:
                size = 8 + n_replicas + n_replicas * n_atoms * 3 * np.dtype(dtype).itemsize + 4
                os.truncate(path, path.stat().st_size - data.draw(st.integers(1, size)))
                expected.pop()
            with TrajectoryStore.open(path, append=True) as store:
                if action == "append":
                    step += data.draw(st.integers(1, 2**40))
                    alive = alive & data.draw(
                        st.lists(st.booleans(), min_size=n_replicas, max_size=n_replicas)
                    )
                    values = data.draw(st.integers(0, 2**32 - 1))
                    positions = (
                        np.random.default_rng(values).normal(size=(n_replicas, n_atoms, 3)).astype(dtype)
                    )
                    store.append(step, positions, alive)
                    expected.append((step, positions, alive))
                elif action == "shrink" and expected:
                    store.shrink()
                    first, expected = first + len(expected) - 1, expected[-1:]
            with TrajectoryStore.open(path) as store:
                assert store.first_frame == first
                assert store.n_frames == len(expected)
                for found, wanted in zip(store.frames(), expected):
                    assert found[0] == wanted[0]
                    np.testing.assert_array_equal(found[1], wanted[1])
                    np.testing.assert_array_equal(found[2], wanted[2])
