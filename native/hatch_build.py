"""Compiles the kernel into a wheel, which is for one platform and any version of Python."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE, LIBRARY = "minialbert_native/kernel.cpp", "minialbert_native/kernel.so"
INSTRUCTIONS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma")
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", *INSTRUCTIONS)


class KernelHook(BuildHookInterface):
    """Runs the C++ compiler that CXX names, or c++, before files are packed.

    A mistake ends the process: pip then shows its one line, and no traceback.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what the wheel is for."""
        if platform.machine().lower() not in ("x86_64", "amd64"):
            raise SystemExit(
                "minialbert-native is for x86-64: leave it out, and the runtime uses ONNX Runtime"
            )
        library = Path(self.root) / LIBRARY
        if version != "editable":  # a checkout may be read-only, and is not to be changed
            self.folder = tempfile.TemporaryDirectory(prefix="minialbert-native-")
            library = Path(self.folder.name) / library.name
        compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
        try:
            subprocess.run([*compiler, *FLAGS, SOURCE, "-o", str(library)], cwd=self.root, check=True)
        except OSError:
            raise SystemExit(
                f"minialbert-native needs a C++ compiler, and {compiler[0]} cannot be run: install g++ or clang, "
                "set CXX to another, or leave minialbert-native out"
            ) from None
        except subprocess.CalledProcessError:
            raise SystemExit(
                f"minialbert-native: {compiler[0]} failed, see above: it must know C++20 "
                "(CXX names another compiler), or leave minialbert-native out"
            ) from None
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["force_include"][str(library)] = LIBRARY
