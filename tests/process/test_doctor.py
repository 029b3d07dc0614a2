"""`spotrun doctor` as processes: several nodes at once, measured pair by pair over real gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spotrun.rendezvous.embedded import EmbeddedEtcd
from tests.etcd_servers import client_of


def start(endpoint: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spotrun", "doctor", "--json", "--rdzv-endpoint", endpoint, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environ},
        stdout=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str], code: int) -> dict[str, dict[str, Any]]:
    """Its findings by check; of several, one that is not ok."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code, out
    found = json.loads(out)
    assert found["ok"] == (code == 0)
    listed = sorted(found["findings"], key=lambda it: it["grade"] != "ok")
    return {it["check"]: it for it in listed}


def meeting(etcd: EmbeddedEtcd, name: str, nodes: dict[str, tuple[str, dict[str, str]]]) -> list[subprocess.Popen[str]]:
    common = (f"--nodes-expected={len(nodes)}", f"--rdzv-id={name}")
    return [
        start(etcd.endpoint, *common, f"--node-id={node}", "--checkpoint-dir", directory, **environ)
        for node, (directory, environ) in nodes.items()
    ]


def test_nodes_that_fit_together_are_told_so_on_each(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    place = str(tmp_path / "shared")
    found = [told(it, 0) for it in meeting(etcd, "well", {"a": (place, {}), "b": (place, {})})]
    assert found[0]["gloo pairs"] == found[1]["gloo pairs"]
    assert "all 1 pairs of 2 nodes" in found[0]["gloo pairs"]["what"]
    assert found[0]["shared storage"]["grade"] == "ok"
    assert list((tmp_path / "shared").iterdir()) == []


def test_the_node_that_cannot_talk_and_the_directory_that_is_not_shared_are_named_on_each(
    etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    for name in ("shared", "other"):
        (tmp_path / name).mkdir()
    shared, other = str(tmp_path / "shared"), str(tmp_path / "other")
    nodes = {"a": (shared, {}), "b": (other, {}), "c": (shared, {"GLOO_SOCKET_IFNAME": "nowhere"})}
    found = [told(it, 1) for it in meeting(etcd, "ill", nodes)]
    for each in found:
        assert each["gloo pairs"]["what"].startswith("c is broken"), each
        assert "b does not see the file of a, c" in each["shared storage"]["what"]
    assert found[2]["interface"]["grade"] == "fail" and "interface" not in found[0]
    with client_of(etcd) as client:
        assert client.get_prefix("/spotrun/doctor:ill/nodes/")[0] == []


def test_a_node_that_does_not_come_is_missed(etcd: EmbeddedEtcd) -> None:
    found = told(start(etcd.endpoint, "--nodes-expected=2", "--wait=1", "--node-id=a", "--rdzv-id=alone"), 1)
    assert found["nodes"]["what"] == "1 of 2 nodes came within 1 s: a"


@pytest.mark.parametrize("arguments", [("--nodes-expected=2",), ("--rdzv-endpoint=nowhere",)])
def test_wrong_flags_are_told_in_a_sentence(arguments: tuple[str, ...]) -> None:
    ended = subprocess.run([sys.executable, "-m", "spotrun", "doctor", *arguments], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("spotrun: "), ended.stderr
