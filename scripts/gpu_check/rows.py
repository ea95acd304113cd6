"""What was asked for, one row each: a value from the measurements, the floor of the card, wanted, reached or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.floors import evaluation

Measured = Mapping[str, Mapping[str, Any]]  # result of every case that came to one, by name
PRECISIONS = ("tf32", "3xtf32", "fp32")  # of the resident sampler's products; the reference's are float32
WANTED_ON = "H200"  # the card that the figures were asked of


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is done.
        case: the measurement it is about, whose memory is shown.
        value: the figure, from all measurements; KeyError where one is missing.
        unit: of the figure.
        sense, wanted: "at least" or "at most"; None where nothing was asked for.
        floor: the shortest time the card allows, in seconds, for what the case did in ``seconds``.
        eager, compiled: cases with the same work by the reference.
    """

    work: str
    case: str
    value: Callable[[Measured], float]
    unit: str
    sense: str = ""
    wanted: float | None = None
    floor: Callable[[Measured], float] | None = None
    eager: str = ""
    compiled: str = ""


def rate(case: str):
    return lambda m: m[case]["rate"]


def seconds(case: str, scale: float):
    return lambda m: scale * m[case]["seconds"]


def times(case: str, fast: str):
    """How often ``fast`` fits into ``case``."""
    return lambda m: m[case]["seconds"] / m[fast]["seconds"]


def step_floor(case: str):
    """Of one step of all replicas: operations at the rate of float32 products, or bytes at that of a copy.

    Tensor cores make products faster than that, but not pairs and activations: products in tf32 may pass the floor.
    """
    def floor(m: Measured) -> float:
        found = m[case]
        count = evaluation(found["atoms"], found["features"], found["blocks"], found["edges a replica"] / 2)
        return found["replicas"] * count.floor(m["matrix rate, fp32"]["rate"], m["copy bandwidth"]["rate"])
    return floor


def em_step_floor(m: Measured) -> float:
    """Position and score read, position written, 4 bytes each."""
    return 12 * m["em_step"]["coordinates"] / m["copy bandwidth"]["rate"]


def spline_bytes(found: Mapping[str, Any], gathered: bool, coefficients: bool) -> float:
    """Bytes of a forward and a backward pass in float32.

    Every array once: features, their cotangent, messages and gradient, positions and theirs, and in both passes the
    list (4 bytes a column, 8 a row) and what is added to a neighbor's place (12 an edge).  ``gathered``: as if every
    edge fetched its neighbor's features from memory, one array forward and two backward, instead of from a cache.
    """
    nodes, edges, features = found["atoms"], found["edges"], found["features"]
    lists = 2 * (edges * (4 + 12) + 8 * nodes)
    rows = (2 + 3) * 4 * nodes * features + (2 + 1) * 12 * nodes
    if gathered:
        rows += 3 * 4 * edges * features
    return lists + rows + (4 * 103 * features * (3 if coefficients else 2))


def spline_floor(case: str, gathered: bool, coefficients: bool = True):
    return lambda m: spline_bytes(m[case], gathered, coefficients) / m["copy bandwidth"]["rate"]


def list_floor(case: str, in_box: bool):
    """Positions read; row_ptr, col, reverse and in a box shift written."""
    def floor(m: Measured) -> float:
        found = m[case]
        return (found["edges"] * (24 if in_box else 12) + 20 * found["particles"]) / m["copy bandwidth"]["rate"]
    return floor


def fraction(floor, case: str):
    """Of the floor that was reached: its time over the time taken."""
    return lambda m: floor(m) / m[case]["seconds"]


def memory_ratio(case: str, fast: str):
    return lambda m: m[case]["peak bytes"] / m[fast]["peak bytes"]


GATHERED, STRICT = spline_floor("spline_conv", True), spline_floor("spline_conv", False)


def resident_rows(precision: str) -> list[Row]:
    many, one = f"resident, {precision}", f"resident, one replica, {precision}"
    return [
        Row(f"resident sampler, 22 atoms, 64 features, 3 blocks, card full, products in {precision}", many, rate(many),
            "replica-steps/s", "at least", 3e6, step_floor(many), "resident, eager", "resident, compiled"),
        Row("… over the eager reference", many, times("resident, eager", many), "times", "at least", 20),
        Row("… over the reference under torch.compile and a CUDA graph", many, times("resident, compiled", many),
            "times", "at least", 4),
        Row("… over the sampler step by step", many, times("resident, step by step", many), "times"),
        Row("… one replica", one, seconds(one, 1e6), "µs a step", "at most", 40, step_floor(one),
            "resident, one replica, eager", "resident, one replica, compiled")]


ROWS = [
    *(row for precision in PRECISIONS for row in resident_rows(precision)),
    Row("em_step, 10^9 coordinates: part of the copy bandwidth", "em_step", fraction(em_step_floor, "em_step"), "",
        "at least", 0.85, em_step_floor, "em_step, eager"),
    Row("graph path, 269 beads × 64, 128 features, 4 blocks", "graph path", rate("graph path"), "replica-steps/s",
        floor=step_floor("graph path"), eager="graph path, eager", compiled="graph path, compiled"),
    Row("… over the eager reference", "graph path", times("graph path, eager", "graph path"), "times", "at least", 10),
    Row("… over the eager reference that is given its list", "graph path",
        times("graph path, eager, list given", "graph path"), "times"),
    Row("… peak memory of the eager reference over its own", "graph path",
        memory_ratio("graph path, eager", "graph path"), "times", "at least", 5),
    Row("spline_conv forward + backward, 10^6 edges, 128 features: part of the floor, neighbors' features gathered "
        "from memory", "spline_conv", fraction(GATHERED, "spline_conv"), "", "at least", 0.6, GATHERED,
        "spline_conv, eager"),
    Row("… part of the floor, every array read once", "spline_conv", fraction(STRICT, "spline_conv"), "", "at least",
        0.6, STRICT),
    Row("… without the gradient of the coefficients, gathered", "spline_conv, no coefficients",
        fraction(spline_floor("spline_conv, no coefficients", True, False), "spline_conv, no coefficients"), "",
        floor=spline_floor("spline_conv, no coefficients", True, False)),
    Row("neighbor list, 512 × 64 atoms, 0.5 nm", "neighbor list, molecules", seconds("neighbor list, molecules", 1e3),
        "ms", "at most", 0.15, list_floor("neighbor list, molecules", False), "neighbor list, molecules, eager"),
    Row("… over nvalchemi-toolkit-ops", "neighbor list, molecules",
        times("neighbor list, molecules, peer", "neighbor list, molecules"), "times", "at least", 1),
    Row("neighbor list, one box of 10^6 particles, 60 neighbors each", "neighbor list, one box",
        seconds("neighbor list, one box", 1e3), "ms", "at most", 5, list_floor("neighbor list, one box", True)),
    Row("… over nvalchemi-toolkit-ops", "neighbor list, one box",
        times("neighbor list, one box, peer", "neighbor list, one box"), "times", "at least", 1),
]


def judge(rows: list[Row], cases: list[dict[str, Any]], card: str) -> list[dict[str, Any]]:
    """The table's lines: what was measured, or why not; only a card that was asked for is judged."""
    measured = {case["case"]: case["result"] for case in cases if case["state"] == "done"}
    reasons = {case["case"]: case.get("why", "") for case in cases if case["state"] != "done"}
    return [_line(row, measured, reasons, card) for row in rows]


def _line(row: Row, measured: Measured, reasons: Mapping[str, str], card: str) -> dict[str, Any]:
    line: dict[str, Any] = {"work": row.work, "unit": row.unit, "sense": row.sense, "wanted": row.wanted}
    try:
        value = row.value(measured)
    except (KeyError, TypeError) as error:  # TypeError: no memory is counted on a CPU
        case = error.args[0] if isinstance(error, KeyError) else row.case
        return line | {"measured": None, "why": f"{case}: {reasons.get(case) or 'not measured'}"}
    line |= {"measured": value, "why": "", "reached": None, "peak bytes": measured[row.case].get("peak bytes")}
    if row.wanted is not None:
        line["reached"] = value >= row.wanted if row.sense == "at least" else value <= row.wanted
        line["judged"] = WANTED_ON in card
    taken = measured[row.case]["seconds"]
    if row.floor is not None and {"copy bandwidth", "matrix rate, fp32"} <= measured.keys():
        line |= {"seconds": taken, "floor seconds": row.floor(measured), "over floor": taken / row.floor(measured)}
    for name, case in (("eager", row.eager), ("compiled", row.compiled)):
        if case:
            line[name] = {"seconds": measured[case]["seconds"], "times": measured[case]["seconds"] / taken,
                          "peak bytes": measured[case].get("peak bytes")} if case in measured else {
                              "why": reasons.get(case, "not measured")}
    return line
