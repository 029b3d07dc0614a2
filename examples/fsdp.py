"""Train a small transformer with FSDP2 (`fully_shard`): no rank holds the whole model.

    python fsdp.py                                        # one process, no launcher
    spotrun --standalone --nproc-per-node=2 fsdp.py       # two workers

A checkpoint directory is needed: what is spread over the ranks is kept there when the number of workers changes.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import Dataset

import spotrun

LENGTH, WORDS, WIDTH = 12, 32, 64
SAMPLES = 640  # 20 steps an epoch


class Echoes(Dataset[tuple[Tensor, Tensor]]):
    """Random sequences; what is to be found is the sequence turned round."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        words = torch.randint(WORDS, (LENGTH,), generator=torch.Generator().manual_seed(index))
        return words, words.flip(0)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x).transpose(1, 2).contiguous()  # (batch, words, length), as cross_entropy takes it
        return logits


def train(job: spotrun.Job) -> None:
    """Entered once a round: whatever the number of workers is by then."""
    torch.manual_seed(0)
    model = Transformer().to(job.device)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = job.batches(Echoes(), global_batch_size=32, seed=0, epochs=options.epochs)
    if job.track(model=model, optimizer=optimizer) and job.rank == 0:
        print(f"goes on after step {job.steps}", flush=True)

    for words, turned in batches:
        loss = F.cross_entropy(model(words.to(job.device)), turned.to(job.device))
        job.scale(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        job.step(loss=loss)
        if job.rank == 0 and job.steps % 10 == 0:
            print(f"step {job.steps:4d}  loss {loss.item():.3f}  workers {job.world_size}", flush=True)


parser = argparse.ArgumentParser(description="Train a small transformer with FSDP2.")
parser.add_argument("--epochs", type=int, default=2, help="in all, those of earlier starts included")
parser.add_argument("--checkpoints", default="fsdp-checkpoints", help="a folder, or a URL such as s3://bucket/run")
options = parser.parse_args()

if __name__ == "__main__":
    torch.set_num_threads(1)
    spotrun.run(train, checkpoint_dir=options.checkpoints, save_every="10steps")
