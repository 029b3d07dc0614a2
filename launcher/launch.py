"""From a parsed command line to a running agent, and to the exit that the node's end deserves."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch.distributed.elastic import events as elastic_events
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.metrics import initialize_metrics
from torch.distributed.elastic.metrics.api import MetricsConfig
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.launcher.api import LaunchConfig, _get_entrypoint_name
from torch.distributed.run import run_script_path

from spotrun import events
from spotrun.config import AgentOptions
from spotrun.errors import UsageError
from spotrun.launcher import placement, torch_events
from spotrun.launcher.agent import SpotAgent
from spotrun.launcher.host import HostWatch
from spotrun.launcher.imports import chosen
from spotrun.launcher.leaving import Drained
from spotrun.launcher.ledger import Ledger, file_of
from spotrun.launcher.metrics import Metrics, MetricsServer
from spotrun.launcher.notice_board import NoticeBoard
from spotrun.launcher.notices.metadata import Where
from spotrun.launcher.scratch import scratch
from spotrun.launcher.wakeup import Wakeup
from spotrun.launcher.workers import Workers
from spotrun.launcher.zygote_process import TRAINING_API, ZygoteProcess
from spotrun.rendezvous.creation import create_handler

logger = logging.getLogger("spotrun")
T = TypeVar("T")


def launch_agent(
    config: LaunchConfig,
    entrypoint: Any,
    args: list[str],
    options: AgentOptions,
    zygote: ZygoteProcess | None = None,
) -> dict[int, Any]:
    """Run this node's part of the job; its workers' return values (None each) by global rank.

    Raises ChildFailedError when a worker failed (on every node, the root cause first), SystemExit for a node that was
    drained or stopped by a signal, and the errors of `spotrun.errors`.
    """
    if entrypoint is run_script_path:  # --run-path: a worker of ours is a python of its own anyway
        entrypoint, args = sys.executable, ["-u", *args]
    if not isinstance(entrypoint, str):
        raise UsageError("The etcd-v3 backend starts programs, not functions: give a script, or --rdzv-backend=c10d.")
    config.event_log_handler = torch_events.chosen(config.event_log_handler)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = config.signals_to_handle  # as torchrun passes it to the workers
    where = placement.find(options.region, must_know=bool(options.regions))
    placement.check(where, options.regions)
    environment = _for_the_training_api(options, where)
    with contextlib.ExitStack() as stack:
        if options.wipe_on_exit:
            environment |= stack.enter_context(scratch())
        return _launch(config, entrypoint, args, options, zygote, where, environment)


def _launch(
    config: LaunchConfig,
    entrypoint: str,
    args: list[str],
    options: AgentOptions,
    zygote: ZygoteProcess | None,
    where: Where,
    environment: dict[str, str],
) -> dict[int, Any]:
    # The order counts: the process that starts workers must be there before grpc has threads.
    script = args[1] if args[:1] == ["-u"] and args[1:2] != ["-m"] else None
    preload = (*TRAINING_API, *chosen(options.preload, script))
    workers = Workers(warm=options.warm != "off", preload=preload, zygote=zygote)
    wakeup = Wakeup()
    try:
        handler = create_handler(_parameters(config, where, options.regions), wakeup.wake)
        try:
            standing = handler.membership.standing()
            if options.events is not None:
                events.to_file(options.events, node=standing.node_id)
            file = None if options.log_dir is None else file_of(options.log_dir, config.run_id, standing.node_id)
            metrics = Metrics(config.run_id, standing.node_id) if options.metrics is not None else None
            ledger = Ledger(handler.client, handler.membership.keys, standing.incarnation, file)
            board = NoticeBoard(options.notice, wakeup)
            agent = SpotAgent(
                _spec(config, entrypoint, args, handler),
                config.logs_specs,  # type: ignore[arg-type]
                workers,
                wakeup,
                handler,
                board,
                ledger,
                environment=environment,
                hang_timeout_s=options.hang_timeout_s,
                price_per_node_hour=options.price_per_node_hour,
                progress_s=options.progress_s,
                say_progress=to_all(handler.membership.progress, *([metrics.progress] if metrics else [])),
                start_method=config.start_method,
                log_line_prefix_template=config.log_line_prefix_template,
                shutdown_timeout=config.shutdown_timeout or 0,
            )
            handled = {signal.Signals[name.strip()] for name in config.signals_to_handle.split(",")}
            wakeup.catch(handled | {signal.SIGUSR2})  # Slurm's --signal, as sbatch users give it
            board.start()
            initialize_metrics(MetricsConfig(config.metrics_cfg))
            say_vitals = to_all(handler.membership.vitals, *([metrics.vitals] if metrics else []))
            host = HostWatch(standing.node_id, say_vitals)
            try:
                with contextlib.ExitStack() as stack:
                    stack.enter_context(events.to_listener(ledger.hear, node=standing.node_id))
                    if where.region:
                        events.emit("node_placed", level=logging.DEBUG, region=where.region, zone=where.zone)
                    if metrics is not None and options.metrics is not None:
                        stack.enter_context(events.to_listener(metrics.hear))
                        stack.enter_context(contextlib.closing(MetricsServer(metrics, *options.metrics)))
                    return _run(agent, _get_entrypoint_name(entrypoint, args), config, options)
            finally:
                board.stop()
                host.close()
                ledger.close()
        finally:
            workers.close()
            handler.close()
    finally:
        workers.close()
        wakeup.close()


def _for_the_training_api(options: AgentOptions, where: Where) -> dict[str, str]:
    """What the workers' side of the training API is told in their environment."""
    environment = {"SPOTRUN_REPLICAS": str(options.replicas), "SPOTRUN_ALONE": str(int(options.alone))}
    if where.zone or where.region:
        environment["SPOTRUN_ZONE"] = where.zone or where.region  # copies of snapshots go to another one
    if options.regions:
        environment |= {"SPOTRUN_REGIONS": ",".join(options.regions), "SPOTRUN_REGION": where.region}
    if options.audit is not None:
        environment["SPOTRUN_AUDIT"] = str(options.audit)
    return environment


def to_all(*hearers: Callable[[T], None]) -> Callable[[T], None]:
    def tell(word: T) -> None:
        for hearer in hearers:
            hearer(word)

    return tell


def _run(agent: SpotAgent, name: str, config: LaunchConfig, options: AgentOptions) -> dict[int, Any]:
    try:
        result = agent.run()
    except Drained as drained:
        events.emit(
            "left",
            str(drained),
            round=drained.round_number,
            phases=drained.phases,
            checkpoint_s=drained.checkpoint_s,
        )
        alone = config.max_nodes == 1
        if drained.signum is not None and (alone or drained.signum is not signal.SIGTERM):
            sys.exit(128 + drained.signum)
        sys.exit(options.drain_exit_code)
    except Exception:  # torch's own events tell of every end
        elastic_events.record(agent.get_event_failed(), config.event_log_handler)
        raise
    elastic_events.record(agent.get_event_succeeded(), config.event_log_handler)
    if result.is_failed():
        raise ChildFailedError(name, result.failures)
    return dict(result.return_values)


def _parameters(config: LaunchConfig, where: Where, regions: Sequence[str]) -> RendezvousParameters:
    settings = {
        **config.rdzv_configs,
        "region": where.region,
        "zone": where.zone,
        "regions": ",".join(regions),
        "nproc": config.nproc_per_node,
        "max_restarts": config.max_restarts,
    }
    return RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=config.local_addr,
        **settings,
    )


def _spec(config: LaunchConfig, entrypoint: str, args: list[str], handler: Any) -> WorkerSpec:
    return WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=entrypoint,
        args=tuple(args),
        rdzv_handler=handler,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
        event_log_handler=config.event_log_handler,
        numa_options=config.numa_options,
        duplicate_stdout_filters=config.duplicate_stdout_filters,
        duplicate_stderr_filters=config.duplicate_stderr_filters,
        virtual_local_rank=config.virtual_local_rank,
    )
