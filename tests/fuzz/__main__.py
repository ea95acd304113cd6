"""Feed the native entry points random shapes and values, files included.  ``make fuzz`` runs it sanitized.

\b
    python -m tests.fuzz                                            a minute of all targets
    python -m tests.fuzz --target em_step --seed 17 --cases 1 --here     one case again, in this process

A case may be served or refused (InputError, UnavailableError, RuntimeError); a crash, a sanitizer's report, a hang,
any other exception, or a result that is not the reference's fails the run and is printed with its seed.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

import click
from tqdm import tqdm

from .runner import OUTCOMES, numbered, run_case, supervise, work


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--target", "names", multiple=True, help="Only this target; may be given several times.")
@click.option("--seed", default=0, help="Seed of the first case; the next ones follow.")
@click.option("--cases", default=10**9, help="Cases of each target.")
@click.option("--seconds", default=60.0, help="Stop after this time.")
@click.option("--here", is_flag=True, help="In this process, for a debugger; says what was drawn.")
@click.option("--table", default="tests.fuzz.targets", hidden=True, help="Module that holds TARGETS.")
@click.option("--worker", nargs=2, type=float, hidden=True, help="First case and deadline: how a worker is started.")
def main(names, seed, cases, seconds, here, table, worker):
    targets = importlib.import_module(table).TARGETS
    unknown = sorted(set(names) - set(targets))
    if unknown:
        raise click.BadParameter(f"no target {unknown[0]!r}; there are {', '.join(targets)}", param_hint="--target")
    targets = {name: targets[name] for name in names or targets}
    if worker is not None:
        return work(targets, seed, range(int(worker[0]), cases * len(targets)), worker[1])
    if here:
        return run_here(targets, seed, cases, seconds)
    command = [sys.executable, "-m", "tests.fuzz", "--table", table, "--seed", str(seed), "--cases", str(cases)]
    command += [word for name in targets for word in ("--target", name)] + ["--worker"]
    with tqdm(unit="case", mininterval=1.0) as bar:
        def progress(target: str) -> None:
            bar.set_description(target, refresh=False)
            bar.update()

        summary = supervise(targets, seed, cases, seconds, command, progress)
    print(summary)
    for target, case_seed, outcome in summary.bad:
        print(f"{target} {outcome}; again: {replay(f'--target {target} --seed {case_seed} --cases 1 --here')}")
    sys.exit(1 if summary.bad or not summary.counts else 0)


def replay(options: str) -> str:
    sanitized = os.environ.get("DIFFMD_SANITIZED") == "1"  # scripts/sanitized.py
    return f"make fuzz FUZZ_OPTIONS='{options}'" if sanitized else f"{sys.executable} -m tests.fuzz {options}"


def run_here(targets, seed, cases, seconds):
    """Every case in this process: a crash ends it, right where it happens."""
    bad, deadline = 0, time.time() + seconds
    for number in range(cases * len(targets)):
        if time.time() > deadline:
            break
        target, case_seed = numbered(targets, seed, number)
        outcome, text = run_case(target, targets[target], case_seed)
        print(f"{outcome}: {text}", flush=True)
        bad += outcome not in OUTCOMES[:2]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
