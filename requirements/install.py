"""Create the two environments of the project, from the locks beside this file. Standard library only.

`.venv` has vLLM, torch and the clients (NumPy 2); `.venv-triton` has the Triton server (NumPy 1). Indexes and
find-links are taken from pip's own configuration. An environment whose lock did not change is left alone.

    python3 requirements/install.py
    python3 requirements/install.py --checks    # also .venv-trt, for the tests of TensorRT's builder
"""

import hashlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {".venv": "main.lock", ".venv-triton": "triton.lock"}
CHECKS = {".venv-trt": "trt-check.lock"}
"""Not needed to run anything: a failed install is said and passed over."""
AOT_TOOL = Path(os.environ.get("AIRSERVE_TRT_AOT_CHECK", ROOT.parent / "shared" / "tools" / "trt_aot_check"))
SIZES_GB = {"main.lock": 3.7, "triton.lock": 0.3, "trt-check.lock": 0.3}
UV = "uv==0.13.9"
STAMP = "airserve-installed.sha256"
REMEDY = """
install: could not install {environment} from requirements/{lock}.
  What failed is above. Usual causes:
  - torch==2.13.0+cpu not found: it is in PyTorch's own index of CPU wheels, not on PyPI. Tell pip where
    (pip config set global.extra-index-url URL, or PIP_EXTRA_INDEX_URL) and run this again.
  - another package not found: your index lags behind; see the version in requirements/{lock}.
  - no connection: set pip's index-url or proxy; this reads pip's configuration.
"""


def fail(message: str) -> None:
    """End with one message and exit status 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def check_machine() -> None:
    """Refuse what the pinned wheels do not support."""
    if sys.version_info[:2] != (3, 11):
        fail(f"install: expected Python 3.11, got {platform.python_version()}; run it with PYTHON=python3.11")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        fail(f"install: expected Linux on x86_64, got {platform.system()} on {platform.machine()}; use a container")


def pip_setting(python: Path, name: str) -> str:
    """One of pip's settings from its files or environment, empty when not set."""
    for scope in (":env:", "install", "global"):
        done = subprocess.run(
            [str(python), "-m", "pip", "config", "get", f"{scope}.{name}"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.strip():
            return " ".join(done.stdout.split())
    return ""


def uv_environment(python: Path) -> dict[str, str]:
    """uv told what pip knows."""
    env = dict(os.environ)
    links, index, extra = (pip_setting(python, name) for name in ("find-links", "index-url", "extra-index-url"))
    if links:
        env.setdefault("UV_FIND_LINKS", links.replace(" ", ","))
    if index:
        env.setdefault("UV_DEFAULT_INDEX", index)
    if extra:
        env.setdefault("UV_INDEX", extra)
    return env


def wanted_stamp(lock: str) -> str:
    """What an up-to-date environment is stamped with."""
    text = (ROOT / "requirements" / lock).read_bytes()
    return hashlib.sha256(text + str(ROOT).encode()).hexdigest()


def install(environment: str, lock: str, *, optional: bool = False) -> None:
    """Create or update one environment; with `optional`, a failure is a warning."""

    def failed() -> None:
        if not optional:
            fail(REMEDY.format(environment=environment, lock=lock))
        print(f"install: NO {environment}: requirements/{lock} could not be installed; its tests skip", flush=True)

    folder = ROOT / environment
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == wanted_stamp(lock):
        return
    start = time.monotonic()
    print(
        f"install: {environment} from requirements/{lock} (about {SIZES_GB[lock]} GB) ...",
        flush=True,
    )
    python = folder / "bin" / "python"
    main_python = ROOT / ".venv" / "bin" / "python"
    uv = [str(ROOT / ".venv" / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(python)]
    steps = [[sys.executable, "-m", "venv", str(folder)]]
    if folder.name == ".venv":
        steps.append([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV])
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            return failed()
    env = uv_environment(main_python)
    lock_step = [
        *uv,
        "--no-deps",
        "--compile-bytecode",
        "--require-hashes",
        "--index-strategy",
        "unsafe-best-match",
        "-r",
        f"requirements/{lock}",
    ]
    if subprocess.run(lock_step, env=env, cwd=ROOT, check=False).returncode:
        return failed()
    # All import airserve from src/; Triton's Python backend reads .pth files but no PYTHONPATH.
    (folder / "lib" / "python3.11" / "site-packages" / "airserve.pth").write_text(f"{ROOT / 'src'}\n")
    stamp.write_text(wanted_stamp(lock))
    print(f"install: {environment} ready, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    check_machine()
    for environment, lock in LOCKS.items():
        install(environment, lock)
    if "--checks" in sys.argv[1:]:
        for environment, lock in CHECKS.items():
            if AOT_TOOL.exists():
                install(environment, lock, optional=True)
            else:
                print(f"install: no {AOT_TOOL.name} (AIRSERVE_TRT_AOT_CHECK), hence no {environment}", flush=True)
