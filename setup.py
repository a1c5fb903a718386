"""Build the Cython kernels and the protobuf modules; everything else is in pyproject.toml.

Environment: ``CI`` makes warnings errors, ``SHARDGIT_DEBUG=1`` builds for debugging,
``SHARDGIT_ASAN=1`` builds with AddressSanitizer and UndefinedBehaviorSanitizer, ``SHARDGIT_COVERAGE=1`` also tells
libFuzzer which code runs (clang only),
``SHARDGIT_ZLIB=1`` leaves libdeflate out even when it is there, ``SHARDGIT_ZLIB=0`` builds nothing without it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Command, Extension, setup
from setuptools.command.build import build

ROOT = Path(__file__).parent
DEBUG = os.environ.get("SHARDGIT_DEBUG") == "1"
ASAN = os.environ.get("SHARDGIT_ASAN") == "1"
FLAGS = ["-Wall", "-Wextra", "-Wconversion", "-Wsign-compare"]
# A newer compiler must not break a user's build, so only CI turns warnings into errors.
FLAGS += ["-Werror"] if os.environ.get("CI") else []
SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if ASAN else []
SANITIZE += ["-fsanitize=fuzzer-no-link"] if ASAN and os.environ.get("SHARDGIT_COVERAGE") else []
OPTIMIZE = "-O0" if DEBUG else "-O1" if ASAN else "-O2"


def has_libdeflate() -> bool:
    """Compile and link a call to libdeflate, the way the kernel will."""
    if os.environ.get("SHARDGIT_ZLIB") == "1":
        return False
    source = "#include <libdeflate.h>\nint main(void){return libdeflate_alloc_decompressor()==0;}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.c"
        path.write_text(source)
        command = [
            os.environ.get("CC", "cc"),
            str(path),
            "-ldeflate",
            "-o",
            str(path.with_suffix("")),
        ]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


class build_proto(Command):
    """Compile proto/**/*.proto to src/, where import paths equal package paths."""

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        from importlib.resources import files

        from grpc_tools import protoc

        sources = self.get_source_files()
        if not sources:
            return
        out = str(ROOT / "src") if self.editable_mode else str(self.build_lib)
        Path(out).mkdir(parents=True, exist_ok=True)
        arguments = [
            "protoc",
            f"-I{ROOT / 'proto'}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *(str(ROOT / source) for source in sources),
        ]
        if protoc.main(arguments):
            raise SystemExit("protoc failed")
        for package in ("v1", "etcdpb"):
            (Path(out) / "shardgit" / package / "__init__.py").write_text(
                f'"""Protobuf modules generated from proto/shardgit/{package}."""\n'
            )

    def get_source_files(self) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "proto").rglob("*.proto"))

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class build_all(build):
    """The usual build, with the protobuf modules first."""

    sub_commands = [("build_proto", None), *build.sub_commands]


LIBDEFLATE = has_libdeflate()
if os.environ.get("SHARDGIT_ZLIB") == "0" and not LIBDEFLATE:
    raise SystemExit("libdeflate and its headers are missing, and SHARDGIT_ZLIB=0 asks for them")
SOURCES = list((ROOT / "src" / "shardgit").glob("_*"))


def kernel(name: str) -> Extension:
    """Return the extension for src/shardgit/NAME.pyx."""
    return Extension(
        f"shardgit.{name}",
        [f"src/shardgit/{name}.pyx"],
        include_dirs=["src/shardgit"],
        depends=sorted(f"src/shardgit/{p.name}" for p in SOURCES if p.suffix in (".h", ".pxd")),
        libraries=["crypto", "z", *(["deflate"] if LIBDEFLATE else [])],
        define_macros=[
            *([("SHARDGIT_LIBDEFLATE", "1")] if LIBDEFLATE else []),
            *([("CYTHON_TRACE_NOGIL", "1")] if DEBUG else []),
        ],
        extra_compile_args=[OPTIMIZE, *FLAGS, *SANITIZE],
        extra_link_args=SANITIZE,
    )


KERNELS = sorted(p.stem for p in SOURCES if p.suffix == ".pyx")
assert KERNELS, "the sources of the kernels are missing"

setup(
    cmdclass={"build": build_all, "build_proto": build_proto},
    ext_modules=cythonize(
        [kernel(name) for name in KERNELS],
        compiler_directives={
            "language_level": 3,
            "boundscheck": True,
            "wraparound": False,
            "cdivision": False,
            "binding": True,
            "auto_pickle": False,
            "linetrace": DEBUG,
        },
        annotate=DEBUG,
    ),
)
