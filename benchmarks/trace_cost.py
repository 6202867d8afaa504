"""What traces cost: recording beside the forward pass, bytes of an id, and `inspect` of 10^7 assignments.

python benchmarks/trace_cost.py [PRESET] [--passes 200] [--threads N]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moeworks.config.presets import DEFAULT_PRESET, preset
from moeworks.models.decoder import Decoder
from moeworks.simulate.synthetic import synthetic_trace
from moeworks.trace import (
    LayerColumns,
    RoutingTrace,
    TraceBlock,
    TraceHeader,
    TraceWriter,
    token_columns,
    write_trace,
)
from moeworks.trace.record import model_header, record
from moeworks.trace.sizes import bytes_per_assignment, packed_bytes, uniform_entropy_bytes
from suite.results import write_result

FIELDS = {
    "ids": (),
    "ids, weights": ("weights",),
    "ids, weights, entropy, margin": ("weights", "entropy", "margin"),
    "ids, weights, logits": ("weights", "logits"),
}


@torch.no_grad()
def recording_share(name: str, passes: int, folder: Path) -> dict[str, dict[str, float]]:
    """Time of recording and writing over that of the forward passes, for each choice of columns.

    `wall` is what the loop waits for: recording, handing over, and the end of the file. `cpu` adds what the
    writer's thread computes beside the loop, and is the cost where no core is free for it.
    """
    config = preset(name)
    model = Decoder(config.model).eval()
    size = (config.train.batch_size, config.train.seq_len)
    model(torch.randint(config.model.vocab_size, size))
    shares = {}
    for columns, fields in FIELDS.items():
        header = model_header(config.model, fields)
        forward = Stopwatch()
        whole = Stopwatch()
        with whole, TraceWriter(folder / "cost.parquet", header) as writer:
            for number in range(passes):
                ids = torch.randint(config.model.vocab_size, size)
                with forward:
                    output = model(ids)
                sequence = np.repeat(np.arange(size[0]) + number * size[0], size[1])
                tokens = token_columns(ids.numel(), token_id=ids.flatten().numpy(), sequence=sequence)
                writer.append(record(output.routings, tokens, header))
        shares[columns] = {
            "wall": round(whole.wall / forward.wall - 1, 4),
            # Of this thread's work and of the writer's: torch's other threads work in the forward pass alone.
            "cpu": round((whole.own - forward.own + writer.seconds) / forward.wall, 4),
        }
    return shares


class Stopwatch:
    """Adds up the time inside `with`: of the clock, and of this thread's work."""

    def __init__(self) -> None:
        self.wall = self.own = 0.0

    def __enter__(self) -> "Stopwatch":
        self._wall, self._own = time.perf_counter(), time.thread_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._wall
        self.own += time.thread_time() - self._own


def id_bytes(folder: Path) -> dict[str, dict[str, float]]:
    """Bytes on disk of the id of a random choice of 8 of E experts, and the bounds."""
    sizes = {}
    for experts in (8, 64, 256, 512):
        trace = synthetic_trace(tokens=20_000, layers=2, num_experts=experts, top_k=8)
        write_trace(folder / "ids.parquet", trace.header, *trace.blocks())
        sizes[str(experts)] = {
            "on_disk": round(bytes_per_assignment(folder / "ids.parquet", "ids"), 3),
            "packed": packed_bytes(trace.header),
            "entropy": round(uniform_entropy_bytes(trace.header), 3),
        }
    return sizes


def large_trace(path: Path) -> None:
    """10^7 assignments with all default columns, token ids like words, and five domains."""
    layers, experts, k = 26, 64, 8
    count = -(-10_000_000 // (layers * k))
    base = synthetic_trace(
        tokens=count, layers=layers, num_experts=experts, top_k=k, skew=0.3, stickiness=0.2
    )
    rng = np.random.default_rng(0)
    header = TraceHeader(**vars(base.header) | {"fields": ("weights", "entropy", "margin")})
    columns = tuple(
        LayerColumns(
            base.ids(layer),
            weights=rng.random((count, k)).astype(np.float16),
            entropy=rng.random(count).astype(np.float16),
            margin=rng.random(count).astype(np.float16),
        )
        for layer in header.layers
    )
    document = base.tokens.sequence // 2
    tokens = token_columns(
        count,
        token_id=rng.zipf(1.3, count) % 30_000,
        sequence=base.tokens.sequence,
        document=document,
        domain=document % 5,
        domains=tuple("abcde"),
    )
    write_trace(path, header, TraceBlock(tokens, columns))


def inspection(folder: Path) -> dict[str, Any]:
    """Time and peak memory of `moeworks inspect`, in a process of its own, from start to the written page."""
    trace, page = folder / "large.parquet", folder / "large.html"
    large_trace(trace)
    command = [sys.executable, "-m", "moeworks", "inspect", str(trace), "-o", str(page)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    scale = 1 if sys.platform == "darwin" else 1024
    opened = RoutingTrace.open(trace)
    return {
        "assignments": opened.num_tokens * opened.header.top_k * opened.num_layers,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss * scale / 1e9, 2),
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("preset", nargs="?", default=DEFAULT_PRESET)
    parser.add_argument("--passes", type=int, default=200)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "preset": options.preset,
            "inspection": inspection(Path(folder)),
            "recording_share": recording_share(options.preset, options.passes, Path(folder)),
            "id_bytes_top_8": id_bytes(Path(folder)),
        }
    print(figures)
    write_result("trace_cost", figures)


if __name__ == "__main__":
    main()
