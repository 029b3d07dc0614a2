"""When newcomers are taken in is the user's choice."""

from __future__ import annotations

from collections.abc import Callable

from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig, WatchEvent
from spotrun.rendezvous.keys import Keys
from tests.jobs import RealJob
from tests.process.test_api import finish, recomputed, start
from tests.waiting import until


def test_with_grow_next_save_a_newcomer_is_taken_in_after_a_checkpoint_that_is_newer_than_itself(
    make_job: Callable[..., RealJob],
) -> None:
    job = make_job(nnodes="1:2", flags=("--grow=next-save",))
    keys = Keys(job.run_id)
    seen: list[WatchEvent] = []
    with EtcdClient(EtcdConfig((job.endpoint,))) as client:
        watch = client.watch(
            keys.root, prefix=True, start_revision=1, on_event=seen.append, on_error=lambda error: None
        )
        nodes = [start(job, "a")]
        job.until_steps(3, world=1)
        nodes.append(start(job, "b"))
        until("a second round", lambda: sum(event.key == keys.round for event in seen) == 2, detail=job.tell)
        watch.cancel()
    finish(job, nodes)
    puts = [event for event in seen if event.kind == "put"]
    came = next(event.mod_revision for event in puts if event.key == keys.node("b"))
    grown = [event.mod_revision for event in puts if event.key == keys.round][1]
    saved = [event.mod_revision for event in puts if event.key == keys.latest_checkpoint]
    assert any(came < revision < grown for revision in saved), (came, saved, grown)
    assert recomputed(job) == 0
