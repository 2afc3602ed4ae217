"""What every CUDA kernel takes of the machine, by compute capability, as the compiler says.

    python benchmarks/kernel_resources.py    # writes benchmarks/results/kernel_resources.csv

Needs nvcc, no GPU. Sources that are what the table was made of are not compiled again.
"""

import csv
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).parent / "results" / "kernel_resources.csv"
CAPABILITIES = [75, 80, 86, 89, 90, 100, 120]
# Run once per system, not per atom or edge.
COLD = {"start_search", "prepare_systems"}

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class Resources(NamedTuple):
    """Bytes, but for the registers of a thread; shared memory is the static part.

    ``code`` is the :func:`digest` of the source.
    """

    source: str
    kernel: str
    capability: int
    registers: int
    shared: int
    stack: int
    spills: int
    code: str

    @property
    def cold(self) -> bool:
        return self.kernel.split("<")[0] in COLD


INCLUDE = re.compile(r'#include "([^"]+)"')
COMMENT = re.compile(r"//[^\n]*")


def digest(source: Path) -> str:
    """Of a source and the headers of ours that it includes, comments and white space apart."""
    pending, seen = [source], {source}
    while pending:
        for name in INCLUDE.findall(pending.pop().read_text()):
            header = ROOT / "csrc" / name
            if header.exists() and header not in seen:
                seen.add(header)
                pending.append(header)
    texts = [COMMENT.sub("", path.read_text()).split() for path in sorted(seen)]
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:12]


def readable(mangled: list[str]) -> list[str]:
    """Names with template arguments, without namespaces and parameters."""
    command = ["c++filt", *mangled]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = []
    for line in lines:
        line = line.replace("(anonymous namespace)::", "").replace("molkern::", "")
        line = re.sub(r"\((?:int|bool|RadialBasis)\)", "", line)
        names.append(line.split("(")[0].removeprefix("void "))
    return names


def compile_kernels(
    source: Path, capabilities: Sequence[int] = CAPABILITIES
) -> Iterator[Resources]:
    """Compiles one source for some capabilities and reads what the assembler reports."""
    command = ["nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
    command += [f"-gencode=arch=compute_{c},code=sm_{c}" for c in capabilities]
    with tempfile.TemporaryDirectory() as folder:
        command += [
            "--threads",
            "2",
            "-Xptxas",
            "-v",
            "-c",
            str(source),
            "-o",
            f"{folder}/kernels.o",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc could not compile {source}:\n{done.stderr}")
    parts = ENTRY.split(done.stdout + done.stderr)[1:]
    names, code = readable(parts[0::3]), digest(source)
    for name, capability, report in zip(names, parts[1::3], parts[2::3], strict=True):
        stack, stores, loads = map(int, FRAME.search(report).groups())
        registers = int(REGISTERS.search(report)[1])
        shared = sum(map(int, SHARED.findall(report)))
        name_of = source.parent.name, name, int(capability)
        yield Resources(*name_of, registers, shared, stack, stores + loads, code)


def sources() -> list[Path]:
    return sorted(ROOT.glob("csrc/*/*_cuda.cu"))


def table() -> list[Resources]:
    """The rows that are there."""
    with TABLE.open() as file:
        found = list(csv.DictReader(file))
    numbers = Resources._fields[2:-1]
    return [
        Resources(row["source"], row["kernel"], *(int(row[n]) for n in numbers), row["code"])
        for row in found
    ]


def main() -> None:
    if not shutil.which("nvcc"):
        sys.exit("nvcc was not found: put the CUDA toolkit on PATH")
    known: dict[str, list[Resources]] = {}
    for row in table():
        known.setdefault(row.code, []).append(row)
    rows: list[Resources] = []
    for source in sources():
        rows += known.get(digest(source)) or compile_kernels(source)
        print(source.name, flush=True)
    rows.sort()
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Resources._fields)
        writer.writerows(rows)
    print(f"{TABLE}: {len(rows)} rows")


if __name__ == "__main__":
    main()
