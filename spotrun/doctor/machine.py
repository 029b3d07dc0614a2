"""Whether this host has what workers need: torch, GPUs, shared memory, memory, open files, a clock, notices."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from spotrun.doctor.finding import Finding, Grade, ok
from spotrun.launcher.health import classify
from spotrun.launcher.notices.notice import Grade as Sure
from spotrun.launcher.notices.registry import sources_of
from spotrun.launcher.vitals import Gpus, Space, Vitals, memory, space, visible

TORCH_OLDEST, TORCH_TESTED = (2, 11), (2, 13)
SHM_FAIL_BYTES, SHM_WARN_BYTES = 16 << 20, 1 << 30  # Docker gives a container 64 MB
FILES_FAIL, FILES_WARN = 256, 4096  # a worker with data loaders and a big world has a thousand open
TORCH_S = 60.0
_UNSYNCHRONIZED = 0x40  # STA_UNSYNC in sys/timex.h
_STATUS_AT = 40  # bytes to `status` in struct timex, on 64 bits
_ASK_TORCH = """
import json, torch
from torch.distributed import is_nccl_available
nccl = torch.cuda.nccl.version() if torch.version.cuda and is_nccl_available() else ()
print(json.dumps({"cuda": torch.version.cuda or "", "gpus": torch.cuda.device_count(), "nccl": nccl}))
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What was read of this host."""

    torch: str | None  # None: not installed
    vitals: Vitals
    open_files: int
    open_files_hard: int
    clock_synchronized: bool | None  # None: the kernel does not tell
    driver_loaded: bool = False
    driver: TorchGpus | None = None  # asked only where there are GPUs


@dataclass(frozen=True, slots=True)
class TorchGpus:
    """What torch makes of the GPUs, in a process of its own."""

    cuda: str
    gpus: int
    nccl: tuple[int, ...]
    error: str = ""


def read(environ: Mapping[str, str]) -> Machine:
    try:
        torch: str | None = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    nvml = Gpus()
    try:
        gpus = visible(nvml.read(), environ)
    finally:
        nvml.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    driver_loaded = Path("/proc/driver/nvidia/version").exists()
    return Machine(
        torch,
        Vitals(gpus, memory(), space("/dev/shm")),
        soft if soft != resource.RLIM_INFINITY else sys.maxsize,
        hard if hard != resource.RLIM_INFINITY else sys.maxsize,
        _clock_synchronized(),
        driver_loaded,
        _torch_gpus() if torch and (gpus or driver_loaded) else None,
    )


def judge(machine: Machine) -> list[Finding]:
    found = [_torch(machine.torch), *_gpus(machine), _shm(machine.vitals.shm), *_memory(machine.vitals.memory)]
    return [*found, _files(machine.open_files, machine.open_files_hard), _clock(machine.clock_synchronized)]


def notices(names: Sequence[str] = ("auto",)) -> Finding:
    """Where news of this machine's end would come from."""
    found = [it.source.name for it in sources_of(names) if not it.must_detect or it.source.detect()]
    others = [name for name in found if name != "health"]
    if others:
        return ok("notices", f"sources of notices here: {', '.join(found)}")
    return Finding(
        "notices",
        Grade.WARN,
        "no source of notices was found, besides signals and the health of the machine",
        "without a notice a node that goes costs the steps since the last snapshot",
        "spotrun --notice=file:/run/drain ...   # a file that your tooling makes; or spotrun drain NODE",
    )


def _torch(version: str | None) -> Finding:
    fix = "pip install -c constraints.txt torch"
    if version is None:
        return Finding("torch", Grade.FAIL, "torch is not installed", "it is what spotrun launches", fix)
    numbers = tuple(int(it) for it in re.findall(r"\d+", version)[:2])
    if numbers < TORCH_OLDEST:
        text = f"torch {version} is older than {'.'.join(map(str, TORCH_OLDEST))}"
        return Finding("torch", Grade.FAIL, text, "TorchElastic changed; spotrun extends the newer one", fix)
    if numbers > TORCH_TESTED:
        text = f"torch {version} is newer than the newest that was tested, {'.'.join(map(str, TORCH_TESTED))}"
        return Finding("torch", Grade.WARN, text, "what spotrun extends may have changed", fix)
    return ok("torch", f"torch {version}")


def _gpus(machine: Machine) -> list[Finding]:
    gpus, torch = machine.vitals.gpus, machine.driver
    if not gpus and not machine.driver_loaded:
        return [ok("GPUs", "no NVIDIA GPU here: workers will use gloo on the CPU")]
    if not gpus:
        return [
            Finding(
                "GPUs",
                Grade.FAIL,
                "NVIDIA's driver is loaded, but NVML shows no GPU that workers may use",
                "workers will not find one either",
                "nvidia-smi   # and look at CUDA_VISIBLE_DEVICES",
            )
        ]
    found = [
        Finding(
            "GPUs",
            Grade.FAIL if it.grade is Sure.WILL else Grade.WARN,
            it.detail,
            "the agent would drain this node" if it.grade is Sure.WILL else "it may fail soon",
            "nvidia-smi -q -d ECC,ROW_REMAPPER,TEMPERATURE   # reset or replace the GPU",
        )
        for it in classify(Vitals(gpus))
    ]
    if torch is not None and (torch.error or torch.gpus < len(gpus)):
        reason = torch.error or f"torch (CUDA {torch.cuda or 'none: a build for the CPU'}) can use {torch.gpus}"
        found.append(
            Finding(
                "CUDA",
                Grade.FAIL,
                f"NVML shows {len(gpus)} GPUs, but {reason}",
                "torch's build and the driver must fit each other",
                "nvidia-smi   # its CUDA version must not be below torch's: pip install a fitting build of torch",
            )
        )
    elif torch is not None:
        nccl = ".".join(map(str, torch.nccl))
        found.append(ok("GPUs", f"{len(gpus)} GPUs, CUDA {torch.cuda}, NCCL {nccl or 'none'}"))
    return found


def _shm(shm: Space | None) -> Finding:
    fix = "mount -o remount,size=50% /dev/shm   # in a container: docker run --shm-size=16g, or --ipc=host"
    why = "data loaders and NCCL share memory there, and die of SIGBUS where there is none"
    if shm is None:
        return Finding("/dev/shm", Grade.FAIL, "there is no /dev/shm", why, "mount -t tmpfs tmpfs /dev/shm")
    text = f"/dev/shm has {shm.free_bytes >> 20} MiB of {shm.total_bytes >> 20} MiB free"
    if shm.free_bytes < SHM_FAIL_BYTES:
        full = shm.total_bytes > 2 * SHM_FAIL_BYTES
        return Finding(
            "/dev/shm", Grade.FAIL, text, why, "ls -l /dev/shm   # remove what is left over" if full else fix
        )
    if shm.free_bytes < SHM_WARN_BYTES:
        return Finding("/dev/shm", Grade.WARN, text, why, fix)
    return ok("/dev/shm", text)


def _memory(it: Space | None) -> list[Finding]:
    """Snapshots are kept in host memory, twice the state of the model."""
    if it is None:
        return []
    text = f"{it.path}: {it.free_bytes / 1e9:.1f} GB of {it.total_bytes / 1e9:.1f} GB free"
    if it.free_bytes >= 0.1 * it.total_bytes:
        return [ok("memory", f"{text}; snapshots take twice the state of model and optimizer")]
    why = "snapshots take twice the state of model and optimizer; below, the kernel kills for memory"
    return [Finding("memory", Grade.WARN, text, why, "ps aux --sort=-rss | head")]


def _files(soft: int, hard: int) -> Finding:
    text = f"a process may open {soft if soft < sys.maxsize else 'any number of'} files"
    if soft >= FILES_WARN:
        return ok("open files", text)
    return Finding(
        "open files",
        Grade.FAIL if soft < FILES_FAIL else Grade.WARN,
        text,
        "sockets to every peer, data loaders and shared tensors are open files",
        f"ulimit -n {min(hard, 65536)}",
    )


def _clock(synchronized: bool | None) -> Finding:
    if synchronized is not False:
        return ok("clock", "the clock is kept in time" if synchronized else "the kernel does not tell about its clock")
    return Finding(
        "clock",
        Grade.WARN,
        "nothing keeps the clock of this host in time",
        "spotrun compares no clocks, but TLS, S3 and readers of logs do",
        "systemctl enable --now systemd-timesyncd   # or chrony",
    )


def _clock_synchronized() -> bool | None:
    buffer = (ctypes.c_char * 256)()  # modes is 0: only read
    if sys.maxsize < 2**32 or ctypes.CDLL(None).adjtimex(buffer) < 0:
        return None
    status = int.from_bytes(bytes(buffer)[_STATUS_AT : _STATUS_AT + 4], sys.byteorder)
    return not status & _UNSYNCHRONIZED


def _torch_gpus() -> TorchGpus:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=TORCH_S, env=dict(os.environ)
        )
    except subprocess.TimeoutExpired:
        return TorchGpus("", 0, (), f"torch did not answer within {TORCH_S:g} s")
    if done.returncode:
        return TorchGpus("", 0, (), f"torch failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return TorchGpus(told["cuda"], told["gpus"], tuple(told["nccl"]))
