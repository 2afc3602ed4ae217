"""Tables and plots of the comparisons, from what pytest-benchmark wrote.

    python benchmarks/report.py build/benchmarks.json [more.json] [--out benchmarks/results]

Writes comparisons.json (every row, one a line), comparisons.md (tables by kernel), speedups.png,
memory.png and, where there are rows of the kernel "scaling", scaling.png. Of a comparison that is
in several files the last one counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
#: Kernels, then models; others follow by name.
ORDER = [
    "neighbor list",
    "edge geometry",
    "radial basis",
    "spherical basis",
    "cfconv",
    "cfconv with filters",
    "DTNN messages",
    "triplets",
    "triplets by method",
    "dense layers",
    "SchNet",
    "PhysNet",
    "DTNN",
    "DimeNet",
    "DimeNet++",
]
SHARED = ("kernel", "case", "size", "threads", "device", "torch", "molkern", "date")
Entry = dict[str, Any]


def read(paths: Iterable[Path]) -> list[Entry]:
    """Comparisons with their rows, sorted by kernel, case and threads; cases keep their order."""
    found: dict[tuple[str, str, int], Entry] = {}
    for path in paths:
        for measured in json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]:
            entry = measured["extra_info"]
            if "rows" in entry:
                found[entry["kernel"], entry["case"], entry["threads"]] = entry
    cases: dict[tuple[str, str], int] = {}
    for kernel, case, _ in found:
        cases.setdefault((kernel, case), len(cases))

    def key(entry: Entry) -> tuple[int, str, int, int]:
        kernel = entry["kernel"]
        known = ORDER.index(kernel) if kernel in ORDER else len(ORDER)
        return known, kernel, cases[kernel, entry["case"]], entry["threads"]

    return sorted(found.values(), key=key)


def is_floor(name: str) -> bool:
    return name.startswith("[")


def is_peer(name: str) -> bool:
    """Neither molkern, nor another way of its own, nor a floor."""
    return not is_floor(name) and name.split(",")[0] != "molkern"


def rounded(value: Any) -> Any:
    """Numbers of four digits, within lists too."""
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_rows(entries: list[Entry], path: Path) -> None:
    """All rows, each with all that it is about, one a line."""
    lines = []
    for entry in entries:
        for row in entry["rows"]:
            whole = {**{name: entry[name] for name in SHARED}, **row}
            lines.append(json.dumps({k: rounded(v) for k, v in whole.items()}, ensure_ascii=False))
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.1g}"


def columns(entries: list[Entry]) -> list[str]:
    """Implementations beside molkern: its own other ways, peers, then floors."""
    names = {row["implementation"]: None for entry in entries for row in entry["rows"]}
    names.pop("molkern", None)
    return sorted(names, key=lambda name: 2 if is_floor(name) else int(is_peer(name)))


def cell(row: dict[str, Any] | None) -> str:
    """How many times as fast molkern is, and the megabytes of the other."""
    if row is None:
        return ""
    text = number(row["times_as_fast"])
    if row["peak_bytes"] and not is_floor(row["implementation"]):
        text += f" ({number(row['peak_bytes'] / 1e6)} MB)"
    return text


def table(entries: list[Entry]) -> str:
    """One kernel's comparisons in Markdown."""
    names = columns(entries)
    lines = ["| " + " | ".join(["case", "threads", "molkern", *names]) + " |"]
    lines.append("|---|" + "---|" * (2 + len(names)))
    for entry in entries:
        rows = {row["implementation"]: row for row in entry["rows"]}
        ours = rows["molkern"]
        time = f"{number(ours['median_s'] * 1e3)} ms"
        if ours["peak_bytes"]:
            time += f" ({number(ours['peak_bytes'] / 1e6)} MB)"
        cells = [entry["case"], str(entry["threads"]), time]
        lines.append("| " + " | ".join(cells + [cell(rows.get(name)) for name in names]) + " |")
    return "\n".join(lines)


def header(entries: list[Entry]) -> str:
    """Device, versions and date of all, in a line."""

    def values(name: str) -> str:
        return " and ".join(sorted({str(entry[name]) for entry in entries}))

    peers = {
        (row["implementation"].split(",")[0], row["version"])
        for entry in entries
        for row in entry["rows"]
        if is_peer(row["implementation"])
    }
    named = [f"{a} {b}" for a, b in sorted(peers) if a not in ("eager torch", "torch.compile")]
    parts = [values("device"), f"torch {values('torch')}", f"molkern {values('molkern')}"]
    return "; ".join([*parts, *named, values("date")]) + "."


def write_tables(entries: list[Entry], path: Path, pictures: Iterable[Path] = ()) -> None:
    text = [
        "# Comparisons",
        header(entries),
        "Median times of molkern, and how many times as fast it is as each other implementation, "
        "timed in turns; in parentheses the most memory that a call has in use beyond what was "
        "there before. Columns in brackets are floors, not competitors: what the machine needs at "
        "least, as a share of molkern's time.",
    ]
    text += [f"![{picture.stem}]({picture.name})" for picture in pictures]
    kernels = dict.fromkeys(entry["kernel"] for entry in entries)
    for kernel in kernels:
        of_it = [entry for entry in entries if entry["kernel"] == kernel]
        text += [f"## {kernel}", table(of_it)]
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")


def report(paths: Iterable[Path], out: Path) -> list[Path]:
    """Writes everything; the files that it wrote."""
    import report_plots

    entries = read(paths)
    if not entries:
        raise SystemExit("there are no comparisons in these files: run with --benchmark-enable")
    out.mkdir(parents=True, exist_ok=True)
    pictures = report_plots.write_all(entries, out)
    rows, tables = out / "comparisons.json", out / "comparisons.md"
    write_rows(entries, rows)
    write_tables(entries, tables, pictures)
    return [rows, tables, *pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for path in report(options.json, options.out):
        print(path)


if __name__ == "__main__":
    main()
