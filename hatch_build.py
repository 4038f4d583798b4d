"""Build hook of hatchling: compiles the kernels when bertray is installed or a wheel is built, where a compiler is.

Without one the installation succeeds, and torch's own operations do the work. The wheel then is for any platform.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("bertray/model/kernels")


class BuildKernels(BuildHookInterface):  # type: ignore[misc]  # hatchling is there only while a wheel is built
    """Libraries of the kernels beside their source, as files of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what is missing; an editable installation finds it in the source tree."""
        spec = importlib.util.spec_from_file_location("build_kernels", Path(self.root) / KERNELS / "build.py")
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        libraries, why_not = build.build_all()
        if why_not:
            self.app.display_warning(f"bertray runs without its own kernels, more slowly: {why_not}.")
        if libraries and version != "editable":
            build_data["artifacts"] += [f"/{KERNELS / build.LIBRARIES.name}/{library.name}" for library in libraries]
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
