"""The report on the comparisons, of a few that are made up."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import report
import report_plots


def comparison(kernel, case, seconds, *, threads=1, size=None, memory=None):
    memory = memory or {}
    rows = [
        {
            "implementation": name,
            "version": "1.0",
            "median_s": value,
            "quartiles_s": [0.9 * value, 1.23456789 * value],
            "times_as_fast": value / seconds["molkern"],
            "peak_bytes": memory.get(name),
        }
        for name, value in seconds.items()
    ]
    about = {"device": "a processor", "torch": "2.13.0", "molkern": "0.1.0", "date": "2026-01-02"}
    shared = {"kernel": kernel, "case": case, "threads": threads, "size": size or {}}
    return {"name": "test", "extra_info": {**shared, **about, "rows": rows}}


COMPARISONS = [
    comparison(
        "cfconv",
        "3,000 atoms, backward",
        {"molkern": 2e-3, "eager torch": 8e-3, "torch.compile": 5e-3, "[stream]": 1e-3},
        memory={"molkern": 1_500_000, "eager torch": 300_000_000},
    ),
    comparison(
        "cfconv", "3,000 atoms, backward", {"molkern": 1e-3, "eager torch": 9e-3}, threads=2
    ),
    comparison("neighbor list", "water", {"molkern": 1e-4, "vesin": 4.25e-4}),
    {"name": "without a comparison", "extra_info": {}},
]
SCALING = [
    comparison(
        "scaling",
        f"{atoms:,} atoms of water",
        {"molkern": 1e-6 * atoms, "PyTorch Geometric": 2e-5 * atoms},
        size={"atoms": atoms},
        memory={"molkern": 100 * atoms},
    )
    for atoms in (100, 1000)
]


def entries_of(tmp_path, comparisons):
    source = tmp_path / "benchmarks.json"
    source.write_text(json.dumps({"benchmarks": comparisons}))
    return report.read([source])


def test_tables(tmp_path):
    report.write_tables(entries_of(tmp_path, COMPARISONS), tmp_path / "tables.md")
    lines = (tmp_path / "tables.md").read_text(encoding="utf-8").splitlines()
    assert "a processor; torch 2.13.0; molkern 0.1.0; vesin 1.0; 2026-01-02." in lines
    assert lines.index("## neighbor list") < lines.index("## cfconv")
    assert "| case | threads | molkern | eager torch | torch.compile | [stream] |" in lines
    first = "| 3,000 atoms, backward | 1 | 2 ms (1.5 MB) | 4 (300 MB) | 2.5 | 0.5 |"
    assert lines[lines.index(first) + 1] == "| 3,000 atoms, backward | 2 | 1 ms | 9 |  |  |"
    assert "| water | 1 | 0.1 ms | 4.25 |" in lines


def test_rows(tmp_path):
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    report.write_rows(entries_of(tmp_path, COMPARISONS), first)
    report.write_rows(entries_of(tmp_path, COMPARISONS), again)
    assert first.read_bytes() == again.read_bytes()
    rows = json.loads(first.read_text(encoding="utf-8"))
    assert len(rows) == 8
    assert rows[0]["kernel"] == "neighbor list"
    assert rows[1]["quartiles_s"] == [3.825e-4, 5.247e-4]
    for row in rows:
        assert {"device", "threads", "version", "torch", "molkern", "date"} <= row.keys()


def test_files(tmp_path):
    source, out = tmp_path / "benchmarks.json", tmp_path / "results"
    source.write_text(json.dumps({"benchmarks": COMPARISONS + SCALING}))
    files = {path.name: path for path in report.report([source], out)}
    plots = {"speedups.png", "memory.png", "scaling.png"}
    assert files.keys() == {"comparisons.json", "comparisons.md"} | plots
    for name in plots:
        assert files[name].read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in files["comparisons.md"].read_text(encoding="utf-8")


def test_plots_without_their_rows(tmp_path):
    of_kernels = entries_of(tmp_path, COMPARISONS)
    assert report_plots.plot_scaling(of_kernels) is None
    of_atoms = entries_of(tmp_path, SCALING[:1])
    assert report_plots.plot_speedups(of_atoms) is None
    assert report_plots.plot_memory(of_atoms) is None
    assert report_plots.plot_scaling(of_atoms) is not None


def test_nothing_measured(tmp_path):
    source = tmp_path / "benchmarks.json"
    source.write_text(json.dumps({"benchmarks": COMPARISONS[-1:]}))
    with pytest.raises(SystemExit, match="no comparisons"):
        report.report([source], tmp_path)
