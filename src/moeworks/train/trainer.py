"""The state of a training run, one step at a time, and how it is saved and restored."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moeworks.checkpoint import Checkpoint
from moeworks.config import RunConfig, TrainConfig
from moeworks.config.codec import from_dict, to_dict
from moeworks.config.pools import domain_types
from moeworks.data.batches import Batch
from moeworks.data.loader import TrainLoader
from moeworks.data.shards import PreparedCorpus
from moeworks.errors import CheckpointError, ConfigError, TrainingError, check
from moeworks.layers.router import RouterModule
from moeworks.models.decoder import Decoder, DecoderOutput
from moeworks.models.diagnose import first_nonfinite_module
from moeworks.models.weights import load_weights
from moeworks.parallel.world import World
from moeworks.train.adamw import clip_scale, gradient_norm
from moeworks.train.optimizer import build_optimizers, first_nonfinite_gradient
from moeworks.train.schedule import lr_scale
from moeworks.train.step import (
    StepLosses,
    accumulate_gradients,
    autocast,
    drawn_seed,
    micro_batches,
    mixed_seed,
    routers_of,
    update_routers,
)

MOST_DOMAINS = 64
"""Most domains that alarms watch: each costs a count per layer and expert in every step."""


@dataclass
class Progress:
    """Progress of the run, which every checkpoint holds."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0
    best_step: int | None = None
    best_bits_per_byte: float | None = None
    alarms: dict[str, Any] = field(default_factory=dict)
    """AlarmState.to_json: which alarms are on."""
    interval: dict[str, Any] = field(default_factory=dict)
    """Interval.to_json: sums since the last line of metrics, of a run that a signal stopped in between."""


@dataclass(frozen=True)
class Step:
    """Result of one optimizer step."""

    losses: StepLosses
    grad_norm: Tensor
    learning_rate: float


class Trainer:
    """Model, optimizer and data position of a run.

    Random numbers of a step depend on (seed, step, rank) alone and the data of a step on its number, so a
    run that resumes at step n takes the very steps that an uninterrupted one takes.
    """

    def __init__(self, config: RunConfig, corpus: PreparedCorpus, world: World) -> None:
        """Raises ConfigError when the batch does not divide, or pools of experts are not for the corpus'
        domains, and DataError for a corpus that is too short."""
        check_division(config.train, world)
        self.config, self.corpus, self.world = config, corpus, world
        self._types = domain_types(config.model.router, corpus.domains, every=True)
        self.progress = Progress()
        torch.manual_seed(config.train.seed)
        self.model = build_model(config, world.device)
        _count_tokens_for(routers_of(self.model), corpus, config.model.vocab_size)
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.loader = TrainLoader(
            corpus.train, config.train.seq_len, config.train.batch_size, config.train.seed
        )
        self._forward: Callable[..., DecoderOutput] = self.model
        if config.train.compile:
            self._forward = torch.compile(self.model)

    def share_weights(self) -> None:
        """Give all ranks the main rank's weights: equal also where the random numbers of hosts differ."""
        self.world.share_([*self.model.parameters(), *self.model.buffers()])

    def step(self) -> Step:
        """Take one optimizer step. Raises TrainingError when a loss or gradient is not finite."""
        train = self.config.train
        self._seed_step()
        self.model.train()
        scale = lr_scale(self.progress.step, train.steps, self.config.optimizer)
        self.optimizers.set_lr_scale(scale)
        self.optimizers.zero_grad()
        batches = self._batches()
        routers = routers_of(self.model)
        losses = accumulate_gradients(
            self._forward, batches, self.config, self.world, routers, self.watched_domains
        )
        self.world.sum_gradients_(self.model.parameters())
        grad_norm = gradient_norm(self.model.parameters())
        if not bool(torch.isfinite(losses.loss) & torch.isfinite(grad_norm)):
            raise TrainingError(self._diagnosis(batches, losses))
        self.optimizers.step(clip_scale(grad_norm, self.config.optimizer.clip_norm))
        update_routers(routers, losses.statistics, self.config.balance)
        self.progress.step += 1
        self.progress.tokens += train.batch_size * train.seq_len
        return Step(losses, grad_norm, scale * self.config.optimizer.lr)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Contents of a checkpoint: tensors by file, and the JSON state."""
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizers.state_tensors()}
        state = {
            "config": to_dict(self.config),
            "progress": vars(self.progress),
            "corpus": self.corpus.fingerprint,
            "tokenizer": {
                "fingerprint": self.corpus.tokenizer.fingerprint,
                "vocab_size": self.corpus.tokenizer.vocab_size,
            },
            "processes": self.world.size,
        }
        return tensors, state

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`.

        Raises CheckpointError when it is of another corpus or model, or of another version of moeworks.
        """
        saved = checkpoint.state
        progress = _progress_of(checkpoint)
        if saved["corpus"] != self.corpus.fingerprint:
            raise CheckpointError(
                f"{checkpoint.path}: trained on another corpus (fingerprint {saved['corpus']}, the data now"
                f" has {self.corpus.fingerprint}): the files in {', '.join(self.config.data)} have changed"
            )
        load_weights(self.model, checkpoint.tensors["model"], str(checkpoint.path))
        self.optimizers.load_state_tensors(checkpoint.tensors["optimizer"])
        self.progress = progress

    @property
    def watched_domains(self) -> int:
        """Domains whose starvation is watched: none where there is one, or more than MOST_DOMAINS."""
        count = len(self.corpus.domains)
        wanted = self.config.alarms.enabled and self.config.alarms.domain_breadth > 0
        return count if wanted and 2 <= count <= MOST_DOMAINS else 0

    def _batches(self) -> list[Batch]:
        """This rank's micro-batches: the global batch cut by micro-batch first, then by rank."""
        train, world = self.config.train, self.world
        rows = train.batch_size // (train.accumulation * world.size)
        first = self.progress.step * train.batch_size + world.rank * rows
        starts = (first + micro * rows * world.size for micro in range(train.accumulation))
        return [self.loader.rows(start, rows).to(world.device).typed(self._types) for start in starts]

    def _seed_step(self) -> None:
        torch.manual_seed(mixed_seed(self.config.train.seed, self.progress.step, self.world.rank))

    def _diagnosis(self, batches: list[Batch], losses: StepLosses) -> str:
        """Message that says what was not finite in this step, and in which module."""
        where = f"step {self.progress.step + 1} (loss {float(losses.loss):.4f})"

        def forward() -> None:
            with autocast(self.config, self.world.device):
                for batch in micro_batches(batches, drawn_seed()):
                    self.model(
                        batch.tokens_BL,
                        document_ids_BL=batch.document_ids_BL,
                        token_types_BL=batch.token_types_BL,
                    )

        self._seed_step()
        module = first_nonfinite_module(self.model, forward)
        if module is not None:
            return f"{where}: the output of {module} is not finite"
        # Summing over ranks has spread the NaN, so this rank computes its own gradients again.
        self._seed_step()
        self.optimizers.zero_grad()
        alone = World(device=self.world.device)
        accumulate_gradients(self.model, batches, self.config, alone, routers_of(self.model))
        gradient = first_nonfinite_gradient(self.model)
        return f"{where}: {f'the gradient of {gradient}' if gradient else 'the gradient norm'} is not finite"


def _progress_of(checkpoint: Checkpoint) -> Progress:
    """The progress in a checkpoint; fields that an earlier version did not save take their defaults."""
    missing = [name for name in ("corpus", "progress") if name not in checkpoint.state]
    missing += [f"{name}.safetensors" for name in ("model", "optimizer") if name not in checkpoint.tensors]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: holds no {missing[0]}: not the checkpoint of a training run of this version"
        )
    try:
        return from_dict(Progress, checkpoint.state["progress"], "progress")
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint.path}: {error}; a newer version of moeworks may have written it: use that one"
        ) from error


def check_division(config: TrainConfig, world: World) -> None:
    """Raise ConfigError unless every rank and micro-batch of a step gets equally many sequences."""
    shards = config.accumulation * world.size
    check(
        config.batch_size % shards == 0,
        "train.batch_size",
        config.batch_size,
        f"must be a multiple of accumulation * processes = {shards}",
    )


def _count_tokens_for(routers: list[RouterModule], corpus: PreparedCorpus, vocab_size: int) -> None:
    """Give token counts of the training text to the routers that want them."""
    asking = [router for router in routers if router.wants_token_counts]
    if asking:
        counts_V = corpus.train.token_counts(vocab_size)
        for router in asking:
            router.set_token_counts_(counts_V)


def build_model(config: RunConfig, device: torch.device) -> Decoder:
    """The decoder of a run in its dtype, on its device."""
    model = Decoder(config.model)
    model.activation_checkpointing = config.train.activation_checkpointing
    return model.to(device=device, dtype=torch.float64 if config.train.precision == "float64" else None)
