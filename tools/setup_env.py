"""Make .venv with everything that the quickstart and the tests need. Standard library only; safe to run again.

    python3 tools/setup_env.py            # what the Makefile calls

With an NVIDIA GPU the `cuda` extra is installed, else the pinned list in requirements/cpu.txt.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements" / "cpu.txt"
NEEDED_GB = {"cpu": 6, "cuda": 25}  # of disk: the packages and pip's temporary copies of them
TORCH = "torch==2.13.0+cpu"


def main() -> int:
    extra = "cuda" if has_nvidia_gpu() else "cpu"
    stamp = VENV / f".installed-{fingerprint(extra)}"
    if stamp.exists() and PYTHON.exists():
        return 0
    check_python()
    check_disk(NEEDED_GB[extra])
    print(f"setting up {VENV} ({extra}); this happens once and takes a few minutes", flush=True)
    began = time.monotonic()
    if not PYTHON.exists():
        step(
            [sys.executable, "-m", "venv", str(VENV)],
            "could not make a virtual environment; on Debian and Ubuntu install python3-venv",
        )
    if extra == "cpu":
        install_cpu()
    else:
        pip(["install", "-e", f"{ROOT}[cuda,dev]"], "could not install the cuda extra")
    for old in VENV.glob(".installed-*"):
        old.unlink()
    stamp.touch()
    print(f"set up in {time.monotonic() - began:.0f} s", flush=True)
    return 0


def install_cpu() -> None:
    if not installed("torch", "2.13.0+cpu"):
        pip(
            ["install", "--no-deps", TORCH],
            f"pip found no CPU build of PyTorch ({TORCH}) for Python {sys.version_info.major}.{sys.version_info.minor} on this system.\n"
            "  why:  the general package index has only CUDA builds for Linux; the CPU builds are in PyTorch's own index\n"
            "  cure: take the CPU index's address from the install selector on PyTorch's home page and set it in\n"
            "        PIP_EXTRA_INDEX_URL, or put the wheel into a folder and set PIP_FIND_LINKS to it; then run this again",
        )
    # --no-deps: the list is complete, and the packages that it leaves out on purpose (torchvision, torchaudio,
    # torchcodec: CUDA builds that break beside a CPU torch) must not come back as somebody's dependency
    pip(
        ["install", "--no-deps", "-r", str(REQUIREMENTS)],
        "could not install the pinned packages of requirements/cpu.txt",
    )
    pip(["install", "--no-deps", "-e", str(ROOT)], "could not install tulu-lite itself")


def check_python() -> None:
    if sys.version_info < (3, 11):
        stop(
            f"Python {sys.version.split()[0]} is too old: tulu_lite needs 3.11 or newer.\n  cure: make PYTHON=python3.11 quickstart (or another newer Python)"
        )


def check_disk(needed_gb: int) -> None:
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < needed_gb and not PYTHON.exists():
        stop(
            f"only {free_gb:.1f} GB are free where {ROOT} lies; the set-up needs about {needed_gb} GB.\n  cure: free some space, or clone the project onto a larger disk"
        )


def has_nvidia_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    return listed.returncode == 0 and "GPU" in listed.stdout


def fingerprint(extra: str) -> str:
    """Changes when what has to be installed changes."""
    content = b"".join(path.read_bytes() for path in (ROOT / "pyproject.toml", REQUIREMENTS, Path(__file__)))
    return hashlib.sha256(content + extra.encode()).hexdigest()[:12]


def installed(name: str, version: str) -> bool:
    code = f"from importlib.metadata import version; raise SystemExit(version({name!r}) != {version!r})"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True, timeout=60).returncode == 0


def pip(arguments: list[str], message: str) -> None:
    step([str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"], message)


def step(command: list[str], message: str) -> None:
    if subprocess.run(command, env={**os.environ, "PIP_NO_INPUT": "1"}).returncode != 0:
        stop(message)


def stop(message: str) -> None:
    print(f"set-up stopped: {message}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
