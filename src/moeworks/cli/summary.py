"""The end of a run: as JSON for summary.json, and in words on the terminal."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeworks.config.count import count_parameters
from moeworks.config.pools import type_named
from moeworks.evaluate.bits_per_byte import Evaluation
from moeworks.generate.loop import generate
from moeworks.generate.stream import continuation_text
from moeworks.ops.load import load_figures
from moeworks.train.step import autocast
from moeworks.train.trainer import Trainer


def summarise(trainer: Trainer, final: Evaluation, name: str) -> dict[str, Any]:
    """The content of summary.json."""
    config, progress = trainer.config, trainer.progress
    counts = count_parameters(config.model)
    return {
        "name": name,
        "seconds": round(progress.seconds, 2),
        "steps": progress.step,
        "tokens": progress.tokens,
        "parameters": {"total": counts.total, "active": counts.active},
        "moe_layers": list(config.model.moe_layers),
        "num_experts": config.model.router.num_routes,
        "top_k": config.model.router.top_k,
        "eval": {
            "kind": "eval",
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            **final.record(),
        },
        "domain_tokens_per_expert": final.domain_experts() if config.model.moe_layers else {},
        "sample": _sample(trainer),
        "machine": {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "device": str(trainer.world.device),
            "processes": trainer.world.size,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the validation by domain, the state of the router, and the sample."""
    final = summary["eval"]
    table = _boxed("Validation", "domain", "bits per byte", "bytes")
    for domain, figures in sorted(final["domains"].items(), key=lambda item: -item[1]["bytes"]):
        table.add_row(domain, f"{figures['bits_per_byte']:.3f}", f"{figures['bytes']:,}")
    console.print(table)
    if summary["moe_layers"]:
        console.print(_router_table(summary))
    domain = summary["sample"].get("domain")
    console.print("\nSample:" if domain is None else f"\nSample (of the domain {domain!r}):", style="bold")
    console.print(summary["sample"]["prompt"] + summary["sample"]["text"])
    parameters = summary["parameters"]
    size = sum(figures["bytes"] for figures in final["domains"].values())
    console.print(
        Text.assemble(
            "\n",
            (f"{final['bits_per_byte']:.4f} bits per byte", "bold"),
            f" on validation text, all {size:,} bytes of it, after"
            f" {summary['steps']:,} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s;"
            f" {parameters['active']:,} of {parameters['total']:,} parameters active per token",
        )
    )


def _boxed(title: str, *header: str) -> Table:
    return Table(*header, title=title, title_justify="left")


def cpu_name() -> str:
    """Name of the processor where the system has it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _router_table(summary: dict[str, Any]) -> Table:
    """Load of each MoE layer over the whole validation text."""
    counts_MlE = torch.tensor(list(summary["domain_tokens_per_expert"].values()))
    figures = load_figures(counts_MlE.sum(dim=0))
    table = _boxed("Router", "layer", "MaxVio", "dead experts", "load entropy")
    rows = zip(
        summary["moe_layers"], figures.max_vio, figures.dead_experts, figures.load_entropy, strict=True
    )
    for layer, max_vio, dead, entropy in rows:
        table.add_row(str(layer), f"{max_vio:.2f}", f"{dead} of {summary['num_experts']}", f"{entropy:.3f}")
    return table


def _sample(trainer: Trainer) -> dict[str, Any]:
    """Text after train.sample_prompt, with the prompt; with pools of experts of the largest domain."""
    config, tokenizer, model = trainer.config.train, trainer.corpus.tokenizer, trainer.model
    record: dict[str, Any] = {"prompt": config.sample_prompt}
    if trainer.config.model.router.pools:
        store, domains = trainer.corpus.train, trainer.corpus.domains
        sizes = np.bincount(store.document_domains, weights=store.document_bytes, minlength=len(domains))
        record["domain"] = domains[int(sizes.argmax())]
        model.token_type = type_named(trainer.config.model.router, record["domain"])
    prompt = [tokenizer.end_of_text_id, *tokenizer.encode(config.sample_prompt).tolist()]
    model.eval()
    ids = generate(model, prompt, config.sample_tokens, seed=config.seed, stop_id=tokenizer.end_of_text_id)
    with autocast(trainer.config, trainer.world.device):
        record["text"] = continuation_text(tokenizer.decode, prompt[1:], ids)
    model.token_type = None
    return record
