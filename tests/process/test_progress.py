"""How far each node has come lies in etcd, for people, for policies and for the diagnosis of a hang."""

from __future__ import annotations

from collections.abc import Callable

from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import Progress, decode
from tests.jobs import RealJob
from tests.process.test_api import finish, start
from tests.waiting import until

MakeJob = Callable[..., RealJob]


def test_every_nodes_progress_lies_in_etcd_as_long_as_the_node_is_there(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:2")
    nodes = [start(job, name) for name in "ab"]
    with EtcdClient(EtcdConfig((job.endpoint,))) as client:
        keys = Keys(job.run_id)

        def told(step: int) -> list[Progress]:
            found, _ = client.get_prefix(keys.progress)
            words = [decode(Progress, kv.value) for kv in found if kv.lease]
            return words if len(words) == 2 and all(word.step >= step for word in words) else []

        words = until("both tell of a step after a save", lambda: told(51), detail=job.tell)
        assert {word.node_id for word in words} == {"a", "b"}
        for word in words:
            assert (word.round, len(word.steps)) == (1, 1)
            assert word.samples == word.step // 50 * 997 + word.step % 50 * 20
            assert 0.03 < word.step_time_s < 5
            assert word.loss is not None
            assert 0 < word.last_snapshot_step <= word.step
            assert word.last_commit_step in (25, 50)
        finish(job, nodes)
        assert not client.get_prefix(keys.progress)[0]
