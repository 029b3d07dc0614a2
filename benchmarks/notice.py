"""How a notice makes its way: to etcd, to all workers, to the last step of the old world and the first of the new one.

    python -m spotrun.benchmarks.notice [--repeat 20] [--nodes 3] [--launchers spotrun-api,spotrun] [--out FILE.json]

One node of a training job is told over HTTP that it goes in 30 s (`--notice=http`); any node, rank 0's and the
coordinator's included. Then another one joins, and so on. `spotrun-api` is a script on the
training API, `spotrun` one that knows nothing of notices: its workers are ended and started anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from spotrun.benchmarks.jobs_under_test import LAUNCHERS, DidNotHappen, JobUnderTest, Launcher, Node
from spotrun.benchmarks.measurement import Measurement
from spotrun.benchmarks.recovery_figures import Recovery, figures
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig, WatchEvent
from spotrun.rendezvous.keys import Keys

Line = Mapping[str, Any]

TITLE = "Notice: from the word to the first step without the node"
HOW = (
    "A node of a DDP job is told over HTTP on loopback that it goes in 30 s. Until that lies in etcd (as a watch shows "
    "it), until all agents have told their workers, until the last step of the old world, until every rank of the new "
    "one has made a step, and until the node's agent has ended. A provider that is polled adds up to its interval."
)
STAGES = ("notice_to_etcd_s", "etcd_to_told_s", "told_to_last_step_s", "last_to_first_step_s")
FEATURED = (*STAGES, "notice_to_first_step_s", "notice_to_gone_s", "lost_steps")
START_LIMIT_S = 90.0
LEAD_S = 30.0


def stages(
    recovery: Recovery,
    seen_s: float,
    lines: Sequence[Line],
    agents: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """Seconds of each stage, and the steps that were made again; workers that cannot be told have no such stage.

    `seen_s`: when our own watch showed it. An agent that has told its workers before that has seen it before us.
    """
    told = [
        event["mono_s"]
        for log in agents.values()
        for event in log
        if event["kind"] == "workers_told" and event["mono_s"] >= recovery.event_s
    ]
    in_etcd_s = min([seen_s, *told])
    reached_s = max([in_etcd_s, *told])
    steps = [line for line in lines if line["what"] == "step"]
    last_s = max(line["mono_s"] for line in steps if line["group"] == recovery.old_group)
    whole = figures(recovery, lines, {})
    found = {"notice_to_etcd_s": in_etcd_s - recovery.event_s}
    if told:
        found["etcd_to_told_s"] = reached_s - in_etcd_s
    found["told_to_last_step_s"] = max(0.0, last_s - reached_s)
    found["last_to_first_step_s"] = recovery.event_s + whole["event_to_step_s"] - last_s
    found["notice_to_first_step_s"] = whole["event_to_step_s"]
    found["lost_steps"] = whole["lost_steps"]
    return found


class Notices:
    """One job, which loses a node by notice and gets another one, again and again."""

    def __init__(self, launcher: Launcher, options: argparse.Namespace) -> None:
        self._nodes = options.nodes
        noticed = dataclasses.replace(launcher, flags=(*launcher.flags, "--notice=http"))
        self._stack = ExitStack()
        limits = f"{options.nodes - 1}:{options.nodes}"
        self._job = self._stack.enter_context(JobUnderTest(noticed, limits, 1, options.step, options.save_every))
        client = self._stack.enter_context(EtcdClient(EtcdConfig((self._job.endpoint,))))
        self._seen: dict[str, float] = {}  # when a drain was in etcd, by key
        watch = client.watch(
            Keys("bench").drains, prefix=True, start_revision=1, on_event=self._see, on_error=lambda error: None
        )
        self._stack.callback(watch.cancel)

    def close(self) -> None:
        self._stack.close()

    def one(self) -> dict[str, float]:
        """Raises DidNotHappen."""
        job = self._job
        while len(job.staying()) < self._nodes:
            job.start()
        old = job.last_group = job.until_world(self._nodes, START_LIMIT_S, after_group=job.last_group or 0)
        time.sleep(random.uniform(0, job.step_s * job.save_every))
        victim = random.choice(job.staying())
        asked_s = self._tell(victim)
        new = job.last_group = job.until_world(self._nodes - 1, job.launcher.limit_s, after_group=old)
        victim.process.wait(LEAD_S)
        gone_s = time.monotonic()
        agents = {str(node.index): job.events(node) for node in (*job.staying(), victim)}
        in_etcd_s = self._seen[Keys("bench").drain(f"node{victim.index}")]
        found = stages(Recovery(asked_s, old, new), in_etcd_s, job.lines, agents)
        left = [event["mono_s"] for event in agents[str(victim.index)] if event["kind"] == "left"]
        return {**found, "notice_to_gone_s": (left[0] if left else gone_s) - asked_s}

    def tell(self) -> str:
        return self._job.tell()

    def _tell(self, victim: Node) -> float:
        """When it was told."""
        address = json.loads(self._job.notice_file(victim.index).read_text())
        body = json.dumps({"seconds_left": LEAD_S, "reason": "benchmark"}).encode()
        headers = {"Authorization": f"Bearer {address['token']}"}
        request = urllib.request.Request(address["url"], data=body, method="POST", headers=headers)
        victim.leaves = True
        asked_s = time.monotonic()
        urllib.request.urlopen(request).close()
        return asked_s

    def _see(self, event: WatchEvent) -> None:
        if event.kind == "put":
            self._seen.setdefault(event.key, time.monotonic())


def repeat_one(name: str, options: argparse.Namespace, document: Measurement) -> None:
    """All runs of one launcher; after one that did not recover the job is a new one."""
    job: Notices | None = None
    try:
        for repeat in range(options.repeat):
            job = job or Notices(LAUNCHERS[name], options)
            try:
                run: dict[str, float | None] = {key: round(value, 4) for key, value in job.one().items()}
            except DidNotHappen as error:
                print(f"{name}: {error}\n{job.tell()}", file=sys.stderr)
                run = dict.fromkeys(("notice_to_first_step_s", "lost_steps"))
                job.close()
                job = None
            document.add(run, launcher=name)
            document.write(options.out)
            print(f"{repeat + 1}/{options.repeat} {name}: {run['notice_to_first_step_s']} s", file=sys.stderr)
    finally:
        if job is not None:
            job.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", default="spotrun-api,spotrun", help="those with etcd: spotrun-cold, too")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--step", type=float, default=0.02, help="seconds a training step")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints of a plain script")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.launchers.split(",")
    if unknown := [name for name in names if name not in LAUNCHERS or not LAUNCHERS[name].etcd]:
        parser.error(f"these hear no notices: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: every job is ended first
    settings = {name: getattr(options, name) for name in ("nodes", "step", "save_every")}
    document = Measurement("notice", TITLE, HOW, FEATURED, settings)
    try:
        for name in names:
            repeat_one(name, options, document)
    except KeyboardInterrupt:
        print("stopped: these are the runs so far", file=sys.stderr)
    print(document.table())


if __name__ == "__main__":
    main()
