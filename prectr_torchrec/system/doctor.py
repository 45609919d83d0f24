"""Which torch, FBGEMM and TorchRec are here, whether they fit together, and what to install if they do not.

FBGEMM's library is compiled against one torch: fbgemm 1.X loads under torch 2.(X+5) and no other, and torchrec 1.X calls
fbgemm 1.X. `check_versions` reads installed metadata only, so it is quick and safe on import; `diagnose` loads the libraries too,
each in a process of its own, so that a crash is reported and not suffered. Only the standard library is imported here.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib import metadata

SETS = {"2.13": "1.8", "2.14": "1.9"}
"""torch -> fbgemm and torchrec, as they were tried together; the first is what CI runs."""
SHOWN = ("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec", "torchx", "transformers", "pyarrow", "duckdb", "numpy")
OFFSET = 5  # torch 2.(X + OFFSET) for fbgemm 1.X
_OWN_FUTURE = (
    "Please use DTensor instead",
    r"`torch\.jit\.\w+` is deprecated",
    "This API is deprecated. Please use Pytorch Distributed",
)
"""What torch and TorchRec say of their own next versions: nothing that a user of a command can act on."""


class VersionError(ImportError):
    """Installed packages that do not work together; the message says what to install."""


@functools.cache
def check_versions() -> None:
    """Checks by installed metadata that torch, FBGEMM and TorchRec are there and fit together.

    Raises:
        VersionError: with what is wrong and what to install.
    """
    problems = version_problems()
    if problems:
        raise VersionError("\n".join([*problems, advice()]))


def quiet_deprecations() -> None:
    """Keeps to itself what torch and TorchRec are going to replace in each other."""
    for message in _OWN_FUTURE:
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", message, category)


def version_problems() -> list[str]:
    """What is wrong with the installed set, one sentence each; empty when it fits."""
    torch, torchrec = installed("torch"), installed("torchrec")
    builds = fbgemm_builds()
    missing = [name for name, there in (("torch", torch), ("fbgemm", builds), ("torchrec", torchrec)) if not there]
    problems = [f"{name} is not installed." for name in missing]
    if len(builds) > 1:
        problems.append("fbgemm-gpu (CUDA) and fbgemm-gpu-cpu are both installed and overwrite each other's files.")
    for name, version in builds.items():
        major, minor = _release(version)
        if torch and (major, _release(torch)) != (1, (2, minor + OFFSET)):
            problems.append(f"{name} {version} does not fit torch {torch}: fbgemm 1.X loads under torch 2.(X+{OFFSET}) only.")
        if torchrec and _release(torchrec) != (major, minor):
            problems.append(f"{name} {version} does not fit torchrec {torchrec}: fbgemm 1.X goes with torchrec 1.X only.")
    if list(builds) == ["fbgemm-gpu"] and torch and torch.endswith("+cpu"):
        problems.append(f"fbgemm-gpu is the CUDA build and does not load under the CPU build of torch ({torch}).")
    return problems


def advice() -> str:
    """The commands that install a set that fits this machine, and its torch where that is of a set."""
    torch = ".".join(map(str, _release(installed("torch") or "0.0")))
    torch = torch if torch in SETS else next(iter(SETS))
    release = SETS[torch]
    commands = [f"pip install 'torch=={torch}.*'"]
    if has_gpu():
        commands += [f"pip install --force-reinstall --no-deps 'fbgemm-gpu=={release}.*'", f"pip install 'torchrec=={release}.*'"]
        rival = "fbgemm-gpu-cpu"
    else:
        commands += [
            f"pip install --force-reinstall --no-deps 'fbgemm-gpu-cpu=={release}.*'",
            f"pip install --no-deps 'torchrec=={release}.*'",
            "pip install tensordict pyre-extensions 'torchmetrics==1.0.3' tqdm",
        ]
        rival = "fbgemm-gpu"
    if rival in fbgemm_builds():
        commands.insert(0, f"pip uninstall -y {rival}")
    steps = "\n".join(f"    {command}" for command in commands)
    return (
        f"Sets that fit are {'; '.join(f'torch {t} with fbgemm and torchrec {r}' for t, r in SETS.items())}. `make install` in a "
        f"checkout brings the first, or\n{steps}\n"
        "`prectr doctor` checks again."
    )


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fbgemm_builds() -> dict[str, str]:
    """The distributions that brought the `fbgemm_gpu` package, with their versions.

    On a machine without a GPU a distribution `fbgemm-gpu` without files may stand in for the CUDA build; it is no build.
    """
    builds = {}
    for name in ("fbgemm-gpu", "fbgemm-gpu-cpu"):
        version = installed(name)
        if version and any(path.parts[0] == "fbgemm_gpu" for path in metadata.files(name) or ()):
            builds[name] = version
    return builds


def has_gpu() -> bool:
    """Whether the NVIDIA driver answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def format_diagnosis(found: dict[str, str], problems: list[str]) -> str:
    """The report that the command prints."""
    lines = [f"{name:<15} {value}" for name, value in found.items()]
    return "\n".join([*lines, *(f"WRONG: {problem}" for problem in problems), advice() if problems else "All is well."])


def diagnose() -> tuple[dict[str, str], list[str]]:
    """Versions, libraries, devices and memory, and what is wrong.

    Returns:
        what is here by name, and the problems (empty when all is well).
    """
    found = {"python": sys.version.split()[0], **{name: installed(name) or "-" for name in SHOWN}}
    problems = version_problems()
    torch, error = _probe(TORCH_PROBE)
    if error:
        problems.append(f"torch does not load: {error}")
    _, error = _probe(FBGEMM_PROBE)
    found["fbgemm library"] = "does not load" if error else "loads"
    if error:
        problems.append(f"fbgemm does not load: {error}")
    if torch:
        seen = json.loads(torch)
        gpus = seen["gpus"]
        found["devices"] = f"{seen['threads']} CPU threads; {', '.join(gpus) or 'no CUDA device'}"
        found["backends"] = ", ".join(seen["backends"]) or "none"
        if gpus and "fbgemm-gpu" not in fbgemm_builds():
            problems.append("torch sees a GPU, but FBGEMM is not its CUDA build.")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found["memory"] = f"{memory:.0f} GiB"
    return found, problems


TORCH_PROBE = """
import json, torch, torch.distributed as dist
backends = [name for name in ("gloo", "nccl") if dist.is_available() and getattr(dist, f"is_{name}_available")()]
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"threads": torch.get_num_threads(), "gpus": gpus, "backends": backends}))
"""
FBGEMM_PROBE = """
import torch, fbgemm_gpu
assert torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2])).tolist() == [0, 1, 3]
"""


def _probe(code: str) -> tuple[str, str]:
    """Runs code in a process of its own; returns its last line of output, and what went wrong or nothing."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    output, errors = ((stream.strip().splitlines() or [""])[-1] for stream in (done.stdout, done.stderr))
    if done.returncode < 0:
        return "", f"the process was killed by signal {-done.returncode}"
    return (output, "") if done.returncode == 0 else ("", errors)


def _release(version: str) -> tuple[int, int]:
    """(major, minor) of a version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    assert found, version
    return int(found[1]), int(found[2])
