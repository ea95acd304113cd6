"""Model files: a round trip is exact, and whatever is wrong with a file gives one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffmd_fast
from diffmd_fast import InputError
from diffmd_fast.io import Molecule
from diffmd_fast.models.checkpoint import FORMAT, _checksum, save_model

from .test_schnet import CHAIN, chain_positions, make


@pytest.fixture
def saved(tmp_path):
    model = make(torch.float32)
    model.molecule = Molecule(("CA", "CB", "CC", "CD", "CE"), (6,) * 5, ("ALK",) * 5, (0,) * 5, tuple(CHAIN))
    model.support = {"pairs": CHAIN, "lowest": [0.14] * 4, "highest": [0.16] * 4, "energy": [-3.0, 9.0]}
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    return model, path


def test_round_trip(saved):
    model, path = saved
    read = diffmd_fast.load_model(path)
    x = chain_positions(dtype=torch.float32)
    assert torch.equal(read.energy_and_score(x)[0], model.energy_and_score(x)[0])
    assert torch.equal(read.energy_and_score(x)[1], model.energy_and_score(x)[1])
    assert read.molecule == model.molecule and read.config == model.config
    assert read.support["lowest"] == model.support["lowest"]
    assert not any(p.requires_grad for p in read.parameters()) and not read.training
    assert isinstance(read, diffmd_fast.EnergyModel)


def test_metadata_says_what_the_file_is(saved):
    from safetensors import safe_open

    with safe_open(saved[1], "pt") as file:
        metadata = json.loads(file.metadata()[FORMAT])
    assert metadata["format_version"] == 1 and metadata["package_version"] == diffmd_fast.__version__
    assert metadata["units"] == {"length": "nm", "energy": "kT0", "score": "1/nm", "temperature": "K"}
    assert metadata["config"]["temperature"] == 300.0 and metadata["config"]["noise_levels"] == [0.002, 0.5]


def refused(path, *words):
    with pytest.raises(InputError) as error:
        diffmd_fast.load_model(path)
    text = str(error.value)
    assert text.startswith("path:") and "\n" not in text and all(word in text for word in words), text


def test_written_files_have_the_users_usual_rights_and_leave_nothing_beside(saved, tmp_path):
    (tmp_path / "plain").touch()
    assert saved[1].stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "plain"]


def test_truncated_anywhere(saved, tmp_path):
    data = saved[1].read_bytes()
    for size in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(data[:size])
        refused(cut)


def test_edited_tensor_and_edited_metadata(saved, tmp_path):
    data = bytearray(saved[1].read_bytes())
    data[-2] ^= 0x10
    (tmp_path / "bit.safetensors").write_bytes(data)
    refused(tmp_path / "bit.safetensors", "checksum")
    text = saved[1].read_bytes().replace(b"300.0", b"310.0")
    (tmp_path / "text.safetensors").write_bytes(text)
    refused(tmp_path / "text.safetensors", "checksum")


def rewrite(path, out, **changes):
    """A file with a right checksum but other metadata."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[FORMAT])
    tensors = load_file(path)
    text = json.dumps({**metadata, **changes})
    save_file(tensors, out, {FORMAT: text, "sha256": _checksum(text, tensors)})


def test_future_version_other_architecture_and_foreign_files(saved, tmp_path):
    out = tmp_path / "other.safetensors"
    rewrite(saved[1], out, format_version=2)
    refused(out, "version 2", "newer")
    rewrite(saved[1], out, architecture="os.system")
    refused(out)
    rewrite(saved[1], out, config={**saved[0].config, "n_features": 8})
    refused(out)
    rewrite(saved[1], out, config={**saved[0].config, "n_features": "many"})
    refused(out)
    rewrite(saved[1], out, molecule={"names": 3})
    refused(out)
    rewrite(saved[1], out, molecule=Molecule(("A",), (6,), ("ALK",), (0,), ()).to_dict())
    refused(out, "molecule: expected 5 atoms, got 1")
    save_file({"a": torch.zeros(2)}, out)
    refused(out, "metadata")
    for text in ("[" * 100_000, '{"format_version": 1e999}', "[1]"):
        save_file({"a": torch.zeros(2)}, out, {FORMAT: text, "sha256": ""})
        refused(out, "metadata")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + b"\x00" * 100)
    refused(tmp_path / "pickle.safetensors")
    refused(tmp_path / "absent.safetensors", "does not exist")
    refused(tmp_path, "does not exist")


@pytest.mark.parametrize(("name", "value"), [("n_features", 10**7), ("n_blocks", 10**9), ("n_knots", 10**12),
                                             ("n_atoms", 10**12), ("atom_types", None)])
def test_a_small_file_cannot_ask_for_much_memory(saved, tmp_path, name, value):
    out = tmp_path / "large.safetensors"
    rewrite(saved[1], out, config={**saved[0].config, name: value})
    refused(out)


def test_loads_as_float32_whatever_the_default(saved):
    torch.set_default_dtype(torch.float64)
    try:
        read = diffmd_fast.load_model(saved[1])
    finally:
        torch.set_default_dtype(torch.float32)
    x = chain_positions(dtype=torch.float32)
    assert {t.dtype for t in read.parameters()} == {torch.float32}
    assert torch.equal(read.energy_and_score(x)[1], saved[0].energy_and_score(x)[1])


def test_other_models_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="^model: expected one of SchNet, got Harmonic$"):
        save_model(tmp_path / "model.safetensors", diffmd_fast.models.Harmonic(2, stiffness=1.0))
    assert not any(tmp_path.iterdir())


def test_save_leaves_the_old_file_whole_when_the_place_is_bad(saved, tmp_path):
    with pytest.raises(InputError, match="^path:"):
        save_model(tmp_path / "no" / "folder.safetensors", saved[0])
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
