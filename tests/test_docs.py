"""What the documents say is true: the example runs, options and fields have the names they are given."""

import json
import re
from pathlib import Path

import pytest
from scripts.gpu_check.__main__ import parser

from diffmd_fast.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def test_the_example_of_the_readme_runs(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    shape = re.search(r"# (\(\d+, 64, 10, 3\) \[\])", code).group(1)
    assert shape in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page):
    of_gpu_check = {name for action in parser()._actions for name in action.option_strings}
    there = {name for command in (cli, *cli.commands.values()) for option in command.params for name in option.opts}
    there |= of_gpu_check | {"--help", "--no-deps", "--set-commit-hash", "--nproc-per-node"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / page).read_text())) <= there


def test_fields_of_the_report(tmp_path):
    from diffmd_fast.analysis import report
    from diffmd_fast.io import read_snapshots

    frames = read_snapshots(ROOT / "examples" / "alanine_dipeptide" / "snapshots.npz")
    report(frames, frames, tmp_path, n_pairs=20, progress=False)
    written = json.loads((tmp_path / "report.json").read_text())
    table = (ROOT / "docs" / "file_formats.md").read_text().partition("## Report")[2]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    first = [name for cell in rows for name in re.findall(r"`(\w+)`", cell)]
    assert len(first) > 10 and set(first) <= set(written)


def test_the_script_of_the_observables_runs(monkeypatch, tmp_path, capsys):
    page = (ROOT / "docs" / "observables.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # the figures are written here
    names = {}
    exec(compile(code, "docs/observables.md", "exec"), names)
    assert len(list(tmp_path.glob("*.png"))) == 5
    assert abs(names["found"].relative_deviation) < 5 * names["found"].relative_error + 0.03
    assert "Fokker-Planck operator 6.6784 ps" in capsys.readouterr().out


def test_the_documents_name_every_function_of_the_analysis():
    from diffmd_fast import analysis

    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert [name for name in analysis.__all__ if name.islower() and not re.search(rf"\b{name}\b", pages)] == []
