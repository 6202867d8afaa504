"""What two processes and one are compared on; as a script, one of the two processes that torchrun starts.

    torchrun --nproc-per-node 2 tests/world_scenarios.py TEXTS OUT

writes OUT/<scenario>-<rank>.safetensors and OUT/facts-<rank>.json.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_run import all_state, biases_of, tiny_config, tiny_corpus

from moeworks.config import (
    BanditChoice,
    CapacityConfig,
    IndexerConfig,
    LayerPatternConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
    RunConfig,
)
from moeworks.data.shards import PreparedCorpus
from moeworks.data.validation import ValidationSet
from moeworks.evaluate.bits_per_byte import evaluate
from moeworks.models.decoder import moe_modules
from moeworks.parallel.world import World, join_world
from moeworks.train.loop import Callbacks, train
from moeworks.train.run_dir import RunDir
from moeworks.train.trainer import Trainer

STEPS = 4

EVERY_LOSS = dict(
    global_batch_coef=0.05, sequence_coef=0.04, device_coef=0.03, communication_coef=0.03,
    entropy_coef=0.02, importance_coef=0.02, z_coef=0.01, num_devices=2, bias_recentre=True,
)  # fmt: skip

SCENARIOS: dict[str, dict[str, dict[str, Any]]] = {
    "invariant": {},
    "accumulated": dict(train=dict(accumulation=2, activation_checkpointing=True)),
    "switch": dict(balance=dict(switch_coef=0.05)),
    "every loss": dict(balance=EVERY_LOSS),
    "every loss accumulated": dict(balance=EVERY_LOSS, train=dict(accumulation=2)),
    "capacity": dict(model=dict(capacity=CapacityConfig(capacity_factor=0.6))),
    "dense": dict(
        model=dict(pattern=LayerPatternConfig(explicit=())),
        router=dict(selection_bias=False),
        balance=dict(bias_rule="none"),
    ),
    "bandit": dict(
        router=dict(selection_bias=False, choice=BanditChoice(buckets=40)),
        balance=dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0, bias_rule="none"),
    ),
    "sparse attention": dict(
        model=dict(
            attention=MLAConfig(q_lora_rank=16, indexer=IndexerConfig(num_heads=2, head_dim=16, top_k=4))
        ),
        optimizer=dict(weight_decay=0.1),
    ),
    "mixture of attention": dict(
        model=dict(attention=MixtureOfAttentionConfig(num_kv_heads=2, head_dim=4, num_experts=4)),
    ),
    "starved": dict(router=dict(num_experts=8), train=dict(batch_size=2, seq_len=2)),
}
"""Options of tiny_config. "sparse attention": its indexer has no gradient, and does not
decay. "starved": two tokens a rank and eight experts, one of which is never chosen."""

SUMMED_PER_MICRO_BATCH = ("switch", "capacity")
"""Where the micro-batch enters the result: one process has to cut the batch as two do."""


def scenario_config(name: str, texts: Path, accumulation: int = 1) -> RunConfig:
    """`accumulation` multiplies the scenario's own."""
    groups = {group: dict(fields) for group, fields in SCENARIOS[name].items()}
    train = groups.setdefault("train", {})
    train["accumulation"] = train.get("accumulation", 1) * accumulation
    return tiny_config(texts, **groups)


def outcome(name: str, config: RunConfig, corpus: PreparedCorpus, world: World) -> dict[str, torch.Tensor]:
    """Everything that a few steps yield and leave behind."""
    trainer = Trainer(config, corpus, world)
    if name == "starved":
        for moe in moe_modules(trainer.model):
            moe.router.expert_bias[0] = -1e6
    found = {}
    for number in range(STEPS):
        step = trainer.step()
        found[f"{number}/loss"] = step.losses.loss
        found[f"{number}/grad_norm"] = step.grad_norm
        found[f"{number}/counts"] = step.losses.counts_lE
        found[f"{number}/dropped"] = step.losses.dropped_l
        found |= {f"{number}/balance/{key}": value for key, value in step.losses.balance.items()}
        if config.model.moe_layers and config.model.router.selection_bias:
            found[f"{number}/bias"] = biases_of(trainer.model)
    found["gradient of experts"] = torch.stack(
        [moe.experts.down_proj.grad for moe in moe_modules(trainer.model)] or [torch.zeros(1)]
    )
    return {key: value.clone() for key, value in (found | all_state(trainer)).items()}


def evaluation(config: RunConfig, corpus: PreparedCorpus, world: World) -> dict[str, Any]:
    """Validation in batches of 3 rows, of which the ranks get unequal numbers."""
    model = Trainer(config, corpus, world).model
    found = evaluate(model, ValidationSet(corpus.validation, 16, 3), corpus.domains, world)
    return {"record": found.record(), "domain_experts": found.domain_experts()}


def stopped(config: RunConfig, corpus: PreparedCorpus, world: World, root: Path) -> dict[str, Any]:
    """A run in which rank 1 alone is told to stop, in its third step."""

    def stop(trainer: Trainer, step: object) -> None:
        if world.rank == 1 and trainer.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    callbacks = Callbacks(evaluate=lambda *_: {"bits_per_byte": 1.0}, on_step=stop, on_record=lambda _: None)
    trainer = Trainer(config, corpus, world)
    finished = train(trainer, RunDir(root), None, callbacks)
    return {"finished": finished, "step": trainer.progress.step}


def main(texts: Path, out: Path) -> None:
    torch.set_num_threads(1)
    plain = tiny_config(texts)
    with join_world("cpu") as world:
        corpus = tiny_corpus(plain)
        for name in SCENARIOS:
            found = outcome(name, scenario_config(name, texts), corpus, world)
            save_file(found, out / f"{name}-{world.rank}.safetensors")
        summed = world.sum_(torch.tensor([world.rank + 1.0, 10.0]))
        facts = {
            "rank": world.rank,
            "size": world.size,
            "is_main": world.is_main,
            "sum": summed.tolist(),
            "any": [world.any(False), world.any(world.rank == 1), world.any(True)],
            "evaluation": evaluation(plain, corpus, world),
            "stopped": stopped(plain, corpus, world, out / "run"),
        }
        world.wait()
    (out / f"facts-{facts['rank']}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
