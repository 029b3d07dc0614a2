"""Train a small character-level GPT on the source of Python's standard library, and survive whatever the nodes do.

    spotrun  --standalone --nproc-per-node=2 chargpt.py --out /tmp/chargpt
    torchrun --nproc-per-node=2 chargpt.py --out /tmp/chargpt
    python chargpt.py --out /tmp/chargpt

`spotrun.run` enters `train` once a round, in the same process: after a node has come or gone, the others go on with the
step after the last one, from memory. Each step's samples are the same in every world, so the loss curve is too.
OUT gets checkpoints/ and metrics.jsonl, a line for each step that was made; a file OUT/stop ends the training early.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import spotrun
from spotrun.weighting import mean_over_ranks

LAYERS, HEADS, WIDTH, BLOCK = 3, 4, 96, 96  # 0.35 million parameters
GLOBAL_BATCH = 36  # sequences a step, over all ranks together
PEAK_RATE, WARMUP_STEPS = 3e-3, 20
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


class Text(Dataset[tuple[Tensor, Tensor]]):
    """Every stretch of BLOCK characters in the standard library's top-level modules, and the characters after them."""

    def __init__(self) -> None:
        stdlib = Path(sysconfig.get_path("stdlib"))
        text = b"".join(path.read_bytes() for path in sorted(stdlib.glob("*.py")))[:TEXT_BYTES]
        index = torch.full((256,), -1)
        index[torch.tensor([ord(character) for character in ALPHABET])] = torch.arange(len(ALPHABET))
        known = index[torch.frombuffer(bytearray(text), dtype=torch.uint8).long()]
        self.text = known[known >= 0]

    def __len__(self) -> int:
        return len(self.text) - BLOCK

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        return self.text[start : start + BLOCK], self.text[start + 1 : start + BLOCK + 1]


def train(job: spotrun.Job, text: Text, out: Path, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = DistributedDataParallel(CharGPT().to(job.device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95))
    batches = job.batches(text, global_batch_size=GLOBAL_BATCH, seed=seed, epochs=None)
    job.track(model=model, optimizer=optimizer)  # restores both, and the place in the data
    stop = False
    for inputs, targets in batches:
        if stop or job.steps >= steps:
            break
        step = job.steps + 1
        warm = min(1.0, step / WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = PEAK_RATE * warm * (0.1 + 0.9 * math.exp(-step / 1000))
        logits = model(inputs.to(job.device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(job.device).flatten())
        optimizer.zero_grad()
        job.scale(loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        stop = report(job, out, step, loss.detach(), batches.weight)
        job.step(loss=loss)  # the step counts; at a change of the world, `train` is left here and entered anew


def report(job: spotrun.Job, out: Path, step: int, loss: Tensor, weight: float) -> bool:
    """Rank 0 writes the step's line, before the step counts: so no step lacks one. True on all ranks: stop here."""
    stop = loss.new_tensor(float(job.rank == 0 and (out / "stop").exists()))
    # `weight` makes uneven shares of a batch count by their size
    mean, stopped = mean_over_ranks(torch.stack([loss * weight, stop])).tolist()
    if job.rank == 0:
        line = {"step": step, "loss": mean, "world": job.world_size, "round": job.round, "mono_s": time.monotonic()}
        with (out / "metrics.jsonl").open("ab", buffering=0) as metrics:
            metrics.write(json.dumps(line).encode() + b"\n")
    return bool(stopped)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small character-level GPT on Python's own source.")
    parser.add_argument("--out", type=Path, default=Path("chargpt-out"), help="folder of checkpoints and metrics")
    parser.add_argument("--steps", type=int, default=1000, help="steps in all, those of earlier starts included")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text = Text()
    spotrun.run(
        lambda job: train(job, text, options.out, options.steps, options.seed),
        checkpoint_dir=options.out / "checkpoints",
    )


if __name__ == "__main__":
    main()
