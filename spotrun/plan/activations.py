"""The memory of one step of the user's model, by torch's MemTracker under fake tensors: nothing is allocated.

    python -m spotrun.plan.activations MODULE:FUNCTION OPTIMIZER

FUNCTION returns (model, inputs) with the batch of one rank. In a process of its own with a time limit, for it is the
user's code, and a model may be slow to build even so. Prints one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

from spotrun.errors import UsageError
from spotrun.plan.memory import Model

LIMIT_S = 120.0


def measure(factory: str, optimizer: str, limit_s: float = LIMIT_S) -> Model:
    """Raises UsageError where the factory does not give a model that makes a step."""
    command = [sys.executable, "-m", "spotrun.plan.activations", factory, optimizer]
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH", ""))))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, env={**os.environ, "PYTHONPATH": path}
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"--model={factory} made no step within {limit_s:g} s: give a smaller batch.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--model={factory} made no step ({last[:300]}): it must return (model, inputs).")
    return Model(**json.loads(done.stdout.splitlines()[-1]))


def _track(factory: str, optimizer: str) -> Model:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    module, _, name = factory.partition(":")
    with FakeTensorMode():
        model, inputs = getattr(importlib.import_module(module), name)()
        tracker = MemTracker()
        made: Any = {  # type: ignore[no-untyped-call]
            "sgd": lambda: torch.optim.SGD(model.parameters(), lr=1e-3),
            "momentum": lambda: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
            "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True),
        }[optimizer]()
        tracker.track_external(model, made, *(it for it in inputs if isinstance(it, torch.Tensor)))
        with tracker:
            for _ in range(2):  # the optimizer's state is there from the second on
                tracker.reset_mod_stats()
                out = model(*inputs)
                held = tracker.get_tracker_snapshot("current")
                (out if isinstance(out, torch.Tensor) else out[0]).float().sum().backward()
                made.step()
                made.zero_grad()
        parameters = list(model.parameters())
        sizes = [sum(it.numel() for it in child.parameters()) for child in _blocks(model)]
        kinds = ("Activation", "Temp")
        peak = sum(size for by_kind in held.values() for kind, size in by_kind.items() if _name(kind) in kinds)
        return Model(
            sum(it.numel() for it in parameters),
            max(sizes, default=0),
            parameters[0].element_size(),
            optimizer,
            peak,
        )


def _name(kind: Any) -> str:
    return str(getattr(kind, "value", kind))


def _blocks(model: Any) -> list[Any]:
    """What FSDP is usually applied to: the members of lists of layers, else the children."""
    import torch

    listed = [
        child for it in model.modules() if isinstance(it, torch.nn.ModuleList | torch.nn.Sequential) for child in it
    ]
    return listed or list(model.children()) or [model]


if __name__ == "__main__":
    from dataclasses import asdict

    sys.stdout.write(json.dumps(asdict(_track(sys.argv[1], sys.argv[2]))) + "\n")
