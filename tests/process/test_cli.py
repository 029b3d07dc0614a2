"""The program `spotrun` as a shell sees it: what it prints, where it exits with what, and what it leaves."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import until

RUN_S = 100.0  # a torch import on a busy machine, several times over
WORKER = """
import json, os, sys
with open(sys.argv[1], "a") as out:
    out.write(json.dumps({name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")}) + "\\n")
if "fail" in sys.argv:
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
        json.dump({"message": {"message": "boom", "extraInfo": {"timestamp": "1"}}}, file)
    sys.exit(7)
"""
HEAVY = "import sys; print(sorted({'torch', 'grpc', 'numpy'}.intersection(sys.modules)), file=sys.stderr)"
SPY = f"""
import sys
from spotrun.cli import main
try:
    main()
finally:
    {HEAVY}
"""


class Shell:
    """A folder with worker.py, and an environment in which spotrun is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out.jsonl"
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        (folder / "worker.py").write_text(WORKER)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "SPOTRUN_", "TORCHELASTIC_"))}
        self.environ = {**kept, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.tmp), "COLUMNS": "100"}

    def start(self, *args: str, spied: bool = False, **environ: str) -> subprocess.Popen[str]:
        program = ("-c", SPY) if spied else ("-m", "spotrun")
        return subprocess.Popen(
            [sys.executable, *program, *args],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, spied: bool = False, **environ: str) -> subprocess.CompletedProcess[str]:
        return finish(self.start(*args, spied=spied, **environ))

    def workers(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def left(self) -> list[str]:
        """What torch has left in the temporary directory, its compile cache aside."""
        return [path.name for path in self.tmp.iterdir() if not path.name.startswith("torchinductor")]


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"it did not end:\n{out}\n{err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--help"], 0, "Usage: spotrun"),
        (["-h"], 0, "--on-loss"),
        (["run", "--help"], 0, "--nproc-per-node"),
        (["--version"], 0, "spotrun 0."),
        (["etcd", "--help"], 0, "--data-dir"),
        (["etcd", "--port=x"], 2, "'x' is not a valid integer"),
        (["etcd", "--initial-cluster=a"], 2, "no list of members"),
        ([], 2, "no script to launch"),
        (["run"], 2, "no script to launch"),
        (["ectd"], 2, "did you mean `spotrun etcd`?"),
        (["none.py"], 2, "no script 'none.py'"),
        (["run", "etcd"], 2, "no script 'etcd'"),
    ],
)
def test_help_and_simple_mistakes_are_answered_without_torch_and_grpc(
    shell: Shell, args: list[str], code: int, said: str
) -> None:
    done = shell.run(*args, spied=True)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    *message, heavy = done.stderr.splitlines()
    assert heavy == "[]"
    assert len(message) == (1 if code else 0)


def test_a_script_runs_on_one_node_without_any_set_up_and_under_a_run_id_of_its_own(shell: Shell) -> None:
    done = shell.run("--nproc-per-node=2", "--rdzv-id=mine", "worker.py", str(shell.out))
    assert done.returncode == 0, done.stderr
    assert sorted(worker["RANK"] for worker in shell.workers()) == ["0", "1"]
    assert {worker["WORLD_SIZE"] for worker in shell.workers()} == {"2"}
    assert len({uuid.UUID(worker["TORCHELASTIC_RUN_ID"]) for worker in shell.workers()}) == 1
    assert shell.left() == []


@pytest.mark.parametrize("backend", ["etcd-v3", "c10d"])
def test_a_failed_worker_makes_the_exit_code_1_and_the_error_file_as_torchrun_does(shell: Shell, backend: str) -> None:
    errors = shell.folder / "error.json"
    done = shell.run(
        *(f"--rdzv-backend={backend}", "worker.py", str(shell.out), "fail"), TORCHELASTIC_ERROR_FILE=str(errors)
    )
    assert done.returncode == 1
    assert "Root Cause" in done.stderr
    assert "boom" in done.stderr
    assert "exitcode  : 7" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(errors.read_text())["message"]["message"] == "boom"


def test_a_line_with_a_master_is_torchruns_static_rendezvous(shell: Shell) -> None:
    line = ("--nnodes=2", f"--master-port={free_port()}", "--master-addr=127.0.0.1", "worker.py", str(shell.out))
    nodes = [shell.start(f"--node-rank={rank}", *line) for rank in range(2)]
    assert [finish(node).returncode for node in nodes] == [0, 0]
    assert sorted((worker["RANK"], worker["WORLD_SIZE"]) for worker in shell.workers()) == [("0", "2"), ("1", "2")]


def test_where_nothing_listens_at_the_endpoint_on_this_host_an_etcd_serves_the_job(shell: Shell) -> None:
    port = free_port()
    line = ("--nnodes=2", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=job", "worker.py", str(shell.out))
    nodes = [finish(node) for node in [shell.start(*line), shell.start(*line)]]
    assert [node.returncode for node in nodes] == [0, 0], "\n---\n".join(node.stderr for node in nodes)
    assert sum("single point of failure" in node.stderr for node in nodes) == 1
    assert sorted(worker["RANK"] for worker in shell.workers()) == ["0", "1"]
    assert not [p for p in psutil.process_iter(["cmdline"]) if f":{port}" in " ".join(p.info["cmdline"] or [])]
    assert shell.left() == []


def test_an_etcd_that_cannot_be_reached_is_told_in_one_sentence(shell: Shell) -> None:
    done = shell.run(
        *("--nnodes=2", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=job", "--etcd-user=me", "worker.py"),
        SPOTRUN_ETCD_PASSWORD="s3cret",
    )
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert shell.left() == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--unheard-of", "worker.py"], "The flag --unheard-of is not known"),
        (["--nnodes=2", "worker.py"], "--rdzv-endpoint=HOST:2379"),
        (["--nproc-per-node=few", "worker.py"], "few"),
    ],
)
def test_a_wrong_flag_is_told_in_one_sentence(shell: Shell, args: list[str], said: str) -> None:
    done = shell.run(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert shell.left() == []


@contextlib.contextmanager
def served(shell: Shell, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = shell.start("etcd", *args)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_spotrun_etcd_serves_and_says_how_to_use_it(shell: Shell) -> None:
    port, peer_port = free_port(), free_port()
    args = ("--host=127.0.0.1", f"--port={port}", f"--peer-port={peer_port}", "--data-dir=data")
    with served(shell, *args) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(3)]
        assert f"--rdzv-endpoint=127.0.0.1:{port}" in told[2]
        until("etcd serves", lambda: healthy(port), RUN_S, detail=lambda: str(process.poll()))
        assert (shell.folder / "data").is_dir()
        taken = shell.run("etcd", *args)
        assert (taken.returncode, f"Port {port}" in taken.stderr) == (2, True)
        done = shell.run(f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=job", "worker.py", str(shell.out))
        assert done.returncode == 0, done.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(RUN_S) in (0, -signal.SIGTERM)


def healthy(port: int) -> bool:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        link.request("GET", "/health")
        return b'"true"' in link.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()


def test_main_with_arguments_is_a_function_that_raises(shell: Shell) -> None:
    code = (
        "import spotrun.cli as launch\n"
        "from torch.distributed.elastic.multiprocessing.errors import ChildFailedError\n"
        "try:\n"
        f"    launch.main(['worker.py', {str(shell.out)!r}, 'fail'])\n"
        "except ChildFailedError:\n"
        "    print('raised')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=shell.folder, env=shell.environ, capture_output=True, text=True, timeout=RUN_S
    )
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr
    assert len(shell.workers()) == 1
