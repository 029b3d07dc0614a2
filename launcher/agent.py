"""The agent: TorchElastic's LocalElasticAgent with one event loop in place of its polling.

It sleeps until something happens - the rendezvous changed, a worker ended, a signal came - then asks `decide` what to
do and does it. Membership changes are not failures and never use up --max-restarts; a worker's own failure is charged
once to the whole job, by the coordinator.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from string import Template
from typing import Any, cast

from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.utils.api import macros

from spotrun import events
from spotrun.errors import JobRefused
from spotrun.launcher.commits import Commits
from spotrun.launcher.decide import Action, Situation, decide
from spotrun.launcher.drain_news import DrainNews
from spotrun.launcher.environment import Place, worker_environment
from spotrun.launcher.failures import WorkerRefused, process_failures, record, tell
from spotrun.launcher.hangs import HangWatch, tell_hung
from spotrun.launcher.incident import Incidents, told
from spotrun.launcher.interfaces import gloo_environment
from spotrun.launcher.leaving import Drained, Leaving, unsaved
from spotrun.launcher.ledger import Ledger
from spotrun.launcher.link import Link
from spotrun.launcher.notice_board import NoticeBoard
from spotrun.launcher.notices.notice import Grade, Notice
from spotrun.launcher.notices.signals import notice_from_signal
from spotrun.launcher.progress import Teller, of_job, of_node
from spotrun.launcher.progress_line import ProgressLine
from spotrun.launcher.standby import Standby, find, lend
from spotrun.launcher.wakeup import Wakeup
from spotrun.launcher.workers import Workers
from spotrun.rendezvous.handler import EtcdRendezvousHandler
from spotrun.rendezvous.state import Drain, Progress, Report, Round, Stall
from spotrun.wording import plural

logger = logging.getLogger("spotrun")

RELEASE_S = 5.0  # workers whose round is over leave it within this time, or are ended
BOUNDARY_S = 600.0  # and this long where they may go on to the agreed step first: a model may have to be compiled
ABORT_GRACE_S = 1.0  # between SIGTERM and SIGKILL where the round is over anyway; no handler can still use a collective


class SpotAgent(LocalElasticAgent):
    """One agent a node. `workers` must have been made before any grpc channel or thread (see launch.py)."""

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs,
        workers: Workers,
        wakeup: Wakeup,
        handler: EtcdRendezvousHandler,
        board: NoticeBoard,
        ledger: Ledger,
        *,
        environment: Mapping[str, str],
        hang_timeout_s: float | None,
        price_per_node_hour: float | None,
        progress_s: float,
        say_progress: Callable[[Progress], None],
        start_method: str,
        log_line_prefix_template: str | None,
        shutdown_timeout: int,
    ) -> None:
        super().__init__(
            spec,
            logs_specs,
            start_method,
            log_line_prefix_template=log_line_prefix_template,
            shutdown_timeout=shutdown_timeout,
        )
        self._workers = workers
        self._wakeup = wakeup
        self._handler = handler
        self._membership = handler.membership
        self._board = board
        self._ledger = ledger
        self._environment = {**environment, **gloo_environment(handler.address, os.environ)}
        self._elastic = handler.max_nodes > 1  # else there is nobody to go on, and a signal ends the job
        self._incidents = Incidents(price_per_node_hour)
        self._link = Link(Commits(handler.membership).take, self._incidents.mark)
        self._standby = Standby(self._link.snapshots, partial(find, self._membership))
        nproc = spec.local_world_size
        self._lender = lend(self._link.snapshots, handler, nproc) if self._elastic else None
        self._teller = Teller(say_progress)
        self._progress_line = ProgressLine(progress_s)
        self._hang_timeout_s = hang_timeout_s
        self._hangs = HangWatch(
            self._link,
            lambda: workers.poll().pids,
            lambda: of_job(handler.client, handler.membership.keys),
            wakeup.wake,
            hang_timeout_s,
        )
        self._told_stalls: tuple[Stall, ...] = ()
        self._tell_at_s: float | None = None
        self._released_for = self._planned_for = 0
        self._drain_news = DrainNews(self._link, handler.min_nodes)
        self._overdue_s: float | None = None
        self._round: Round | None = None
        self._started_as = ""
        self._reported = False
        self._leaving = Leaving(float(shutdown_timeout))
        self._signals = 0
        self._failures: dict[int, ProcessFailure] = {}

    # -- the loop

    def _invoke_run(self, role: str = "") -> RunResult:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            selector.register(self._workers, selectors.EVENT_READ)
            selector.register(self._link, selectors.EVENT_READ)
            while True:
                self._look_for_hangs()
                situation = self._situation()
                if not self._workers.warming:
                    # The others train on until this node can start its workers at once.
                    self._handler.start()
                while (action := decide(situation)) is not Action.WAIT:
                    if action is Action.FINISH:
                        return self._finish()
                    self._apply(action)
                    situation = self._situation()
                if situation.standing.waits and not self._workers.poll().pids:
                    self._standby.follow()
                self._tell_drains()
                self._tell_progress()
                self._tell_silence()
                selector.select(self._time_left_s())
                self._link.poll()
                for signum in self._wakeup.take():
                    self._take_signal(signum)
                for notice in self._board.take():
                    self._take_notice(notice)

    def _situation(self) -> Situation:
        status = self._workers.poll()
        if status.state == "failed":
            self._keep(status.failures)
        spoken = self._link.spoken()
        cooperative = len(spoken) == len(status.pids) > 0
        ready = cooperative and all(worker.ready for worker in spoken)
        standing = self._membership.standing()
        if ready:
            self._incidents.left(time.monotonic())
        if standing.round is not None and standing.group_rank is not None:
            self._incidents.round(standing.round, time.monotonic())
        return Situation(
            standing=standing,
            workers=status.state,
            started_round=self._round.number if self._round else 0,
            started_as=self._started_as,
            reported=self._reported,
            told=self._leaving.told,
            leaving=self._leaving.wanted or self._drain() is not None,
            cooperative=cooperative,
            in_place=all(worker.in_place for worker in spoken),
            released_for=self._released_for,
            on_their_way=self._on_their_way(),
            ready=ready,
            agreed=all(worker.agreed for worker in spoken),
            overdue=self._overdue_s is not None and time.monotonic() >= self._overdue_s,
            hung=bool(self._hangs.stalls) and (self._on_their_way() or self._restarts_for_hangs()),
        )

    def _time_left_s(self) -> float | None:
        silent_s = None if self._link.spoken() else self._incidents.due_s
        times = (self._overdue_s, self._tell_at_s, self._hangs.due_s, silent_s)
        until_s = min((at_s for at_s in times if at_s is not None), default=None)
        return None if until_s is None else max(0.0, until_s - time.monotonic())

    def _apply(self, action: Action) -> None:
        if action is Action.START:
            self._initialize_workers(self._worker_group)
        elif action is Action.RELEASE:
            self._release()
        elif action is Action.ADMIT:
            self._admit()
        elif action is Action.ABORT:
            self._stop(signal.SIGTERM, ABORT_GRACE_S, "its round is over")
        elif action is Action.STOP:
            self._tell_unsaved()
            grace_s = min(
                float(self._shutdown_timeout), self._leaving.time_for_workers_s(time.monotonic(), self._drain())
            )
            self._stop(self._leaving.signum or signal.SIGTERM, grace_s, "this node ends")
        elif action is Action.REPORT:
            self._report()
        elif action is Action.TELL:
            self._tell()
        elif action is Action.LEAVE:
            for notice in self._leaving.notices.values():
                self._board.safe_to_go(notice)
            raise Drained(
                self._leaving.why(self._drain()),
                self._leaving.signum,
                self._incidents.phases(),
                self._round.number if self._round else 0,
                self._incidents.checkpoint_s,
            )
        elif action is Action.REFUSED:
            refused = self._membership.standing().refused
            assert refused is not None
            raise refused

    def _take_signal(self, signum: signal.Signals) -> None:
        self._signals += 1
        if self._signals > 1:  # whoever asks twice means it
            self._workers.stop(signal.SIGKILL, 0.0)
            return
        notice = notice_from_signal(signum, os.environ, time.monotonic())
        if notice is not None and self._elastic:
            self._board.hear(notice)
            return
        self._leaving.signum = signum
        events.emit("signal", f"{signum.name}: this node leaves", signal=signum.name, level=logging.WARNING)

    def _take_notice(self, notice: Notice) -> None:
        fields: dict[str, Any] = {"source": notice.source, "notice": notice.kind, "seconds_left": notice.seconds_left}
        if notice.withdrawn:
            events.emit("notice_withdrawn", f"{notice.source}: the notice was withdrawn", **fields)
            if self._leaving.withdraw(notice):
                self._membership.drain(None)
                self._incidents.withdrawn()
        elif notice.grade is Grade.MAY:
            events.emit("notice_may", f"{notice.source}: {notice.detail}; the next step is saved", **fields)
            self._link.tell({"op": "save"})
        else:
            message = f"{notice.source}: this node goes in {notice.seconds_left:.0f} s ({notice.detail})"
            events.emit("notice", message, level=logging.WARNING, **fields)
            self._leaving.notices[notice.id] = notice
            now_s = time.monotonic()
            self._overdue_s = now_s + self._leaving.time_for_workers_s(now_s, self._drain())
            self._incidents.sign("notice", now_s)

    def _drain(self) -> Drain | None:
        """What the job has been told of this node, by itself or by another."""
        standing = self._membership.standing()
        return self._leaving.in_force(standing.drains.get(standing.node_id))

    # -- what the actions do

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Take this node's place in the present round; nothing is exchanged, the record says it all."""
        standing = self._membership.standing()
        current, group_rank = standing.round, standing.group_rank
        assert current is not None and group_rank is not None
        self._standby.rest()
        if group_rank == 0:
            _, port = self._handler.stores.serve()
            self._membership.announce(store_port=port)
        self._round, self._started_as = current, standing.incarnation
        self._reported, self._failures = False, {}
        self._ledger.first = group_rank == 0
        first, size = current.first_rank(group_rank), current.world_size
        worker_group.workers = [
            Worker(local, first + local, first + local, size, size)
            for local in range(worker_group.spec.local_world_size)
        ]
        group: Any = worker_group  # torch declares these fields as None
        group.group_rank, group.group_world_size = group_rank, len(current.members)
        group.master_addr, group.master_port = current.store_address, current.store_port
        there = f"{plural(len(current.members), 'node')}, {plural(size, 'worker')}"
        events.emit(
            "round_formed",
            f"round {current.number}: {there} ({current.reason})",
            round=current.number,
            cause=current.kind,
            reason=current.reason,
            nodes=[member.node_id for member in current.members],
            world_size=size,
            restarts=current.restarts,
        )

    def _release(self) -> None:
        """The workers' round is over: they leave it at the agreed step, or right now if a member of it is gone."""
        current = self._membership.standing().round
        assert current is not None
        # Workers that still wait for a member that will not come cannot agree on a step; nor can those that hang.
        planned = current.kind in Round.PLANNED and all(worker.entered for worker in self._link.spoken())
        self._planned_for = current.number if planned and self._released_for != current.number else 0
        now_s = time.monotonic()
        until_s = now_s + (BOUNDARY_S if self._planned_for else RELEASE_S)
        if self._overdue_s is not None:  # they were told before, and a newer round gives them no more time
            until_s = min(until_s, self._overdue_s)
        self._released_for = current.number
        if self._leaving.wanted:
            until_s = min(until_s, now_s + self._leaving.time_for_workers_s(now_s, self._drain()))
        self._overdue_s = until_s
        self._link.tell({"op": "release", "planned": bool(self._planned_for)})
        self._look_for_hangs()  # from now on by a shorter limit

    def _admit(self) -> None:
        """Give each worker its place in the new round; it goes on in the same process."""
        self._rendezvous(self._worker_group)
        assert self._round is not None
        for connection, environment in zip(self._link.spoken(), self._environments().values(), strict=True):
            connection.ready = connection.entered = False
            self._link.tell({"op": "round", "environment": environment}, connection)
        self._overdue_s = None
        events.emit("workers_admitted", round=self._round.number, pids=list(self._workers.poll().pids.values()))

    def _environments(self) -> dict[int, dict[str, str]]:
        """By local rank."""
        assert self._round is not None
        group: Any = self._worker_group
        spec = self._worker_group.spec
        envs: dict[int, dict[str, str]] = {}
        for worker in self._worker_group.workers:
            local = worker.local_rank
            place = Place(
                self._round, group.group_rank, local, spec.role, spec.max_restarts, self._handler.get_run_id()
            )
            envs[local] = {**worker_environment(place), **self._environment, "SPOTRUN_LINK": str(self._link.path)}
            self._set_local_rank_env(cast("dict[str, str | None]", envs[local]), local, spec)
        return envs

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        assert self._round is not None
        spec = worker_group.spec
        envs = self._environments()
        args: dict[int, tuple[str, ...]] = {}
        prefixes: dict[int, str] | None = {} if self._log_line_prefix_template else None
        for worker in worker_group.workers:
            local = worker.local_rank
            args[local] = tuple(macros.substitute([str(arg) for arg in spec.args], str(local)))
            if prefixes is not None and self._log_line_prefix_template:
                prefixes[local] = Template(self._log_line_prefix_template).safe_substitute(
                    role_name=spec.role, rank=worker.global_rank, local_rank=local
                )
        self._setup_local_watchdog(envs=envs)
        self._setup_healthcheck()
        assert isinstance(spec.entrypoint, str)
        pids = self._workers.start(
            name=spec.role,
            entrypoint=spec.entrypoint,
            args=args,
            envs=envs,
            logs_specs=self._logs_specs,
            log_line_prefixes=prefixes,
            numa_options=spec.numa_options,
            duplicate_stdout_filters=spec.duplicate_stdout_filters,
            duplicate_stderr_filters=spec.duplicate_stderr_filters,
        )
        self._hangs.started(time.monotonic())
        self._incidents.started(time.monotonic())
        events.emit("workers_started", round=self._round.number, pids=list(pids.values()))
        return dict(pids)

    def _stop(self, signum: signal.Signals, grace_s: float, why: str) -> None:
        began_s = time.monotonic()
        self._stop_watchdog()
        self._workers.stop(signum, grace_s)
        self._link.forget()
        self._overdue_s = None
        number = self._round.number if self._round else 0
        events.emit("workers_stopped", round=number, reason=why, seconds=time.monotonic() - began_s)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """What torch's run() calls at the end, whatever happened."""
        self._stop_watchdog()
        self._workers.stop(death_sig, float(timeout))
        self._standby.rest()
        if self._lender is not None:
            self._lender.close()
        self._link.close()

    def _stop_watchdog(self) -> None:
        super()._shutdown()  # it has no processes of its own here: only its watchdog and health check end

    def _keep(self, failures: dict[int, ProcessFailure]) -> None:
        self._incidents.sign("failed", time.monotonic())
        for local, failure in failures.items():
            self._failures[self._worker_group.workers[local].global_rank] = failure

    def _report(self) -> None:
        assert self._round is not None
        status = self._workers.poll()
        standing = self._membership.standing()
        address = self._handler.address
        found = sorted(self._failures.items(), key=lambda item: item[1].timestamp)
        failures = tuple(
            record(rank, failure, address, self._workers.log_files.get(failure.local_rank, ""))
            for rank, failure in found
        )
        for failure in failures:
            tell(failure, self._round.number)
        stalls = self._hangs.stalls if status.state == "running" else ()
        kind = status.state if status.state != "running" else "hung" if stalls else "rejoin"
        number = self._round.number
        self._membership.report(Report(standing.node_id, self._started_as, number, kind, failures, stalls))
        self._reported = True

    def _look_for_hangs(self) -> None:
        if self._round is None:
            return
        first_rank, leaving = self._worker_group.workers[0].global_rank, self._on_their_way()
        self._hangs.look(self._round, first_rank, self._handler.address, time.monotonic(), leaving=leaving)
        stalls = self._hangs.stalls
        if stalls and stalls != self._told_stalls:
            self._incidents.sign("hung", time.monotonic())
            tell_hung(stalls, self._round.number, leaving=leaving, restarts=self._restarts_for_hangs())
        self._told_stalls = stalls

    def _on_their_way(self) -> bool:
        """Whether the workers may go on to the agreed step before they leave their round."""
        return self._round is not None and self._planned_for > self._round.number

    def _restarts_for_hangs(self) -> bool:
        """A default that nobody asked for never ends a job: without restarts left it only tells."""
        assert self._round is not None
        return self._hang_timeout_s is not None or self._round.restarts < self._worker_group.spec.max_restarts

    def _tell_drains(self) -> None:
        if self._round is not None and self._link.spoken():
            standing = self._membership.standing()
            if self._drain_news.tell(self._round, standing.drains, standing.node_id):
                self._incidents.sign("notice", time.monotonic())

    def _tell_progress(self) -> None:
        if self._round is not None:
            node_id = self._membership.standing().node_id
            workers = [worker.progress for worker in self._link.spoken()]
            progress = of_node(node_id, self._started_as, self._round, workers)
            self._tell_at_s = self._teller.tell(progress, time.monotonic())
            if progress is not None:
                self._tell_incident(self._incidents.stepped(progress, time.monotonic()))
                if self._ledger.first:
                    self._progress_line.tell(progress, time.monotonic())

    def _tell_silence(self) -> None:
        due_s = self._incidents.due_s
        if due_s is not None and not self._link.spoken() and time.monotonic() >= due_s:
            self._tell_incident(self._incidents.silent())

    def _tell_incident(self, found: dict[str, Any] | None) -> None:
        if found is not None:
            level = logging.INFO if self._ledger.first else logging.DEBUG  # one line a job
            events.emit("incident", told(found), level=level, **found)

    def _tell(self) -> None:
        now_s = time.monotonic()
        if self._drain() is None:
            self._membership.drain(self._leaving.record(self._membership.standing().node_id, now_s))
        self._leaving.told = True
        self._overdue_s = now_s + self._leaving.time_for_workers_s(now_s, self._drain())

    def _tell_unsaved(self) -> None:
        """Workers are ended because this node goes: say so where spotrun does not know their state to be safe."""
        situation = self._situation()
        going_on = situation.leaving and situation.standing.outcome is None
        if going_on and situation.workers in ("running", "failed") and not situation.ready:
            kind, why = unsaved(situation.workers == "failed", situation.cooperative)
            events.emit(kind, why, level=logging.WARNING)

    def _finish(self) -> RunResult:
        outcome = self._membership.standing().outcome
        assert outcome is not None
        events.emit(
            "job_ended",
            f"the job {outcome.state}: {outcome.reason}",
            state=outcome.state,
            reason=outcome.reason,
            round=self._round.number if self._round else 0,
            checkpoint_s=self._incidents.checkpoint_s,
        )
        if self._round is None:
            self._worker_group.workers = []  # a spare to the end: torch must not look for the results of its workers
        if outcome.state == "succeeded":
            values = {worker.global_rank: None for worker in self._worker_group.workers}
            self._worker_group.state = WorkerState.SUCCEEDED
            return RunResult(WorkerState.SUCCEEDED, return_values=values)
        if outcome.state == "failed":
            self._worker_group.state = WorkerState.FAILED
            if outcome.failures and outcome.failures[0].said:
                raise WorkerRefused(outcome.failures[0])
            return RunResult(WorkerState.FAILED, failures=process_failures(outcome.failures, self._failures))
        raise JobRefused(f"The job {self._handler.get_run_id()!r} was stopped by {outcome.node_id}: {outcome.reason}")
