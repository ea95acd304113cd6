"""Runs cases one after another in a process of their own, and knows which one ended it."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffmd_fast import _C, set_num_threads

from .case import Case

Targets = Mapping[str, Callable[[Case], None]]
LEVELS = _C.build_info()["simd_usable"]
ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = ("served", "refused", "failed", "crashed", "hung")
PATIENCE = 30.0  # s; a case takes milliseconds, ten times that under the sanitizers
MOST_FAILURES = 10


def run_case(target: str, function: Callable[[Case], None], seed: int) -> tuple[str, str]:
    """(outcome, what was drawn or went wrong) of one case, at a SIMD level and number of threads of its own."""
    case = Case(target, seed)
    case.ordinary = case.chance(0.6)
    level, threads = case.choice(LEVELS), case.choice((1, 1, 2, 3))
    before = _C.set_simd_level(level)
    set_num_threads(threads)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # of lost replicas, and there are many
            function(case)
        outcome, text = ("refused" if case.refused else "served"), ""
    except Exception:  # all that the target did not expect: that is what is looked for
        outcome, text = "failed", traceback.format_exc()
    finally:
        set_num_threads(None)
        _C.set_simd_level(before)
    drawn = "; ".join(case.spoiled) or "nothing spoiled"
    values = "ordinary" if case.ordinary else "special"
    return outcome, f"{target} seed {seed}: {level}, {threads} threads, {values} values, {drawn}\n{text}".rstrip()


def numbered(targets: Targets, seed: int, number: int) -> tuple[str, int]:
    """The target and seed of case ``number``: all targets take turns, with one seed after another."""
    return list(targets)[number % len(targets)], seed + number // len(targets)


def work(targets: Targets, seed: int, numbers: range, deadline: float) -> None:
    """The worker's side: a line before each case and one after it, on standard output."""
    for number in numbers:
        if time.time() > deadline:
            return
        target, case_seed = numbered(targets, seed, number)
        print("start", number, flush=True)
        outcome, text = run_case(target, targets[target], case_seed)
        if outcome == "failed":
            print(text, file=sys.stderr, flush=True)
        print("end", outcome, flush=True)


@dataclass
class Summary:
    """Outcomes of every target, and the cases to look at."""

    counts: dict[str, Counter] = field(default_factory=dict)
    bad: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, target: str, seed: int, outcome: str) -> None:
        self.counts.setdefault(target, Counter())[outcome] += 1
        if outcome not in OUTCOMES[:2]:
            self.bad.append((target, seed, outcome))

    def __str__(self) -> str:
        width = max(map(len, self.counts), default=6)
        lines = [f"{'target':{width}}  " + "".join(f"{name:>9}" for name in OUTCOMES)]
        for target, counts in sorted(self.counts.items()):
            lines.append(f"{target:{width}}  " + "".join(f"{counts[name]:9}" for name in OUTCOMES))
        return "\n".join(lines)


def supervise(targets: Targets, seed: int, n_cases: int, seconds: float, worker: Sequence[str],
              progress: Callable[[str], None] = lambda target: None, patience: float = PATIENCE) -> Summary:
    """Run ``n_cases`` of every target, for at most ``seconds``, in worker processes; start another when one dies.

    ``worker``: the command; the number of the first case and the deadline (seconds since 1970) are appended.
    """
    summary, number, deadline = Summary(), 0, time.time() + seconds
    while number < n_cases * len(targets) and time.time() < deadline and len(summary.bad) < MOST_FAILURES:
        process = subprocess.Popen([*worker, str(number), str(deadline)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        running, end = None, ""
        while not end:
            try:
                word, value = lines.get(timeout=10 * patience if running is None else patience).split()
            except queue.Empty:
                end = "hung"
                break
            if word == "start":
                running = int(value)
                progress(numbered(targets, seed, running)[0])
            elif word == "end":
                summary.add(*numbered(targets, seed, running), value)
                number, running = running + 1, None
                end = "enough" if len(summary.bad) >= MOST_FAILURES else ""
            else:
                end = "gone"
        if end != "gone":
            process.kill()
        code = process.wait()
        if running is not None:
            summary.add(*numbered(targets, seed, running), "hung" if end == "hung" else "crashed")
            number = running + 1
        elif end == "hung" or (end == "gone" and code):
            raise RuntimeError(f"the worker ended with {code} outside of a case: {' '.join(worker)}")
    return summary


def _read(process: subprocess.Popen, lines: queue.Queue) -> None:
    for line in process.stdout:
        if line.startswith(("start ", "end ")):  # whatever else a library prints
            lines.put(line)
    lines.put("gone 0")
