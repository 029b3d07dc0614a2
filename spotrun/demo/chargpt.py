"""Train a small character-level GPT on the source of Python's standard library: an ordinary torchrun script.

    spotrun  --standalone --nproc-per-node=2 chargpt.py --out /tmp/chargpt
    torchrun --standalone --nproc-per-node=2 chargpt.py --out /tmp/chargpt

Start it again, on any number of workers, and it goes on from its last checkpoint: the batch of a step depends on the
seed and the step alone and is split over however many ranks there are, so the loss curve is the same in every world.
OUT gets checkpoint.pt and metrics.jsonl, a line a step; a file OUT/stop ends the training early.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

LAYERS, HEADS, WIDTH, BLOCK = 3, 4, 96, 96  # 0.35 million parameters
GLOBAL_BATCH = 36  # sequences a step, over all ranks together
PEAK_RATE, WARMUP_STEPS = 3e-3, 20
SAVE_EVERY = 10  # steps; what a lost node costs at most
TEXT_BYTES = 3_000_000
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


class Layer(nn.Module):
    """Causal self-attention and a perceptron, each beside a residual path."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, time_, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time_, 3 * HEADS, -1).transpose(1, 2).chunk(3, dim=1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time_, WIDTH))
        x = x + self.mlp(self.norm2(x))
        return x


class CharGPT(nn.Module):
    """(batch, time) characters in, (batch, time, alphabet) logits of the next ones out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(ALPHABET), WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, len(ALPHABET))
        for part in (self.tokens, self.places, self.head):
            nn.init.normal_(part.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        logits: Tensor = self.head(self.layers(self.tokens(tokens) + places))
        return logits


def read_text() -> Tensor:
    """The standard library's top-level modules, as indices into ALPHABET; the same on every rank."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    text = b"".join(path.read_bytes() for path in sorted(stdlib.glob("*.py")))[:TEXT_BYTES]
    index = torch.full((256,), -1)
    index[torch.tensor([ord(character) for character in ALPHABET])] = torch.arange(len(ALPHABET))
    known = index[torch.frombuffer(bytearray(text), dtype=torch.uint8).long()]
    return known[known >= 0]


def batch_of(text: Tensor, seed: int, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """This rank's share of the global batch of `step`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text) - BLOCK, (GLOBAL_BATCH, 1), generator=generator)
    sequences = text[starts[rank::world] + torch.arange(BLOCK + 1)]
    return sequences[:, :-1], sequences[:, 1:]


def save(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: a reader sees the old file or the new one."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    os.replace(partial, path)


def load(path: Path) -> dict[str, Any] | None:
    """What rank 0 finds, on every rank; so all start from the same step, whoever wrote it."""
    state = torch.load(path) if dist.get_rank() == 0 and path.exists() else None
    box = [state]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def train(out: Path, steps: int, seed: int) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    torch.manual_seed(seed)
    text, net, done = read_text(), CharGPT(), 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95))
    if (state := load(out / "checkpoint.pt")) is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    model = DistributedDataParallel(net)
    metrics = os.open(out / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    for step in range(done + 1, steps + 1):
        warm = min(1.0, step / WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = PEAK_RATE * warm * (0.1 + 0.9 * math.exp(-step / 1000))
        inputs, targets = batch_of(text, seed, step, rank, world)
        total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
        mean = total / (GLOBAL_BATCH * BLOCK)  # this rank's part of the global mean, however uneven the shares are
        optimizer.zero_grad()
        (mean * world).backward()  # type: ignore[no-untyped-call]  # DDP divides the gradients' sum by the world size
        optimizer.step()

        stop = float(rank == 0 and (out / "stop").exists())
        report = torch.tensor([mean.item(), stop])
        dist.all_reduce(report)  # the loss, and whether to stop: all ranks end after the same step
        loss, stopped = report.tolist()
        last = stopped > 0 or step == steps
        if rank == 0:
            line = {"step": step, "loss": loss, "world": world, "round": restarts + 1, "mono_s": time.monotonic()}
            os.write(metrics, json.dumps(line).encode() + b"\n")
            if last or step % SAVE_EVERY == 0:
                state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                save(out / "checkpoint.pt", state)
        if last:
            break
    os.close(metrics)
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small character-level GPT on Python's own source.")
    parser.add_argument("--out", type=Path, default=Path("chargpt-out"), help="folder of checkpoint and metrics")
    parser.add_argument("--steps", type=int, default=1000, help="steps in all, those of earlier starts included")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        train(options.out, options.steps, options.seed)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
