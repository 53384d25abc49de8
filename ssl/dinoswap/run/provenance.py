"""Where a result comes from: the source's commit, the versions of what computed it, the machine.

torch, which takes seconds to import, is needed for versions and hardware only.
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
"""In the environment of a job that was launched: `code_version` at its submission; empty: whatever code there is."""


class CodeChanged(RuntimeError):
    """The code is not what a job was submitted with."""


def git_state(folder: Path = PACKAGE) -> dict[str, str | bool] | None:
    """`{"sha": commit, "dirty": changed or untracked files}` of the checkout that `folder` belongs to, else None.

    A package installed inside somebody else's repository (its .venv) is not tracked there and gives None.
    """
    if not _git(folder, "ls-files", "."):
        return None
    sha = _git(folder, "rev-parse", "HEAD")
    return {"sha": sha, "dirty": bool(_git(folder, "status", "--porcelain"))} if sha else None


def code_version(configs: Path, package: Path = PACKAGE) -> str:
    """A digest of the modules and configs that decide what a run does, and their commit in words: `1f0c9a2b4d6e (commit
    8bc6db5, changed)`. The digest alone tells one version from another: a commit of other files changes nothing."""
    digest = hashlib.sha256()
    own = [(package, "*.py"), (configs, "*.yaml")]
    theirs = [(guest.configs.parent, pattern) for guest in guests() for pattern in ("*.py", "*.yaml")]
    for folder, pattern in own + theirs:
        for path in sorted(folder.rglob(pattern)):
            name = path.relative_to(folder)
            if name.parts[0] not in ("studies", "hydra"):  # how runs are launched and read
                digest.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    code, git = digest.hexdigest()[:12], git_state(package)
    if git is None:
        return code
    return f"{code} (commit {str(git['sha'])[:7]}{', changed' if git['dirty'] else ''})"


def require_submitted_code(configs: Path) -> None:
    """Raises CodeChanged when this process was launched, by `SUBMITTED_CODE`, with other code than it has now."""
    submitted = os.environ.get(SUBMITTED_CODE)
    if submitted and submitted.split()[0] != (now := code_version(configs)).split()[0]:
        raise CodeChanged(
            f"the code was {submitted} when this job was submitted and is {now} now. Restore it and submit again, or "
            "submit again to go on with the new code; hydra.launcher.check_code=false allows changes"
        )


def versions() -> dict[str, str]:
    """Of Python, the packages that can change a number, guests, and CUDA and cuDNN where torch has them."""
    import torch

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found |= {guest.name: guest.version for guest in guests()}
    if torch.version.cuda is not None:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"cuda": torch.version.cuda, "cudnn": str(cudnn)}
    return found


def hardware() -> dict[str, Any]:
    """CPU model and instruction set, cores that this process may use, threads of torch, memory in bytes, names of the
    GPUs it sees, and how many such processes there are."""
    import torch

    from dinoswap.distributed import world_size

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "ranks": world_size(),
    }


def measured_on() -> dict[str, Any]:
    """What a time depends on, for a table of times: CPU, instruction set, threads, torch."""
    import torch

    return {
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def in_words(measured: Mapping[str, Any]) -> str:
    """What `measured_on` found, for the line above a table."""
    instructions = measured.get("instruction_set", "instruction set not noted")
    return f"{measured['cpu']} ({instructions}), {measured['threads']} threads, torch {measured['torch']}"


def instruction_set() -> str:
    """The widest vector instructions that torch's kernels use on this CPU, and whether there are any for bf16: `AVX512,
    bf16` or `AVX2, no bf16`. ONEDNN_MAX_CPU_ISA, which makes a CPU look older to the matrix products, is told too."""
    import torch

    bf16 = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no bf16"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{torch.backends.cpu.get_cpu_capability()}, {bf16}" + (f", limited to {limit}" if limit else "")


def _git(folder: Path, *arguments: str) -> str:
    """Output of git, or nothing where there is no git or no repository."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def cpu_model() -> str:
    """Linux names the model in /proc/cpuinfo only; other systems through platform."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
