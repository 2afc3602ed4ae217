"""Builds the extension molkern._C with ninja.

CPU kernels (``*_cpu.cpp``) are compiled once per instruction set and chosen at run time; CUDA
kernels (``*_cuda.cu``) are compiled where a CUDA compiler and a torch built for CUDA are at hand.
Kernels include no torch headers, so editing one rebuilds in seconds.

Environment:
  MOLKERN_CUDA=0|1       never / always build the CUDA kernels (default: if nvcc and torch allow it)
  MOLKERN_EMULATE_CUDA=1 build the CUDA kernels for the host, on CPU tensors, for tests:
                         python setup.py build --build-lib build/emulated
                         With MOLKERN_EMULATE_CUDA=0, such a build runs the CPU's kernels
  MOLKERN_ISAS           instruction sets of the CPU kernels, of those in ISAS ("avx2"; default:
                         all). Without the baseline the build is for machines like this one
  MOLKERN_CXXFLAGS       more flags for the C++ compiler and the linker (sanitizers, say)
  TORCH_CUDA_ARCH_LIST   GPU architectures, as for torch ("8.0;9.0+PTX")
  MAX_JOBS               parallel compile jobs
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
EMULATION = ROOT / "tests" / "cuda_emulation"
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Baseline first: the linker keeps the first copy of any inline function, and that copy must run on
# every machine.
ISAS = {"baseline": []}
if X86:
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
    ISAS["avx512"] += ["-mprefer-vector-width=512"]
WANTED_ISAS = os.environ.get("MOLKERN_ISAS", ",".join(ISAS)).split(",")
if unknown := set(WANTED_ISAS) - set(ISAS):
    raise SystemExit(f"MOLKERN_ISAS must be of {', '.join(ISAS)}, got {', '.join(sorted(unknown))}")
ISAS = {name: flags for name, flags in ISAS.items() if name in WANTED_ISAS}
# CPU kernels whose results must not depend on the instruction set: no fused multiply-adds of the
# compiler's own choice.
EXACT_KERNELS = {"neighbors_cpu.cpp"}
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
EXTRA_FLAGS = shlex.split(os.environ.get("MOLKERN_CXXFLAGS", ""))
ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def cuda_home(nvcc):
    """The toolkit of this nvcc, by its own word: nvcc may be a script that calls another."""
    plan = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    ).stderr
    for line in plan.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return Path(nvcc).resolve().parent.parent


def wants_cuda(torch):
    """Whether to build for CUDA; what was asked for and cannot be had is an error."""
    asked = os.environ.get("MOLKERN_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"MOLKERN_CUDA must be 0 or 1, got {asked!r}")
    if asked == "0":
        return False
    nvcc, version = find_nvcc(), torch.version.cuda
    if asked == "1" and not nvcc:
        raise SystemExit("MOLKERN_CUDA=1, but no nvcc was found: put it on PATH or set CUDA_HOME")
    if asked == "1" and not version:
        raise SystemExit(
            f"MOLKERN_CUDA=1, but this torch ({torch.__version__}) is built without CUDA: "
            "install a CUDA build of torch first, then pip install --no-build-isolation ."
        )
    return bool(nvcc and version)


def cuda_architectures(nvcc):
    """``-gencode`` flags and a readable list, from TORCH_CUDA_ARCH_LIST or all that nvcc knows."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", ";").replace(" ", ";")
    names = [name for name in wanted.split(";") if name]
    if not names:
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        names = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}\n" in known]
        names[-1] += "+PTX"
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags, names


class NinjaFile:
    """Collects build statements and runs ninja on them.

    Objects lie in folders by kind of build. Those that every kind compiles alike are shared.
    """

    def __init__(self, build_dir, kind):
        self.build_dir = Path(build_dir).resolve()
        self.kind = kind
        self.lines = ["ninja_required_version = 1.3"]
        self.builds = []  # (weight, lines)
        self.objects = []

    def rule(self, name, command, deps=True):
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if deps:
            self.lines += ["  deps = gcc", "  depfile = $out.d"]

    def compile(self, rule, source, suffix="", shared=False, **variables):
        source = Path(source).resolve()
        name = source.relative_to(ROOT.resolve()).with_suffix("")
        target = self.build_dir / ("shared" if shared else self.kind) / f"{name}{suffix}.o"
        lines = [f"build {target}: {rule} {source}"]
        lines += [f"  {key} = {value}" for key, value in variables.items()]
        # What takes longest is started first: kernels, above all those of folders full of code.
        kernel = bool(suffix) or rule == "nvcc"
        code = sum(path.stat().st_size for path in source.parent.iterdir())
        self.builds.append(((kernel, code), lines))
        self.objects.append(str(target))

    def link(self, target):
        self.lines.append(f"build {Path(target).resolve()}: link {' '.join(self.objects)}")

    def run(self):
        self.build_dir.mkdir(parents=True, exist_ok=True)
        self.builds.sort(key=lambda build: build[0], reverse=True)
        lines = [*self.lines, *(line for _, build in self.builds for line in build)]
        file = self.build_dir / f"{self.kind}.ninja"
        file.write_text("\n".join(lines) + "\n")
        jobs = os.environ.get("MAX_JOBS")
        command = [sys.executable, "-m", "ninja", "-C", str(self.build_dir), "-f", file.name]
        subprocess.run(command + (["-j", jobs] if jobs else []), check=True)


class NinjaBuild(build_ext):
    """Builds the extension; object files stay in build/, however setup.py is called."""

    def build_extension(self, ext):
        import torch
        from torch.utils import cpp_extension

        emulate = os.environ.get("MOLKERN_EMULATE_CUDA", "0") == "1"
        if emulate and self.inplace:
            raise SystemExit(
                "MOLKERN_EMULATE_CUDA=1 makes an extension for tests; build it beside the real "
                "one: python setup.py build --build-lib build/emulated"
            )
        cuda = not emulate and wants_cuda(torch)
        nvcc = find_nvcc() if cuda else None
        arch_flags, arch_names = cuda_architectures(nvcc) if cuda else ([], [])
        compiler = os.environ.get("CXX", "c++")
        defines = [f"-DMOLKERN_WITH_{isa.upper()}" for isa in ISAS]
        defines += ["-DMOLKERN_EMULATE_CUDA"] * emulate + ["-DMOLKERN_WITH_CUDA"] * cuda
        defines += ["-DMOLKERN_HAS_CUDA_KERNELS"] * (cuda or emulate)
        plain = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", f"-I{CSRC}"]
        plain += [*OPENMP, "-O3", *EXTRA_FLAGS]
        base = [*plain, *defines]
        torch_flags = [*base, *(f"-isystem{path}" for path in cpp_extension.include_paths())]
        if cuda:
            torch_flags.append(f"-isystem{cuda_home(nvcc) / 'include'}")

        # ninja watches no torch headers: objects of another torch must not be found.
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-torch-{torch.__version__}"
        extra = f"flags-{zlib.crc32(shlex.join(EXTRA_FLAGS).encode()):08x}"
        folder = ROOT / "build" / f"objects-{tag}" / (extra if EXTRA_FLAGS else "plain")
        ninja = NinjaFile(folder, "emulated" if emulate else "native")
        ninja.rule("cxx", f"{compiler} $flags -MMD -MF $out.d -c $in -o $out")
        if cuda:
            flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{CSRC}", *defines]
            flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "2", *arch_flags]
            ninja.rule("nvcc", f"{nvcc} {' '.join(flags)} -MMD -MF $out.d -c $in -o $out")
        # The module and the baseline objects come first, see ISAS.
        info = {
            "MOLKERN_COMPILER": self._compiler_version(compiler),
            "MOLKERN_TORCH_VERSION": torch.__version__,
            "MOLKERN_ISAS": ",".join(ISAS),
            "MOLKERN_CUDA_VERSION": torch.version.cuda if cuda else "",
            "MOLKERN_CUDA_ARCHITECTURES": " ".join(arch_names),
        }
        ninja.compile("cxx", CSRC / "module.cpp", flags=" ".join(base + self._module_flags(info)))
        for name in ("isa.cpp", "idle_memory.cpp", "block_pool.cpp"):
            ninja.compile("cxx", CSRC / "common" / name, flags=" ".join(base))
        for source in [*sorted(CSRC.glob("*/*_op.cpp")), CSRC / "common" / "torch_utils.cpp"]:
            ninja.compile("cxx", source, flags=" ".join(torch_flags))
        self._add_kernels(ninja, plain, base, cuda, emulate)

        ninja.rule("link", f"{compiler} -shared -o $out $in {self._link_flags(nvcc)}", deps=False)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        ninja.link(target)
        ninja.run()

    @staticmethod
    def _module_flags(info):
        try:
            import pybind11

            pybind = [pybind11.get_include()]
        except ImportError:  # torch carries a copy
            from torch.utils import cpp_extension

            pybind = cpp_extension.include_paths()
        flags = [f"-isystem{path}" for path in (*pybind, sysconfig.get_paths()["include"])]
        return flags + [shlex.quote(f'-D{key}="{value}"') for key, value in info.items()]

    @staticmethod
    def _add_kernels(ninja, plain, base, cuda, emulate):
        # Errors of single operations are never looked at (errno, floating-point traps).
        careless = ["-fno-math-errno", "-fno-trapping-math"]
        for isa, isa_flags in ISAS.items():
            for source in sorted(CSRC.glob("*/*_cpu.cpp")):
                flags = [*plain, *careless, *isa_flags, f"-DMOLKERN_ISA={isa}"]
                flags += ["-ffp-contract=off"] * (source.name in EXACT_KERNELS)
                ninja.compile("cxx", source, f".{isa}", shared=True, flags=" ".join(flags))
        for source in sorted(CSRC.glob("*/*_cuda.cu")):
            if cuda:
                ninja.compile("nvcc", source)
            elif emulate:
                flags = [*base, *careless, "-ffp-contract=off", "-Wno-unknown-pragmas"]
                flags.append(f"-I{EMULATION}")
                ninja.compile("cxx", source, ".emulated", flags=" ".join([*flags, "-x", "c++"]))
        for source in sorted(EMULATION.glob("*.cpp")) if emulate else []:
            ninja.compile("cxx", source, flags=" ".join(base))

    @staticmethod
    def _link_flags(nvcc):
        from torch.utils import cpp_extension

        flags = [*OPENMP, *EXTRA_FLAGS, *(f"-L{path}" for path in cpp_extension.library_paths())]
        flags += ["-lc10", "-ltorch_cpu", "-ltorch"]
        if sys.platform == "darwin":
            flags += ["-undefined", "dynamic_lookup"]
        if nvcc:
            home = cuda_home(nvcc)
            flags += ["-lc10_cuda", "-ltorch_cuda", f"-L{home / 'lib64'}"]
            flags += [f"-L{path}" for path in sorted(home.glob("targets/*/lib"))]
            flags += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return " ".join(flags)

    @staticmethod
    def _compiler_version(compiler):
        text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        return text.splitlines()[0].replace('"', "") if text else compiler


setup(
    ext_modules=[Extension("molkern._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
