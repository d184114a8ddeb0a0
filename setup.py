"""Build of the Cython data plane, and which packages there are; all else is in pyproject.toml.

Switches (environment):
    SHADOWMESH_DEBUG_BUILD=1  bounds and None checks on, assertions in C, no optimisation
    SHADOWMESH_SANITIZE=      memory: address and undefined-behaviour sanitizers; thread: the one for
                              data races (see `make sanitize`)
    SHADOWMESH_COVERAGE=1     lines are counted (see `make coverage`)
    SHADOWMESH_WERROR=1       C compiler warnings are errors (set by `make lint` and in CI)
    SHADOWMESH_LIBSODIUM      auto, system or source (scripts/libsodium.py)
    SHADOWMESH_HOOKS=0        without the modules for tests and measurements (set for wheels)
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))

import libsodium  # noqa: E402  (scripts/ is not a package)
import openssl  # noqa: E402

PACKAGE = Path("shadowmesh")
#: shadowmesh/keys/sodium.py looks for it
CARRIED = "_libsodium.so"

WARNINGS = [
    "-Wall",
    "-Wextra",
    # Cython's own output, not ours: every slot function takes arguments it may not need, and
    # module tables are filled by name.
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
]
# Frames are read through structs laid over byte buffers, so the compiler must not assume that
# pointers of different type never meet. No -march: the build must run on every machine of the
# architecture, and libsodium picks its vector code at run time.
COMMON = ["-std=gnu11", "-fno-strict-aliasing", "-fvisibility=hidden", *WARNINGS]
RELEASE = ["-O3", "-g1", "-DNDEBUG"]
DEBUG = ["-O0", "-g3", "-UNDEBUG"]
SANITIZE = ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"]
# Threads count, too, so they have to do it one after the other.
COVERAGE = ["-O0", "-g1", "-DNDEBUG", "--coverage", "-fprofile-update=atomic"]
SANITIZERS = {
    "": [],
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    # It does not know fences; what it is to see is ordered by acquire and release as well.
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
}


def is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


class BuildFastpath(build_ext):
    """Translate and compile the data plane and its hooks when a source or a switch has changed."""

    def build_extensions(self) -> None:
        sodium, ssl = libsodium.choose(), openssl.find()
        debug, coverage = is_set("SHADOWMESH_DEBUG_BUILD"), is_set("SHADOWMESH_COVERAGE")
        sanitize = os.environ.get("SHADOWMESH_SANITIZE", "")
        if sanitize not in SANITIZERS:
            sys.exit(f"SHADOWMESH_SANITIZE={sanitize} is none of: {' '.join(SANITIZERS)}")
        variant = sanitize or ("debug" if debug else "coverage" if coverage else "release")
        levels = {"debug": DEBUG, "coverage": COVERAGE, "release": RELEASE}
        flags = [*COMMON, *levels.get(variant, SANITIZE), *SANITIZERS[sanitize]]
        flags += ["-Werror"] if is_set("SHADOWMESH_WERROR") else []
        directives = {
            "language_level": 3,
            "boundscheck": debug,
            "wraparound": False,
            "initializedcheck": debug,
            "nonecheck": debug,
            "cdivision": True,
            "embedsignature": True,
        }
        for extension in self.extensions:
            includes = [f"-I{PACKAGE / 'fast'}", *sodium.cflags, *ssl.cflags]
            extension.extra_compile_args = [*flags, *includes]
            extension.extra_link_args = [*SANITIZERS[sanitize], *sodium.ldflags, *ssl.ldflags]
            extension.extra_link_args += ["--coverage"] if variant == "coverage" else []
            extension.depends = [
                *sorted(str(path) for path in PACKAGE.glob("fast/**/*.px[di]")),
                *sorted(str(path) for path in PACKAGE.glob("fast/**/*.h")),
                str(self._switches(variant, extension, directives)),
            ]
        stale = sum(self.force or self._is_stale(extension) for extension in self.extensions)
        if stale:
            print(
                f"compiling the data plane: {stale} modules, {os.cpu_count()} processors;"
                f" {sodium.summary}; {ssl.summary}",
                flush=True,
            )
        translate(self.extensions, variant, directives)
        # Some interpreters, such as pyenv's, want their own directory searched for libraries by
        # whatever is built with them. Ours needs none from there, and is also packed for machines
        # on which somebody else may own that path.
        linker = self.compiler.linker_so
        linker[:] = [word for word in linker if not word.startswith("-Wl,-rpath")]
        self.parallel = len(self.extensions)
        super().build_extensions()

    def _is_stale(self, extension: Extension) -> bool:
        """What setuptools will find: a source is newer than the module, or there is none."""
        inputs = [*extension.sources, *extension.depends]
        return newer_group(inputs, self.get_ext_fullpath(extension.name), "newer")

    def run(self) -> None:
        """Build, and put a libsodium for pysodium beside the modules.

        The wheel then needs none of the system's. Not in build_extensions: until the end of run
        setuptools hides that the modules go into the source tree.
        """
        super().run()
        sodium = libsodium.choose()
        carried = Path(self.get_ext_fullpath("shadowmesh._fastpath")).with_name(CARRIED)
        if sodium.archive is None:
            carried.unlink(missing_ok=True)
        else:
            libsodium.link_shared(sodium.archive, carried)

    def _switches(self, variant: str, extension: Extension, directives: object) -> Path:
        """A file that changes only when the switches do: building depends on it."""
        text = "\n".join(
            [variant, *extension.extra_compile_args, *extension.extra_link_args, repr(directives)]
        )
        path = Path("build") / "switches" if self.inplace else Path(self.build_temp) / "switches"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return path


def translate(extensions: list[Extension], variant: str, directives: dict[str, object]) -> None:
    """Run Cython where needed and point each extension at its C file.

    A performance hint (a hidden exception check or GIL call) ends the build.
    """
    from Cython.Build import cythonize

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            translated = cythonize(
                extensions,
                build_dir=f"build/cython-{variant}",
                compiler_directives=directives,
                show_all_warnings=False,
                # Else gcov would count the lines of Cython's C.
                emit_linenums=variant == "coverage",
                quiet=True,  # we have said what happens now
            )
    finally:
        sys.stderr.write(said.getvalue())
    if "performance hint:" in said.getvalue():
        for extension in translated:
            for source in extension.sources:
                Path(source).unlink(missing_ok=True)  # else the next run would be silent
        raise SystemExit("build: Cython gave performance hints (above); they count as errors")
    for extension, c_extension in zip(extensions, translated, strict=True):
        extension.sources = c_extension.sources


HOOKS = PACKAGE / "fast" / "hooks"
SOURCES = [
    PACKAGE / "_fastpath.pyx",
    *(PACKAGE / "fast" / name for name in ("bench.pyx", "openssl.pyx")),
]
WITHOUT = ["shadowmesh.fast.hooks"]
if os.environ.get("SHADOWMESH_HOOKS") != "0":
    SOURCES += sorted(HOOKS.glob("*.pyx"))
    WITHOUT = []

setup(
    packages=find_packages(include=["shadowmesh*"], exclude=WITHOUT),
    ext_modules=[
        Extension(".".join(source.with_suffix("").parts), [str(source)]) for source in SOURCES
    ],
    cmdclass={"build_ext": BuildFastpath},
)
