"""Start, watch and stop: what the agent relies on, with real processes, cold and forked alike."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std

from spotrun.errors import UsageError
from spotrun.launcher.workers import Workers
from tests.waiting import alive, until
from tests.worker_groups import quiet_environment, run, settle, start

SLEEPS = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(R, 'w').close(); time.sleep(600)"


@pytest.fixture(scope="module", params=["cold", "warm"])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch:
        quiet_environment()
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        made = Workers(warm=request.param == "warm")
        yield made
        made.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """A script of these lines in which R is a path of each rank's own and P a folder."""

    def write(text: str) -> tuple[str, ...]:
        path = tmp_path / "script.py"
        head = f"import os\nP = {str(tmp_path)!r}\nRANK = os.environ['RANK']\nR = P + '/ready' + RANK\n"
        path.write_text(head + text + "\n")
        return (str(path),)

    return write


def ready(folder: Path, count: int) -> None:
    until("the workers are ready", lambda: all((folder / f"ready{rank}").exists() for rank in range(count)))


def pids_in(folder: Path, pattern: str) -> list[int]:
    return [int(path.read_text()) for path in folder.glob(pattern) if path.read_text()]


def test_a_group_succeeds_when_all_have(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert workers.poll().state == "none"
    pids = start(workers, script("print('hello', RANK)"), tmp_path / "logs", count=2)
    assert workers.forked == (2 if "warm" in request.node.name else 0)
    status = settle(workers)
    assert (status.state, status.failures, status.pids) == ("succeeded", {}, pids)
    assert workers.poll().state == "succeeded"
    workers.stop(signal.SIGTERM, 5.0)
    assert (workers.poll().state, workers.poll().pids) == ("none", {})
    logs = sorted((tmp_path / "logs").glob("*/attempt_0/*/stdout.log"))
    assert [path.read_text() for path in logs] == ["hello 0\n", "hello 1\n"]


def test_a_group_fails_with_its_first_failure_and_the_others_run_on(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    text = "import time\nif RANK == '1':\n    raise SystemExit(7)\ntime.sleep(600)"
    pids = start(workers, script(text), tmp_path / "logs", count=2)
    status = settle(workers)
    assert (status.state, list(status.failures)) == ("failed", [1])
    failure = status.failures[1]
    assert (failure.exitcode, failure.pid, failure.local_rank) == (7, pids[1], 1)
    assert alive(pids[0]) and workers.alive() == {0}
    workers.stop(signal.SIGTERM, 60.0)
    assert not alive(pids[0]) and workers.poll().state == "none"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_worker_is_reported_with_its_signal(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path, signum: signal.Signals
) -> None:
    pids = start(workers, script("open(R, 'w').close()\n" + SLEEPS), tmp_path / "logs")
    ready(tmp_path, 1)
    os.kill(pids[0], signum)
    failure = settle(workers).failures[0]
    assert failure.exitcode == -signum
    assert signum.name in str(failure.message)
    workers.stop(signal.SIGTERM, 0.0)


def test_a_worker_that_ends_in_time_is_not_killed(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    text = (
        "import signal, sys, time\ndef save(*_):\n    open(P + '/saved' + RANK, 'w').close()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGUSR1, save)\nopen(R, 'w').close()\ntime.sleep(600)"
    )
    start(workers, script(text), tmp_path / "logs", count=2)
    ready(tmp_path, 2)
    workers.stop(signal.SIGUSR1, 60.0)
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def test_a_stubborn_worker_is_killed_after_its_grace(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    pids = start(workers, script(STUBBORN), tmp_path / "logs", count=2)
    ready(tmp_path, 2)
    workers.stop(signal.SIGTERM, 0.1)
    assert not any(alive(pid) for pid in pids.values())


def test_a_stopped_worker_is_killed_too(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    pids = start(workers, script("open(R, 'w').close()\n" + SLEEPS), tmp_path / "logs")
    ready(tmp_path, 1)
    os.kill(pids[0], signal.SIGSTOP)
    workers.stop(signal.SIGTERM, 0.1)
    assert not alive(pids[0])


FAMILY = (
    "import subprocess, sys, time\n"
    "sleeper = [sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)']\n"
    "for kind in ('same', 'own'):\n"
    "    child = subprocess.Popen(sleeper, start_new_session=kind == 'own')\n"
    "    open(f'{P}/{kind}{RANK}', 'w').write(str(child.pid))\n"
    "if os.fork() == 0:\n"  # an orphan's child: not a child of anything of ours
    "    orphan = subprocess.Popen(sleeper, start_new_session=True)\n"
    "    open(f'{P}/orphan{RANK}', 'w').write(str(orphan.pid))\n"
    "    os._exit(0)\n"
    "os.wait()\nopen(R, 'w').close()\n"
)


@pytest.mark.parametrize("ending", ["stopped", "finished", "failed"])
def test_nothing_that_a_worker_has_started_outlives_its_stop(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path, ending: str
) -> None:
    last = {"stopped": "time.sleep(600)", "finished": "", "failed": "os._exit(1)"}[ending]
    start(workers, script(FAMILY + last), tmp_path / "logs", count=2)
    ready(tmp_path, 2)
    if ending != "stopped":
        settle(workers)
    children = [pid for kind in ("same", "own", "orphan") for pid in pids_in(tmp_path, kind + "?")]
    assert len(children) == 6 and all(alive(pid) for pid in children)
    workers.stop(signal.SIGTERM, 0.2)
    assert not any(alive(pid) for pid in children)


def test_a_start_while_workers_run_replaces_them(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    first = start(workers, script(SLEEPS), tmp_path / "logs")
    assert run(workers, script("print(1)"), tmp_path / "logs")[0].out == "1\n"
    assert not alive(first[0])


def test_the_descriptor_is_quiet_until_there_is_something_to_learn(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    text = "import time\nwhile not os.path.exists(P + '/go'):\n    time.sleep(0.01)"
    start(workers, script(text), tmp_path / "logs")
    workers.poll()
    assert select.select([workers], [], [], 0.0)[0] == []
    (tmp_path / "go").touch()
    assert select.select([workers], [], [], 60.0)[0] == [workers]
    assert workers.poll().state == "succeeded"
    assert select.select([workers], [], [], 0.0)[0] == []
    workers.stop(signal.SIGTERM, 0.0)


ERROR_FILES = {
    "half": '{"message": {"message": "bro',
    "empty": "",
    "binary": "\x00\x01",
    "a number": "5",
    "a list": "[]",
    "no message": "{}",
    "no timestamp": '{"message": {"message": "broken"}}',
    "wrong timestamp": '{"message": {"message": "broken", "extraInfo": {"timestamp": "soon"}}}',
    "null": '{"message": null}',
}


@pytest.mark.parametrize("kind", ERROR_FILES)
def test_a_garbled_error_file_is_a_failure_like_any_other(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path, kind: str
) -> None:
    text = f"open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w').write({ERROR_FILES[kind]!r})\nos._exit(9)"
    start(workers, script(text), tmp_path / "logs")
    failure = settle(workers).failures[0]
    assert failure.exitcode == 9
    assert "of no use" in failure.message and failure.error_file in failure.message
    assert failure.timestamp > 0
    workers.stop(signal.SIGTERM, 0.0)


def test_an_error_file_gives_the_message_and_the_time(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    written = {"message": {"message": "ValueError: x", "extraInfo": {"py_callstack": "stack", "timestamp": "12"}}}
    text = f"open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w').write({json.dumps(written)!r})\nos._exit(1)"
    start(workers, script(text), tmp_path / "logs")
    failure = settle(workers).failures[0]
    assert (failure.error_file_data, failure.timestamp) == (written, 12)
    workers.stop(signal.SIGTERM, 0.0)


def test_tees_and_filters_are_those_of_torchrun(
    workers: Workers,
    script: Callable[..., tuple[str, ...]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "logs").mkdir()
    specs = DefaultLogsSpecs(str(tmp_path / "logs"), tee={0: Std.ALL, 1: Std.OUT}, redirects={1: Std.ERR})
    command = script("import sys\nprint('out', RANK)\nprint('needle', RANK)\nprint('err', RANK, file=sys.stderr)")
    quiet_environment()
    workers.start(
        name="trainer",
        entrypoint=sys.executable,
        args=dict.fromkeys(range(2), ("-u", *command)),
        envs={rank: {"RANK": str(rank)} for rank in range(2)},
        logs_specs=specs,
        log_line_prefixes={0: "[zero]:"},
        duplicate_stdout_filters=["needle"],
    )
    assert settle(workers).state == "succeeded"
    workers.stop(signal.SIGTERM, 0.0)
    shown = capsys.readouterr()
    expected = ["[trainer1]:needle 1", "[trainer1]:out 1", "[zero]:needle 0", "[zero]:out 0"]
    assert sorted(shown.out.splitlines()) == expected
    assert shown.err.splitlines() == ["[zero]:err 0"]
    (filtered,) = (tmp_path / "logs").glob("*/attempt_0/filtered_stdout.log")
    assert sorted(filtered.read_text().splitlines()) == ["[trainer1]:needle 1", "[zero]:needle 0"]
    (error,) = (tmp_path / "logs").glob("*/attempt_0/1/stderr.log")
    assert error.read_text() == "err 1\n"


def test_large_arguments_and_environments_arrive_whole(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    arguments = tuple(str(number) * 20_000 for number in range(5))
    env = {f"SPOTRUN_{number}": "\udc80é\n" * 10_000 for number in range(8)}
    text = "import sys, hashlib\nprint(hashlib.sha256(ascii((sys.argv[1:], VALUES)).encode()).hexdigest())"
    values = "[os.environ[f'SPOTRUN_{n}'] for n in range(8)]"
    command = (*script(text.replace("VALUES", values)), *arguments)
    expected = hashlib.sha256(ascii(([*arguments], list(env.values()))).encode()).hexdigest()
    outcome = run(workers, command, tmp_path / "logs", env=env)[0]
    assert (outcome.code, outcome.out.strip()) == (0, expected), outcome.err


def test_a_program_that_is_not_there_is_told_in_one_sentence(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "not_executable").write_text("")
    for program in ("no-such-program", str(tmp_path / "none"), str(tmp_path / "not_executable")):
        with pytest.raises(UsageError, match=r"^Cannot start '.*': [A-Z][a-z ]+ \(.*\)\.$"):
            workers.start(
                name="trainer",
                entrypoint=program,
                args={0: ()},
                envs={0: {}},
                logs_specs=DefaultLogsSpecs(str(tmp_path / "logs")),
            )
        assert workers.poll().state == "none"


def test_too_large_arguments_are_an_error_and_nothing_worse(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="Argument list too long"):
        workers.start(
            name="trainer",
            entrypoint="/bin/echo",
            args={0: ("x" * 200_000,)},
            envs={0: {}},
            logs_specs=DefaultLogsSpecs(str(tmp_path / "logs")),
        )
    assert run(workers, script("print(2)"), tmp_path / "logs")[0].out == "2\n"


def test_any_program_can_be_a_worker(workers: Workers, tmp_path: Path) -> None:
    workers.start(
        name="trainer",
        entrypoint="sh",
        args={0: ("-c", "echo $RANK; exit 4")},
        envs={0: {"RANK": "0"}},
        logs_specs=DefaultLogsSpecs(str(tmp_path), redirects=Std.ALL),
    )
    assert settle(workers).failures[0].exitcode == 4
    workers.stop(signal.SIGTERM, 0.0)
    assert [path.read_text() for path in tmp_path.glob("*/attempt_0/0/stdout.log")] == ["0\n"]


def test_many_rounds_leave_nothing(workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    command = script("open(R, 'w').close()\nimport time\ntime.sleep(600 * (RANK == '0'))")
    (zygote,) = [child for child in psutil.Process().children() if child.pid == workers.zygote_pid]

    def held() -> tuple[int, ...]:
        return psutil.Process().num_fds(), psutil.Process().num_threads(), zygote.num_fds(), zygote.num_threads()

    logs = DefaultLogsSpecs(str(tmp_path / "logs"), tee=Std.ALL)
    stopped: tuple[int, ...] = ()
    for number in range(100):
        start(workers, command, tmp_path / "logs", count=2, specs=logs)
        workers.stop(signal.SIGTERM, 0.05 if number % 2 else 0.0)
        stopped = stopped or held()
    until("all that the rounds held is given back", lambda: held() <= stopped, detail=lambda: f"{held()}, {stopped}")
    assert zygote.children(recursive=True) == []


def test_signals_for_the_whole_job_do_not_end_the_zygote(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        assert workers.zygote_pid is not None
        os.kill(workers.zygote_pid, signum)
    # The workers still have the dispositions of a fresh python.
    text = "import signal\nfrom signal import getsignal\n"
    text += "print(*[getsignal(n).name for n in (15, 1, 3, 10, 12, 17)], getsignal(2).__name__)"
    outcome = run(workers, script(text), tmp_path / "logs")[0]
    assert outcome.out.split() == ["SIG_DFL"] * 6 + ["default_int_handler"]


def test_a_working_directory_that_is_gone_changes_nothing(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert run(workers, script("print(1)"), tmp_path / "logs")[0].out == "1\n"


def test_workers_start_in_the_directory_that_the_agent_is_in_then(
    workers: Workers, script: Callable[..., tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(workers, script("print(os.getcwd())"), tmp_path / "logs")[0].out == f"{tmp_path}\n"
