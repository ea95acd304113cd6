"""TraPPE alkanes against the shared force field, exact butane against its known statistics, damaged files."""

import copy
import json
import math
from importlib import resources

import numpy as np
import pytest
import torch

from diffmd_fast import InputError, ops
from diffmd_fast.models import TraPPEAlkane

BUTANE = resources.files("diffmd_fast.models") / "data" / "butane_ua_parameters.json"


@pytest.fixture(scope="module")
def parameters():
    return json.loads(BUTANE.read_text())


@pytest.mark.parametrize(("name", "n_beads"), [("butane", 4), ("tridecane", 13), ("hexadecane", 16)])
def test_check_geometries_and_frames(shared_data, name, n_beads):
    path = shared_data / f"{name}_ua_parameters.json"
    model, check = TraPPEAlkane.from_file(path), json.loads(path.read_text())["check"]
    assert model.n_atoms == n_beads and len(model.bonds) == n_beads - 1 and model.bead_types[:2] == ("CH3", "CH2")
    positions = torch.tensor(check["positions"], dtype=torch.float64)
    terms = torch.tensor(check["energy_terms"], dtype=torch.float64)
    torch.testing.assert_close(model.energy_terms(positions), terms, rtol=0, atol=1e-9)
    kilojoules = 0.00831446261815324 * 300
    torch.testing.assert_close(model.energy(positions) * kilojoules, terms.sum(-1), rtol=0, atol=1e-9)
    forces = torch.tensor(check["forces"], dtype=torch.float64)
    torch.testing.assert_close(model.score(positions) * kilojoules, forces, rtol=0, atol=1e-3)

    data = np.load(shared_data / f"{name}_ua_300K.npz")
    positions = torch.from_numpy(data["positions"][:1000]).double()
    energy, score = model.energy_and_score(positions)
    want = torch.from_numpy(data["potential_energy"][:1000]).double()
    torch.testing.assert_close(energy * kilojoules, want, rtol=1e-6, atol=1e-6)
    forces = torch.from_numpy(data["forces_first1000"]).double()
    torch.testing.assert_close(score * kilojoules, forces, rtol=1e-6, atol=2e-4)


def test_butane_of_the_package_is_the_shared_one(shared_data, parameters):
    assert parameters == json.loads((shared_data / "butane_ua_parameters.json").read_text())
    assert TraPPEAlkane.butane().bead_types == ("CH3", "CH2", "CH2", "CH3")


def test_straight_and_folded_chains_have_finite_scores():
    model = TraPPEAlkane.butane()
    straight = torch.zeros(1, 4, 3, dtype=torch.float64)
    straight[0, :, 0] = 0.154 * torch.arange(4)
    energy, score = model.energy_and_score(straight)
    assert torch.isfinite(energy).all() and torch.isfinite(score).all()


def distribution(log_density, low, high):
    """Grid and normalized density on it."""
    x = np.linspace(low, high, 200_001)
    p = np.exp(log_density(x) - log_density(x).max())
    return x, p / p.sum()


def test_exact_butane_has_the_known_statistics(parameters):
    """Means within 5 standard errors of quadrature, whose values agree with ../shared/data/README.md; false alarm
    below 1e-5 for all checks together.  Fixed seed, no retry."""
    n = 50_000
    model = TraPPEAlkane.butane()
    frames = model.sample(n, seed=4)
    assert frames.shape == (n, 4, 3) and frames.dtype == torch.float64
    assert frames.mean(1).abs().max() < 1e-15
    kt = model.kilojoules
    bond, angle, torsion = parameters["bond"], parameters["angle"], parameters["torsion"]

    def energy_of(f):
        return (torsion["c1"] * (1 + np.cos(f)) + torsion["c2"] * (1 - np.cos(2 * f))
                + torsion["c3"] * (1 + np.cos(3 * f)))

    r, p = distribution(lambda r: 2 * np.log(r) - 0.5 * bond["k"] * (r - bond["r0"]) ** 2 / kt, 0.12, 0.19)
    mean, deviation = (p * r).sum(), math.sqrt((p * r**2).sum() - (p * r).sum() ** 2)
    assert abs(mean - 0.15413) < 1e-5 and abs(deviation - 0.00309) < 1e-5
    lengths = (frames[:, 1:] - frames[:, :-1]).norm(dim=-1).numpy()
    for k in range(3):
        assert abs(lengths[:, k].mean() - mean) < 5 * deviation / math.sqrt(n)
        assert abs(lengths[:, k].std() / deviation - 1) < 5 / math.sqrt(2 * n)

    a, p = distribution(lambda a: np.log(np.sin(a)) - 0.5 * angle["k"] * (a - angle["theta0"]) ** 2 / kt, 1.2, 2.8)
    mean, deviation = (p * a).sum(), math.sqrt((p * a**2).sum() - (p * a).sum() ** 2)
    steps = torch.nn.functional.normalize(frames[:, 1:] - frames[:, :-1], dim=-1)
    angles = torch.arccos(-(steps[:, 1:] * steps[:, :-1]).sum(-1)).numpy()
    for k in range(2):
        assert abs(angles[:, k].mean() - mean) < 5 * deviation / math.sqrt(n)
        assert abs(angles[:, k].std() / deviation - 1) < 5 / math.sqrt(2 * n)

    f, p = distribution(lambda f: -energy_of(f) / kt, -math.pi, math.pi)
    trans = p[np.abs(f) > 2 * math.pi / 3].sum()
    assert abs(trans - 0.66275) < 1e-5
    sine, cosine = ops.torsions(frames, torch.tensor([[0, 1, 2, 3]]))[:, 0].numpy().T
    found = np.arctan2(sine, cosine)
    for share, region in ((trans, np.abs(found) > 2 * math.pi / 3),
                          ((1 - trans) / 2, (found > 0) & (found <= 2 * math.pi / 3))):
        assert abs(region.mean() - share) < 5 * math.sqrt(share * (1 - share) / n)
    energy = energy_of(found)
    assert abs(energy.mean() - (p * energy_of(f)).sum()) < 5 * energy.std() / math.sqrt(n)


def test_exact_butane_is_turned_at_random_and_repeatable():
    model = TraPPEAlkane.butane()
    n = 20_000
    frames = model.sample(n, seed=9)
    assert torch.equal(frames, model.sample(n, seed=9)) and not torch.equal(frames, model.sample(n, seed=10))
    assert model.sample(0, seed=1).shape == (0, 4, 3)
    direction = torch.nn.functional.normalize(frames[:, 3] - frames[:, 0], dim=-1)
    assert direction.mean(0).abs().max() < 5 / math.sqrt(3 * n)
    second = direction[:, :, None] * direction[:, None, :]
    assert (second.mean(0) - torch.eye(3) / 3).abs().max() < 5 * math.sqrt(4 / 45 / n)


@pytest.mark.parametrize(("argument", "values"), [
    ("n_frames", (-1, 0)), ("n_frames", (1.5, 0)), ("seed", (1, -1)), ("seed", (1, "x"))])
def test_sample_bad_arguments(argument, values):
    with pytest.raises(InputError, match=f"^{argument}:"):
        TraPPEAlkane.butane().sample(*values)


def test_longer_chains_are_not_sampled(shared_data):
    with pytest.raises(InputError, match="^model: .*Monte Carlo"):
        TraPPEAlkane.from_file(shared_data / "tridecane_ua_parameters.json").sample(5, seed=1)


EDITS = [
    (("bond", "k"), 260001.0), (("bond", "k"), "260000"), (("bond", "k"), True), (("bond", "k"), float("nan")),
    (("bond", "r0"), -0.154), (("bond", "r0"), 0.1541), (("bond", "formula"), "k*(r-r0)^2"), (("bond",), None),
    (("angle", "theta0"), 1.9), (("angle", "theta0"), 10**400), (("torsion", "c2"), 0.5669632059318694),
    (("torsion", "c3"), None), (("lennard_jones", "sigma"), {}), (("lennard_jones", "epsilon", "CH2"), 0),
    (("units", "length"), "angstrom"), (("n_beads",), 5), (("n_beads",), 10**9), (("n_beads",), 3),
    (("n_beads",), "4"), (("bead_types",), "CH3"), (("bead_types", 0), "CH5"), (("bead_types", 0), 7),
    (("temperature_K",), 0), (("gas_constant_kJ_mol_K",), float("inf")), (("check",), []),
    (("check", "positions"), [[["a"]]]), (("check", "positions"), []), (("check", "energy_terms"), [[1, 2, 3]]),
    (("check", "energy_terms", 0, 0), 4.2), (("check", "forces", 0, 0, 0), -31.3), (("check", "forces"), [[1], [2, 3]]),
]


@pytest.mark.parametrize(("where", "value"), EDITS, ids=lambda v: str(v)[:40])
def test_edited_file_is_one_clear_error(tmp_path, parameters, where, value):
    edited = copy.deepcopy(parameters)
    at = edited
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(edited))
    with pytest.raises(InputError) as error:
        TraPPEAlkane.from_file(path)
    message = str(error.value)
    assert message.startswith("path:") and "\n" not in message and len(message) < 700


@pytest.mark.parametrize("text", [b"", b"[1, 2", b"[]", b"3", b"\xff\xfe\x00", b"[" * 100_000, b" " * (2 << 20), None])
def test_unreadable_file_is_one_clear_error(tmp_path, text):
    path = tmp_path / "file.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match="^path:") as error:
        TraPPEAlkane.from_file(path)
    assert "\n" not in str(error.value)


def test_truncated_file_is_one_clear_error(tmp_path):
    text, path = BUTANE.read_bytes(), tmp_path / "file.json"
    for length in range(0, len(text) - 1, 97):
        path.write_bytes(text[:length])
        with pytest.raises(InputError, match="^path:"):
            TraPPEAlkane.from_file(path)
