"""Build of the library of native operators with the package; the rest is in pyproject.toml.

An editable install has the library in runtime/native/, a wheel in bita/runtime/native/. A wheel
with the library is for this system and any Python 3. If the library cannot be built, the package
installs without it, and a wheel is for every system; a line on stderr says why (`pip install -v`
shows it).
"""

import shutil
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.sdist import sdist

NATIVE = Path("runtime", "native")
sys.path.insert(0, str(NATIVE / "build_tools"))

import build_library  # noqa: E402


class BuildNative(Command):
    """Build the library where the package is loaded from: in the sources, or in `build_lib`."""

    description = "build the library of native operators"
    user_options = []  # noqa: RUF012

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False
        self.given: str | None = None  # a folder of libraries to copy instead of building

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        target = self._source() if self.editable_mode else self.library()
        if self.given:
            shutil.copytree(self.given, target.parent, dirs_exist_ok=True)
            return
        build_library.main(["--optional", "--into", str(target.parent)])

    def library(self) -> Path:
        """Return the path of the library in a package, where it is missing if it was not built."""
        return Path(self.build_lib or "", "bita", self._source())

    def get_source_files(self) -> list[str]:
        """Return the files for a source distribution, including those of libbita and its tests."""
        kinds = ("CMakeLists.txt", "build_tools/*", "**/*.cpp", "**/*.h", "**/*.hpp")
        kinds += ("abi/*", "fuzz/seeds/**/*")
        paths = {path for kind in kinds for path in NATIVE.glob(kind) if path.is_file()}
        return sorted(path.as_posix() for path in paths)

    def get_outputs(self) -> list[str]:
        built = self._source() if self.editable_mode else self.library()
        return [str(self.library())] if built.is_file() else []

    def get_output_mapping(self) -> dict[str, str]:
        """Map the library's path in a package to its path in an editable install."""
        if not self.editable_mode:
            return {}
        return {output: str(self._source()) for output in self.get_outputs()}

    def _source(self) -> Path:
        return NATIVE / build_library.library_name()


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012


class Sdist(sdist):
    """Include the repository's links, which MANIFEST.in cannot name.

    Python finds `bita.export` through them if it runs in the folder of the sources.
    """

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        for name in ("adapters", "calibration", "export", "runtime"):
            link = Path(base_dir, "bita", name)
            shutil.rmtree(link, ignore_errors=True)  # of a package's data there is a copy
            link.symlink_to(Path("..", name))


class BdistWheel(bdist_wheel):
    """Build a wheel for this system if it has the library, otherwise for every system.

    --native and --plat-name build one for another system (build_wheels.py).
    """

    user_options = [  # noqa: RUF012
        *bdist_wheel.user_options,
        ("native=", None, "a folder of prebuilt libraries for the system of --plat-name"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.native: str | None = None

    def run(self) -> None:
        native = self.get_finalized_command("build_native")
        native.given = self.native
        self.run_command("build")
        if native.library().is_file():
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else (self.python_tag, "none", tag[2])


setup(
    cmdclass={
        "build": Build,
        "build_native": BuildNative,
        "bdist_wheel": BdistWheel,
        "sdist": Sdist,
    },
    setup_requires=build_library.missing_tools(),  # pip fetches them
)
