"""The provenance of a result: the commit of the source, the versions of the packages, the machine.

torch, which takes seconds to import, is only imported for versions and hardware.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dinoswap.config.guests import guests

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("dinoswap", "torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "scikit-learn")
SUBMITTED_CODE = "DINOSWAP_SUBMITTED_CODE"
"""Environment variable of a launched job: the `code_version` at its submission; empty allows any code."""


class CodeChanged(RuntimeError):
    """The code is not the code that a job was submitted with."""


def git_state(folder: Path = PACKAGE) -> dict[str, str | bool] | None:
    """Returns `{"sha": commit, "dirty": changed or untracked files}` of the checkout that `folder` is in, else None.

    A package installed inside somebody else's repository (its .venv) is not tracked there and gives None.
    """
    if not _git(folder, "ls-files", "."):
        return None
    sha = _git(folder, "rev-parse", "HEAD")
    return {"sha": sha, "dirty": bool(_git(folder, "status", "--porcelain"))} if sha else None


def code_version(configs: Path, package: Path = PACKAGE) -> str:
    """Returns a digest of the modules and configs that decide what a run does, and their commit: `1f0c9a2b4d6e (commit
    8bc6db5, changed)`. Versions are compared by the digest alone, as a commit of other files changes nothing."""
    digest = hashlib.sha256()
    package_files = [(package, "*.py"), (configs, "*.yaml")]
    guest_files = [(guest.configs.parent, pattern) for guest in guests() for pattern in ("*.py", "*.yaml")]
    for folder, pattern in package_files + guest_files:
        for path in sorted(folder.rglob(pattern)):
            name = path.relative_to(folder)
            if name.parts[0] not in ("studies", "hydra"):  # these only decide how runs are launched and read
                digest.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    short_digest, git = digest.hexdigest()[:12], git_state(package)
    if git is None:
        return short_digest
    return f"{short_digest} (commit {str(git['sha'])[:7]}{', changed' if git['dirty'] else ''})"


def require_submitted_code(configs: Path) -> None:
    """Raises CodeChanged when the code differs from that in `SUBMITTED_CODE`, with which this process was launched."""
    submitted = os.environ.get(SUBMITTED_CODE)
    if submitted and submitted.split()[0] != (current := code_version(configs)).split()[0]:
        raise CodeChanged(
            f"the code was {submitted} when this job was submitted and is {current} now. Restore it and submit again, "
            "or submit again to go on with the new code; hydra.launcher.check_code=false allows changes"
        )


def versions() -> dict[str, str]:
    """Returns the versions of Python, of the packages that can change a result, of guests, and of CUDA and cuDNN where
    torch has them, by name."""
    import torch

    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    installed |= {guest.name: guest.version for guest in guests()}
    if torch.version.cuda is not None:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        installed |= {"cuda": torch.version.cuda, "cudnn": str(cudnn)}
    return installed


def hardware() -> dict[str, Any]:
    """Returns the CPU model and instruction set, the cores that this process may use, the threads of torch, the memory
    in bytes, the names of the visible GPUs, and the number of ranks."""
    import torch

    from dinoswap.distributed import world_size

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "ranks": world_size(),
    }


def measured_on() -> dict[str, Any]:
    """Returns what a measured time depends on: CPU, instruction set, threads, version of torch."""
    import torch

    return {
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def in_words(measured: Mapping[str, Any]) -> str:
    """Returns the result of `measured_on` as text, for the line above a table."""
    instructions = measured.get("instruction_set", "instruction set not noted")
    return f"{measured['cpu']} ({instructions}), {measured['threads']} threads, torch {measured['torch']}"


def instruction_set() -> str:
    """Returns the widest vector instructions that torch's kernels use on this CPU, and whether there are any for bf16:
    `AVX512, bf16` or `AVX2, no bf16`. The value of ONEDNN_MAX_CPU_ISA, which limits matrix products to those of an
    older CPU, is appended where it is set."""
    import torch

    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine() in ("x86_64", "AMD64"):  # there oneDNN says yes of AVX512 alone
        native = native and torch.cpu._is_avx512_bf16_supported()
    bf16 = "bf16" if native else "no bf16"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{torch.backends.cpu.get_cpu_capability()}, {bf16}" + (f", limited to {limit}" if limit else "")


def _git(folder: Path, *arguments: str) -> str:
    """Returns the output of git, or "" where there is no git or no repository."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return completed.stdout.strip()


def cpu_model() -> str:
    """Returns the CPU model. Linux names it in /proc/cpuinfo only, other systems through `platform`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
