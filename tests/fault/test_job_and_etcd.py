"""What happens to etcd while a job runs, what happens to nodes meanwhile, and several of them at once.

While etcd is away workers go on and nothing is decided; when it is back, with its data or without, the job goes on.
"""

# ruff: noqa: F811  (fixtures are imported, and then named as arguments)
from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trustme

from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import Op
from spotrun.rendezvous.keys import Keys
from tests.etcd_servers import (  # noqa: F401
    Cluster,
    TlsEtcd,
    add_user,
    admin,
    client_of,
    cluster,
    kill,
    private_etcd,
    stopped,
    unused_port,
)
from tests.jobs import STEPS, Node, RealJob, descendants, real_job
from tests.process.test_api import SCRIPT as API_STEPS
from tests.waiting import alive, until

TTL_S = 2.0
# The first round waits for all, however long a busy machine takes to start one.
SHORT = (f"--lease-ttl={TTL_S:g}", "--join-window=60")
LONG = ("--lease-ttl=60", "--join-window=60")  # what is noticed within a test's deadline, no lease has told
JobAt = Callable[..., RealJob]


@pytest.fixture
def job_at(tmp_path: Path) -> Iterator[JobAt]:
    """Makes a job whose etcd is at an endpoint."""
    with contextlib.ExitStack() as stack:

        def make(endpoint: str, **settings: object) -> RealJob:
            directory = tmp_path / "job"
            directory.mkdir()
            return stack.enter_context(real_job(endpoint, directory, **settings))

        yield make


def started(job: RealJob, names: str, steps: int = 100_000) -> list[Node]:
    """The nodes in the order of their ranks."""
    nodes = {name: job.start(name, steps=steps) for name in names}
    job.until_steps(3, world=len(names))
    return [nodes[name] for name in formed(nodes[names[0]])["nodes"]]


def formed(node: Node) -> dict[str, object]:
    return node.events("round_formed")[-1]


def until_stepped_for(job: RealJob, seconds: float) -> None:
    """Wait until a step has been made that much later than now."""
    end_s = time.monotonic() + seconds
    until("steps", lambda: job.steps()[-1]["mono_s"] >= end_s, seconds + 30, detail=job.tell)


def until_done(job: RealJob, steps: int) -> None:
    until(f"step {steps}", lambda: job.steps()[-1]["step"] == steps, detail=job.tell)


def assert_one_world(job: RealJob) -> None:
    """No step was made by two rounds, and no round made one after a later round had begun."""
    made = job.steps()
    assert [line["step"] for line in made] == list(range(1, len(made) + 1))
    assert [line["round"] for line in made] == sorted(line["round"] for line in made)


def assert_undisturbed(job: RealJob, nodes: list[Node]) -> None:
    assert {line["round"] for line in job.steps()} == {1}, job.tell()
    assert not any(node.events("fenced") for node in nodes), job.tell()
    assert all(len(node.events("workers_started")) == 1 for node in nodes)


def ends(*nodes: Node) -> list[int]:
    return [node.wait() for node in nodes]


# -- etcd goes and comes back


def test_a_job_trains_through_restarts_of_etcd_and_may_even_finish_during_one(
    private_etcd: EmbeddedEtcd, job_at: JobAt
) -> None:
    job = job_at(private_etcd.endpoint, flags=SHORT, nnodes="1:2")
    nodes = started(job, "ab", steps=600)
    kill(private_etcd)
    until_stepped_for(job, 2 * TTL_S)
    private_etcd.start()
    until_stepped_for(job, 2 * TTL_S)
    assert_undisturbed(job, nodes)
    kill(private_etcd)
    until_done(job, 600)
    assert all(node.process.poll() is None for node in nodes), "the end of the job waits for etcd"
    private_etcd.start()
    assert ends(*nodes) == [0, 0], job.tell()
    assert_undisturbed(job, nodes)
    assert_one_world(job)
    assert not any("Traceback" in node.output() for node in nodes), job.tell()


def test_an_etcd_that_comes_back_empty_is_filled_again_and_round_numbers_go_on_rising(
    private_etcd: EmbeddedEtcd, tmp_path: Path, job_at: JobAt
) -> None:
    job = job_at(private_etcd.endpoint, flags=SHORT, nnodes="2:2")
    nodes = started(job, "ab", steps=400)
    done = len(job.steps())
    lose_data(private_etcd, tmp_path)
    until("a second round", lambda: job.steps()[-1]["round"] > 1, detail=job.tell)
    assert ends(*nodes) == [0, 0], job.tell()
    assert len(job.steps()) == 400 > done
    assert_one_world(job)
    assert all(node.events("fenced") for node in nodes)


def test_a_spare_knows_the_round_that_it_was_not_in_when_etcd_comes_back_empty(
    private_etcd: EmbeddedEtcd, tmp_path: Path, job_at: JobAt
) -> None:
    job = job_at(private_etcd.endpoint, flags=SHORT, nnodes="1:1")
    (first,) = started(job, "a")
    spare = job.start("spare")
    until("the spare is in", lambda: nodes_in(private_etcd, job) == 2, detail=job.tell)
    first.signal(signal.SIGSTOP)
    lose_data(private_etcd, tmp_path)
    until("the spare trains", lambda: spare.events("workers_started"), detail=job.tell)
    assert formed(spare)["round"] == 2


def test_what_happens_to_nodes_while_etcd_is_away_is_decided_when_it_is_back(
    private_etcd: EmbeddedEtcd, job_at: JobAt
) -> None:
    job = job_at(private_etcd.endpoint, flags=LONG)
    nodes = started(job, "abc")
    kill(private_etcd)
    doomed = nodes.pop(0)  # rank 0, the coordinator
    doomed.signal(signal.SIGKILL)
    until("the others lost their workers", lambda: all(n.events("worker_failed") for n in nodes), detail=job.tell)
    until("etcd is missed", lambda: "membership changes wait" in nodes[0].output(), detail=job.tell)
    assert all(len(node.events("workers_started")) == 1 for node in nodes), "nothing can be decided"
    private_etcd.start()
    job.until_steps(3, world=2)
    assert (formed(nodes[0])["cause"], formed(nodes[0])["restarts"]) == ("lost", 0)
    assert formed(nodes[0])["nodes"] == [node.node_id for node in nodes]
    assert_one_world(job)


def test_a_cluster_may_lose_its_leader_and_then_the_job_a_node(cluster: Cluster, job_at: JobAt) -> None:
    job = job_at(",".join(member.endpoint for member in cluster.members), flags=SHORT, nnodes="1:2")
    nodes = started(job, "ab")
    kill(cluster.leader())
    until_stepped_for(job, 3 * TTL_S)
    assert_undisturbed(job, nodes)
    nodes[0].signal(signal.SIGKILL)
    job.until_steps(3, world=1)
    assert formed(nodes[1])["cause"] == "lost"
    assert_one_world(job)


def test_an_etcd_that_hangs_for_longer_than_the_leases_never_makes_two_worlds(
    private_etcd: EmbeddedEtcd, job_at: JobAt
) -> None:
    job = job_at(private_etcd.endpoint, flags=SHORT, nnodes="1:2")
    nodes = started(job, "ab")
    with stopped(private_etcd):
        until_stepped_for(job, 2 * TTL_S)
        assert_undisturbed(job, nodes)
    until_stepped_for(job, TTL_S)
    job.until_steps(50, world=2)  # leases may have run out; then the nodes come back as newcomers
    assert_one_world(job)


def lose_data(server: EmbeddedEtcd, folder: Path) -> None:
    kill(server)
    shutil.rmtree(folder / "etcd" / "member-data")
    server.start()


def nodes_in(server: EmbeddedEtcd, job: RealJob) -> int:
    with client_of(server) as client:
        found, _ = client.get_prefix(f"/spotrun/{job.run_id}/nodes/", keys_only=True)
    return len(found)


# -- several nodes at once


@pytest.mark.parametrize(
    ("names", "victims", "flags"),
    [
        ("abc", (1, 2), LONG),
        # Only a lease tells of the second one: whoever coordinates next had no connection to it before it died.
        ("abc", (0, 2), SHORT),
        ("abcd", (0, 1), SHORT),
    ],
    ids=["all-but-the-coordinator", "all-but-the-next", "coordinator-and-the-next"],
)
def test_nodes_that_die_together(
    private_etcd: EmbeddedEtcd, job_at: JobAt, names: str, victims: tuple[int, int], flags: tuple[str, ...]
) -> None:
    job = job_at(private_etcd.endpoint, flags=flags, nnodes=f"1:{len(names)}")
    nodes = started(job, names)
    doomed = [nodes[victim] for victim in victims]
    for node in doomed:
        node.signal(signal.SIGKILL)
    survivors = [node for node in nodes if node not in doomed]
    job.until_steps(3, world=len(survivors))
    last = formed(survivors[0])
    assert (last["cause"], last["restarts"]) == ("lost", 0)
    assert last["nodes"] == [node.node_id for node in survivors], "survivors keep their order"
    assert_one_world(job)


# -- what others write to etcd


def test_a_worker_that_does_not_leave_a_broken_round_is_ended_though_a_newer_one_was_planned(
    private_etcd: EmbeddedEtcd, job_at: JobAt
) -> None:
    """A lost node that is back at once makes another round, for which workers may go on to an agreed step."""
    job = job_at(private_etcd.endpoint, flags=SHORT)
    script = (str(API_STEPS), str(job.out), "100000", "0.05", "ddp")
    _, b, c = (job.start(name, script=script) for name in "abc")
    job.until_steps(3, world=3)
    (stuck,) = b.worker_pids()
    os.kill(stuck, signal.SIGSTOP)
    c.signal(signal.SIGSTOP)
    with client_of(private_etcd) as client:
        lost = Keys(job.run_id).node("c")
        until("its lease is gone", lambda: client.get(lost) is None, detail=job.tell)
    c.signal(signal.SIGCONT)
    until("that worker is ended", lambda: not alive(stuck), 30, detail=job.tell)
    job.until_steps(3, world=3)


def test_records_that_nobody_can_read_neither_stop_a_job_nor_end_it(private_etcd: EmbeddedEtcd, job_at: JobAt) -> None:
    job = job_at(private_etcd.endpoint, flags=SHORT, nnodes="1:1")
    with client_of(private_etcd) as client:
        for key in ("round", "reports/evil", "drains/evil"):
            client.txn([], [Op.put(f"/spotrun/{job.run_id}/{key}", b'{"v": 1, "number": 7, "members": []}')])
    (node,) = started(job, "a", steps=20)
    assert node.wait() == 0, job.tell()
    assert "is left out" in node.output() and "Traceback" not in node.output(), job.tell()


# -- access to etcd


def test_a_job_runs_over_mutual_tls(tmp_path: Path, job_at: JobAt) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    with TlsEtcd(ca, cert, key) as server:
        flags = (f"--etcd-cacert={ca}", f"--etcd-cert={cert}", f"--etcd-key={key}")
        job = job_at(server.endpoint, flags=flags, nnodes="2:2")
        assert ends(*started(job, "ab", steps=20)) == [0, 0], job.tell()


def test_a_job_runs_with_a_password_that_is_seen_nowhere(
    private_etcd: EmbeddedEtcd, tmp_path: Path, job_at: JobAt
) -> None:
    password = "correct-horse"
    (tmp_path / "password").write_text(password + "\n")
    add_user(private_etcd, "root", password)
    add_user(private_etcd, "me", password, "/spotrun/job/")  # nothing beyond this run is needed
    admin(private_etcd, "auth/enable")
    flags = ("--etcd-user=me", f"--etcd-password-file={tmp_path / 'password'}")
    logs = f"--log-dir={tmp_path / 'job' / 'logs'}"
    job = job_at(private_etcd.endpoint, flags=(*flags, logs, "--redirects=3", "--max-restarts=1"), nnodes="2:2")
    fails = (str(STEPS), str(job.out), "100", "0.02", "--fail-at", "10:0")
    nodes = [job.start(name, script=fails) for name in "ab"]
    job.until_steps(3, world=2)
    for process in [child for node in nodes for child in [psutil.Process(node.pid), *descendants(node.pid)]]:
        with contextlib.suppress(psutil.NoSuchProcess):
            assert password not in " ".join(process.cmdline())
            assert password not in str(process.environ())
    assert ends(*nodes) == [0, 0], job.tell()
    access = (f"--rdzv-endpoint={private_etcd.endpoint}", *flags)
    report = tmp_path / "report.html"
    commands = ("status", "--json", "--rdzv-id=job"), ("events", "--rdzv-id=job"), ("report", "job", "-o", report)
    for command in commands:
        told = subprocess.run([sys.executable, "-m", "spotrun", *command, *access], capture_output=True, timeout=60)
        assert told.returncode == 0 and password.encode() not in told.stdout + told.stderr, told
    assert password not in report.read_text()
    left = [file.read_bytes() for file in job.dir.rglob("*") if file.is_file()]  # ledgers, logs of agents and workers
    assert any(b"told to fail" in data for data in left) and not any(password.encode() in data for data in left)


@pytest.fixture
def web_server() -> Iterator[str]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def refusal(endpoint: str) -> str:
    command = [sys.executable, "-m", "spotrun", "--nnodes=2", f"--rdzv-endpoint={endpoint}", "--rdzv-id=job"]
    done = subprocess.run([*command, "--node-id=a", str(STEPS)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_an_etcd_that_is_not_there_is_said_in_one_sentence() -> None:
    endpoint = f"127.0.0.2:{unused_port()},127.0.0.3:{unused_port()}"
    message = refusal(endpoint)
    assert all(part in message for part in endpoint.split(","))


def test_a_server_that_is_not_etcd_is_said_in_one_sentence(web_server: str) -> None:
    message = refusal(web_server)
    assert web_server in message and "not etcd" in message
