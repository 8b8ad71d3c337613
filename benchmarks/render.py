"""Tables and plots of the results that lie in benchmarks/results, and README's summary of them.

python -m benchmarks.render
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
BEGIN, END = "<!-- results: python -m benchmarks.render -->", "<!-- end of results -->"
NO_PEERS = ("fastdiff", "folded", "in place", "clone")  # folded: our own as well, on request


@dataclass(frozen=True)
class Run:
    """A file of results, when it was made, and the commit that it timed."""

    file: str
    when: str
    commit: str


@dataclass(frozen=True)
class Cell:
    """One row of a bench: microseconds of a call of fastdiff and of its peers."""

    name: str
    run: Run
    microseconds: dict[str, float]
    share: float | None  # of what the bench holds for the floor

    @property
    def best_peer(self) -> str:
        return min(set(self.microseconds) - set(NO_PEERS), key=self.microseconds.__getitem__)

    @property
    def ratio(self) -> float:
        return self.microseconds[self.best_peer] / self.microseconds["fastdiff"]


@dataclass(frozen=True)
class Bench:
    """A bench on one machine: each cell by the newest run that timed it."""

    op: str
    machine: str
    cells: list[Cell]

    @property
    def runs(self) -> list[Run]:
        """Those of the cells, the newest first."""
        return sorted({cell.run for cell in self.cells}, key=lambda run: run.when, reverse=True)


def benches(folder: Path) -> list[Bench]:
    """The benches of a machine's folder.

    A run on another number of threads, say, or by another torch, takes the place of all before it.
    """
    machines: dict[str, str] = {}
    cells: dict[str, dict[str, Cell]] = {}
    files = [(path.name, json.loads(path.read_text())) for path in folder.glob("*.json")]
    for name, results in sorted(files, key=lambda file: file[1]["datetime"]):
        run = Run(name, results["datetime"], results["commit_info"]["id"][:12])
        for op, timed in cells_by_op(results["benchmarks"], run).items():
            if machines.get(op) != (this := machine(results["machine_info"])):
                machines[op], cells[op] = this, {}
            cells[op] |= {cell.name: cell for cell in timed}
    return [Bench(op, machines[op], [*cells[op].values()]) for op in sorted(cells)]


def cells_by_op(results: list[dict[str, Any]], run: Run) -> dict[str, list[Cell]]:
    ops = defaultdict(list)
    for result in results:
        info = result["extra_info"]
        if "medians_us" not in info:
            continue
        file, _, test = result["fullname"].partition("::")
        name = test.partition("[")[2].rstrip("]") or test.removeprefix("test_")
        shares = [value for key, value in info.items() if key.startswith("share_of")]
        cell = Cell(name, run, info["medians_us"], next(iter(shares), None))
        ops[Path(file).stem.removeprefix("bench_")].append(cell)
    return ops


def machine(info: dict[str, Any]) -> str:
    if info["gpu"] is None:
        threads = f"{info['torch_threads']} thread{'s' if info['torch_threads'] > 1 else ''}"
        cpu = f"{info['cpu']['brand_raw']} with {info['cpu_capability']}"
        return f"{cpu}, {threads}, torch {info['torch_version']}"
    bandwidth = info["copy_bytes_per_second"] / 1e12
    rate = info["bf16_matrix_operations_per_second"] / 1e12
    return (
        f"{info['gpu']}, torch {info['torch_version']}; in the same run a copy moved "
        f"{bandwidth:.2f} TB/s and bf16 products ran at {rate:.0f} TFLOP/s"
    )


def table(bench: Bench) -> str:
    """Every cell of a bench, in Markdown."""
    peers = [name for name in bench.cells[0].microseconds if name != "fastdiff"]
    runs = "; ".join(f"commit {run.commit}; [{run.file}]({run.file})" for run in bench.runs)
    several = len(bench.runs) > 1
    heads = ["fastdiff", *peers, "best peer / fastdiff", "share of the floor"]
    if several:
        heads.append("commit")
    lines = [
        f"## {bench.op}",
        f"{bench.machine}; {runs}. Microseconds, medians, interleaved.\n",
        f"| | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for cell in bench.cells:
        times = [cell.microseconds.get(name) for name in ["fastdiff", *peers]]
        figures = ["" if t is None else f"{t:.4g}" for t in times] + [f"{cell.ratio:.2f}"]
        figures.append("" if cell.share is None else f"{cell.share:.0%}")
        if several:
            figures.append(cell.run.commit)
        lines.append(f"| {cell.name} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def plot(bench: Bench, path: Path) -> None:
    """How many times faster than its best peer, by cell."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * len(bench.cells)), layout="constrained")
    names = [f"{cell.name} (against {cell.best_peer})" for cell in bench.cells]
    axes.barh(names, [cell.ratio for cell in bench.cells], color="#3b6ea5")
    axes.axvline(1, color="#222222", linewidth=1)
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel("times faster than the best peer")
    commits = ", ".join(run.commit for run in bench.runs)
    axes.set_title(f"{bench.op}: {bench.machine.partition(',')[0]}, {commits}", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def summary(folders: dict[str, list[Bench]]) -> str:
    """README's table: a row for a bench on a machine."""
    lines = [
        "| op | machine | faster than the best peer: median (worst, best) | cells | results |",
        "|---|---|---|---|---|",
    ]
    for folder, found in folders.items():
        for bench in found:
            ratios = [cell.ratio for cell in bench.cells]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
            place = f"[{bench.runs[0].commit}](benchmarks/results/{folder}/README.md)"
            name = bench.machine.partition(", torch")[0]
            lines.append(f"| {bench.op} | {name} | {spread} | {len(ratios)} | {place} |")
    return "\n".join(lines)


def main() -> None:
    folders = {f.name: benches(f) for f in sorted(RESULTS.iterdir()) if f.is_dir()}
    for name, found in folders.items():
        tables = "\n".join(table(bench) for bench in found)
        (RESULTS / name / "README.md").write_text(f"# {name}\n\n{tables}")
        for bench in found:
            plot(bench, RESULTS / name / f"{bench.op}.png")
    readme = ROOT / "README.md"
    part = f"{BEGIN}\n{summary(folders)}\n{END}"
    text = re.sub(f"{BEGIN}.*?{END}", lambda _: part, readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    main()
