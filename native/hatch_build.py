"""Compiles the kernel into a wheel, which is for one platform and any version of Python."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE, LIBRARY = "minialbert_native/kernel.cpp", "minialbert_native/kernel.so"
INSTRUCTIONS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma")
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", *INSTRUCTIONS)


class KernelHook(BuildHookInterface):
    """Runs the C++ compiler that CXX names, or c++, before files are packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what the wheel is for."""
        if platform.machine().lower() not in ("x86_64", "amd64"):
            raise RuntimeError("minialbert-native is for x86-64: elsewhere the runtime uses ONNX Runtime")
        root = Path(self.root)
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        command = [*compiler, *FLAGS, str(root / SOURCE), "-o", str(root / LIBRARY)]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError as error:
            raise RuntimeError(
                "minialbert-native needs a C++ compiler: install g++ or clang, or set CXX"
            ) from error
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(LIBRARY)
