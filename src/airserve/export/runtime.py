"""What a TensorRT plan was built with against what is on the machine that is to serve it; standard library only.

A plan runs on the TensorRT release and the GPU it was built for, unless it was built compatible. Triton finds a
mismatch too, with a message of the deserializer; this one says what to do, before anything is started.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import subprocess
from collections.abc import Mapping
from typing import Any

from airserve.artifacts import PLAN_FILE
from airserve.errors import ArtifactError

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
INFER_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")
CUDA_LIBRARIES = ("libcudart.so.14", "libcudart.so.13", "libcudart.so.12", "libcudart.so")


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def tensorrt_version() -> str:
    """`major.minor.patch` of the TensorRT library that a server of this machine loads, `unknown` without it."""
    library = _load(INFER_LIBRARIES)
    if library is None:
        return UNKNOWN
    number = int(library.getInferLibVersion())
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def cuda_version() -> str:
    """`major.minor` of the CUDA runtime, `unknown` without it."""
    library, number = _load(CUDA_LIBRARIES), ctypes.c_int(0)
    if library is None or library.cudaRuntimeGetVersion(ctypes.byref(number)):
        return UNKNOWN
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def gpu_name() -> str:
    """GPU, driver and compute capability as `nvidia-smi` says them, `unknown` without it."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return said.splitlines()[0].strip() if said.strip() else UNKNOWN


def runtime() -> dict[str, str]:
    """What this machine would serve a plan with."""
    return {"tensorrt": tensorrt_version(), "cuda": cuda_version(), "gpu": gpu_name()}


def _capability(gpu: str) -> str:
    """Compute capability of a `gpu_name`: plans are tied to it, not to the driver."""
    return gpu.rsplit(",", 1)[-1].strip()


def check_runtime(about: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Refuse to serve a plan on a machine that it was not built for.

    Args:
        about: the plan's manifest.
        found: of `runtime()`; what is `unknown` is not checked, which is logged.

    Raises:
        ArtifactError: naming what differs, and what to do.
    """
    remedy = "build it again here with build/compile_engine.py"
    for key, relaxed_by in (("tensorrt", "version_compatible"), ("cuda", "version_compatible"), ("gpu", None)):
        built, here = str(about.get(key, UNKNOWN)), found.get(key, UNKNOWN)
        if UNKNOWN in (built, here):
            log.warning("plan: %s %s when it was built, %s here: not checked", key, built, here)
            continue
        if key == "gpu":
            same = _capability(built) == _capability(here) or bool(about.get("hardware_compatible"))
            hint = f"{remedy}, or once with --hardware-compatible"
        else:
            depth = 1 if key == "cuda" else 3
            older = [int(part) for part in built.split(".")[:depth]] < [int(part) for part in here.split(".")[:depth]]
            same = built.split(".")[:depth] == here.split(".")[:depth] or (older and bool(about.get(relaxed_by or "")))
            hint = f"{remedy}, or once with --version-compatible and serve it with later releases"
        if not same:
            raise ArtifactError(PLAN_FILE, expected=f"{key} {built} (built with)", got=f"{key} {here}", remedy=hint)
