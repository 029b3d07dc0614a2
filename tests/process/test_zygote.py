"""Who dies with whom, and when a warm start is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.numa.binding import AffinityMode, NumaOptions

from spotrun import events
from spotrun.launcher.workers import Workers
from tests.process.test_workers import FAMILY, pids_in, ready
from tests.waiting import alive, until
from tests.worker_groups import Outcome, quiet_environment, run, settle, start

Reasons = Callable[[], list[str]]
Make = Callable[..., Workers]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["cold", "warm"])
def warm(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "warm")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.fixture
def make(own_cache: None) -> Iterator[Make]:
    made: list[Workers] = []

    def new(warm: bool, preload: Sequence[str] = ()) -> Workers:
        quiet_environment()
        made.append(Workers(warm=warm, preload=preload))
        return made[-1]

    yield new
    for workers in made:
        workers.close()


@pytest.fixture
def reasons(tmp_path: Path) -> Iterator[Reasons]:
    """Why workers were started cold so far, as told to people and machines."""
    path = tmp_path / "events.jsonl"
    events.to_file(path)
    yield lambda: [each["reason"] for each in events.read(path) if each["kind"] == "cold_start"]
    os.close(events._files.pop(path))


def family(folder: Path) -> tuple[str, ...]:
    path = folder / "family.py"
    head = f"import os\nP = {str(folder)!r}\nRANK = os.environ['RANK']\nR = P + '/ready' + RANK\n"
    path.write_text(head + FAMILY + "time.sleep(600)\n")
    return (str(path),)


def script(folder: Path, text: str) -> tuple[str, ...]:
    (folder / "script.py").write_text(text + "\n")
    return (str(folder / "script.py"),)


AGENT = """
import os, sys, time
from pathlib import Path
from spotrun.launcher.workers import Workers
from tests.worker_groups import start
folder = Path(sys.argv[1])
workers = Workers(warm=sys.argv[2] == "True")
pids = start(workers, (str(folder / "family.py"),), folder / "logs", count=2)
(folder / "pids").write_text(" ".join(map(str, [workers.zygote_pid, *pids.values()])))
time.sleep(600)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_an_agent_however_it_dies(warm: bool, tmp_path: Path, signum: signal.Signals) -> None:
    family(tmp_path)
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path), str(warm)], cwd=ROOT)
    ready(tmp_path, 2)
    until("the agent has told its pids", lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    pids += [pid for kind in ("same", "own", "orphan") for pid in pids_in(tmp_path, kind + "?")]
    assert len(pids) == 9 and all(alive(pid) for pid in pids)
    agent.send_signal(signum)
    agent.wait()
    until("all are gone", lambda: not any(alive(pid) for pid in pids))


def test_an_agent_that_dies_while_the_zygote_imports_leaves_nothing(tmp_path: Path) -> None:
    code = "import os\nfrom spotrun.launcher.workers import Workers\nw = Workers(warm=True)\n"
    code += "print(w.zygote_pid)\nos._exit(0)"
    done = subprocess.run([sys.executable, "-uc", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    until("the zygote is gone", lambda: not alive(int(done.stdout)))


def test_a_killed_zygote_fails_its_workers_and_is_replaced(make: Make, warm: bool, tmp_path: Path) -> None:
    workers = make(warm=warm)
    descriptor = workers.fileno()
    pids = start(workers, family(tmp_path), tmp_path / "logs", count=2)
    assert workers.forked == 2 * warm
    ready(tmp_path, 2)
    children = [pid for kind in ("same", "own", "orphan") for pid in pids_in(tmp_path, kind + "?")]
    first = workers.zygote_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    status = settle(workers)
    assert status.state == "failed" and set(status.failures) == {0, 1}
    for failure in status.failures.values():
        assert failure.exitcode == -signal.SIGKILL and f"pid {first}" in failure.message
    assert workers.zygote_pid is None
    workers.stop(signal.SIGTERM, 5.0)
    assert workers.poll().state == "none"
    assert not any(alive(pid) for pid in pids.values())
    # What a worker had started in sessions of its own went to the test's own process, not to a zygote.
    same = [pid for pid in children if pid in pids_in(tmp_path, "same?")]
    assert not any(alive(pid) for pid in same)
    for pid in set(children) - set(same):
        os.kill(pid, signal.SIGKILL)
    assert run(workers, script(tmp_path, "print(1)"), tmp_path / "logs")[0].out == "1\n"
    assert workers.fileno() == descriptor and workers.zygote_pid not in (None, first)


def test_what_the_agent_ignores_its_workers_ignore(make: Make, warm: bool, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    workers = make(warm=warm)
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nprint('goes on')"
    assert run(workers, script(tmp_path, text), tmp_path / "logs")[0].out == "goes on\n"
    signal.signal(signal.SIGHUP, before)


def test_closing_ends_running_workers_and_may_be_repeated(make: Make, warm: bool, tmp_path: Path) -> None:
    workers = make(warm=warm)
    pids = start(workers, family(tmp_path), tmp_path / "logs", count=2)
    assert workers.forked == 2 * warm
    ready(tmp_path, 2)
    zygote = workers.zygote_pid
    assert zygote is not None
    children = [pid for kind in ("same", "own", "orphan") for pid in pids_in(tmp_path, kind + "?")]
    fds = psutil.Process().num_fds()
    workers.close()
    assert not any(alive(pid) for pid in (zygote, *pids.values(), *children))
    assert psutil.Process().num_fds() < fds
    workers.close()
    workers.stop(signal.SIGTERM, 1.0)


def test_files_in_the_working_directory_are_not_the_zygotes_modules(
    make: Make, warm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "selectors", "socket", "torch", "spotrun", "signal", "launcher"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    workers = make(warm=warm)
    (tmp_path / "elsewhere").mkdir()
    outcome = run(workers, script(tmp_path / "elsewhere", "import torch, json\nprint(1)"), tmp_path / "logs")[0]
    assert outcome == Outcome(0, "1\n", "")
    assert workers.forked == int(warm)


UNSAFE = {
    "fails": ("raise ImportError('broken')", "broken"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit"),
    "has threads": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "1 thread",
    ),
    "has children": ("import subprocess\nsubprocess.Popen(['sleep', '600'])", "started processes"),
    "dies": ("import os\nos._exit(1)", "died"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_import_only_means_cold_starts(
    make: Make, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reasons: Reasons
) -> None:
    text, expected = UNSAFE[kind]
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "unsafe_module.py").write_text(text + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    workers = make(warm=True, preload=["unsafe_module"])
    for _ in range(2):
        assert run(workers, script(tmp_path, "print(1)"), tmp_path / "logs")[0].out == "1\n"
        assert workers.forked == 0 and not workers.warming
    (reason,) = reasons()
    assert expected in reason


def test_a_preloaded_module_is_there_without_an_import(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "slow_module.py").write_text("import os\nLOADED_IN = os.getpid()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    workers = make(warm=True, preload=["slow_module"])
    outcome = run(workers, script(tmp_path, "import slow_module\nprint(slow_module.LOADED_IN)"), tmp_path / "logs")[0]
    assert (outcome.out, workers.forked) == (f"{workers.zygote_pid}\n", 1)


def test_what_is_not_a_plain_script_is_started_cold(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reasons: Reasons
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text("print(1)")
    script(tmp_path, "print(1)")
    monkeypatch.chdir(tmp_path)
    workers = make(warm=True)
    cases = [("-c", "print(1)"), ("-O", "script.py"), ("-", "script.py"), ("folder",)]
    for number, arguments in enumerate(cases):
        outcome = run(workers, arguments, tmp_path / f"logs{number}")[0]
        assert outcome.out == ("" if arguments[0] == "-" else "1\n")
        assert workers.forked == 0
    assert len(reasons()) == len(cases) and all("is not a script" in reason for reason in reasons())
    run(workers, ("folder",), tmp_path / "logs")
    assert len(reasons()) == len(cases)  # each reason is told once
    run(workers, ("script.py",), tmp_path / "logs")
    assert workers.forked == 1


def test_numa_binding_is_started_cold(make: Make, tmp_path: Path, reasons: Reasons) -> None:
    workers = make(warm=True)
    workers.start(
        name="trainer",
        entrypoint=sys.executable,
        args={0: ("-u", *script(tmp_path, "print(1)"))},
        envs={0: {}},
        logs_specs=DefaultLogsSpecs(str(tmp_path / "logs"), redirects=Std.ALL),
        numa_options=NumaOptions(AffinityMode.NODE, should_fall_back_if_binding_fails=True),
    )
    assert settle(workers).state == "succeeded"
    assert workers.forked == 0 and reasons() == ["NUMA binding needs a program of its own"]


@pytest.mark.parametrize(
    ("preload", "before"), [("--preload=heavy", True), ("--preload=auto", True), ("--warm=auto", False)]
)
def test_what_the_user_names_is_imported_before_the_workers_are_forked(
    tmp_path: Path, preload: str, before: bool
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "heavy.py").write_text("import os\nPID = os.getpid()\n")
    script = tmp_path / "train.py"
    script.write_text("import heavy, os\nprint('imported before' if heavy.PID != os.getpid() else 'imported here')\n")
    command = [sys.executable, "-m", "spotrun", "--standalone", "--nproc-per-node=2", preload, str(script)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{library}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["imported before" if before else "imported here"] * 2
    assert "cold" not in done.stderr
