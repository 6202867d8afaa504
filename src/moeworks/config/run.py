"""A training run: data, model, balance, optimizer and loop."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from moeworks.config.alarms import AlarmConfig
from moeworks.config.balance import BalanceConfig
from moeworks.config.model import ModelConfig
from moeworks.errors import check


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """The way from files to documents, and from documents to tokens."""

    tokenizer: str = "bpe"
    """Tokenizer: 'bpe' trains one with model.vocab_size tokens on the corpus, 'bytes' is built in, anything
    else is the path of a tokenizer.json."""
    text_field: str = "text"
    """Field (jsonl) or column (parquet, Hugging Face) with the text."""
    domain_field: str | None = None
    """Field with the domain label. None takes the top folder, and for files directly in the given folder
    their name, or their suffix where there are many."""
    validation_fraction: float = 0.05
    """Share of documents held out, chosen by a hash of their content."""
    cache_dir: str | None = None
    """Folder of the tokenised shards; None is ~/.cache/moeworks."""

    def __post_init__(self) -> None:
        check(
            0 < self.validation_fraction < 1,
            "corpus.validation_fraction",
            self.validation_fraction,
            "must lie between 0 and 1",
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["muon", "adamw"] = "muon"
    """Optimizer: muon for the hidden matrices (those of every expert on their own) and adamw for the rest, or
    adamw for everything."""
    expert_optimizer: Literal["muon", "adamw"] = "muon"
    """Optimizer of the routed experts with name = muon, which orthogonalises all of them in every step, used
    or not."""
    muon_lr: float = 0.02
    """Peak learning rate of the matrices with muon; updates have an RMS of 0.2 * lr, as with AdamW."""
    lr: float = 3e-3
    """Peak learning rate of everything with adamw."""
    weight_decay: float = 0.01
    """Decoupled decay, on matrices only: not on norms, biases, embeddings or routers."""
    momentum: float = 0.95
    """Nesterov momentum of muon."""
    newton_schulz_steps: int = 5
    """Iterations of muon's orthogonalisation."""
    beta1: float = 0.9
    """First-moment decay of adamw."""
    beta2: float = 0.95
    """Second-moment decay of adamw."""
    eps: float = 1e-8
    """Epsilon of adamw."""
    schedule: Literal["cosine", "wsd", "constant"] = "wsd"
    """Learning rate after the warm-up: a cosine to final_fraction, constant and then a linear decay (wsd), or
    constant."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    decay_fraction: float = 0.5
    """Share of the steps, at the end, in which wsd decays."""
    final_fraction: float = 0.0
    """Learning rate at the end as a share of the peak."""
    clip_norm: float = 1.0
    """Global norm that gradients are scaled down to; 0 switches clipping off."""

    def __post_init__(self) -> None:
        for name in ("muon_lr", "lr", "eps"):
            check(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "must be positive")
        for name in ("momentum", "beta1", "beta2"):
            check(
                0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must lie in [0, 1)"
            )
        for name in ("decay_fraction", "final_fraction"):
            check(
                0 <= getattr(self, name) <= 1, f"optimizer.{name}", getattr(self, name), "must lie in [0, 1]"
            )
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            check(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must not be negative")
        steps = self.newton_schulz_steps
        check(steps >= 1, "optimizer.newton_schulz_steps", steps, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    steps: int = 300
    """Number of optimizer steps."""
    batch_size: int = 32
    """Sequences of an optimizer step, over all ranks and accumulation steps."""
    accumulation: int = 1
    """Micro-batches of an optimizer step; batch_size must be a multiple of accumulation * ranks."""
    seq_len: int = 256
    """Tokens of a sequence."""
    mtp_coef: float = 0.3
    """Weight of the loss of multi-token prediction layers, if there are any (DeepSeek-V3: 0.3, then 0.1)."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type that training computes in: bfloat16 is autocast over float32 weights, float64 is for tests."""
    activation_checkpointing: bool = False
    """Whether each layer is computed again in the backward pass instead of keeping its activations."""
    compile: bool = False
    """Whether the model runs through torch.compile."""
    seed: int = 0
    """Random seed of the weights, of the order of the data and of the noise of routers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto takes a GPU where there is one."""
    threads: int | None = None
    """Number of CPU threads; None leaves the choice to torch."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 100
    """Steps between validations; one more runs at the end."""
    eval_tokens: int | None = 65_536
    """Tokens of held-out text in a periodic validation, spread evenly; None is all of them. The validation at
    the end always reads all."""
    checkpoint_every: int = 100
    """Steps between checkpoints; one more is written at the end."""
    keep_last: int = 2
    """Latest checkpoints that are kept, beside the best one by validation loss."""
    sample_prompt: str = "def "
    """Prompt of the sample that the model writes at the end."""
    sample_tokens: int = 200
    """Tokens of that sample."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Loggers of the metrics, beside metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "accumulation", "seq_len",
            "log_every", "eval_every", "checkpoint_every", "keep_last",
        ):  # fmt: skip
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        check(
            self.batch_size % self.accumulation == 0,
            "train.batch_size",
            self.batch_size,
            f"must be a multiple of accumulation = {self.accumulation}",
        )
        limit = self.eval_tokens
        check(limit is None or limit >= 1, "train.eval_tokens", limit, "must be at least 1, or None for all")
        check(self.threads is None or self.threads >= 1, "train.threads", self.threads, "must be at least 1")
        coef = self.mtp_coef
        check(0 <= coef < math.inf, "train.mtp_coef", coef, "must be finite and not negative")
        check(self.sample_tokens >= 0, "train.sample_tokens", self.sample_tokens, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one training run depends on."""

    data: tuple[str, ...] = ("stdlib:",)
    """Texts: files, folders and globs; 'stdlib:' is Python's own library, 'hf:NAME' a Hugging Face
    dataset."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check(len(self.data) > 0, "data", self.data, "names no text to train on")
        check(
            self.train.seq_len <= self.model.max_seq_len,
            "train.seq_len",
            self.train.seq_len,
            f"exceeds model.max_seq_len = {self.model.max_seq_len}",
        )
        if self.model.moe_layers:
            self.model.router.check_trainable()
        self._check_balance()
        self._check_pools()
        self._check_attention()
        self._check_validation()

    def _check_balance(self) -> None:
        router, balance = self.model.router, self.balance
        if self.model.moe_layers and not router.choice.linear:
            for name in (f.name for f in fields(balance) if f.name.endswith("_coef")):
                check(
                    getattr(balance, name) == 0,
                    f"balance.{name}",
                    getattr(balance, name),
                    f"must be 0 with model.router.choice = {router.choice.kind!r}: no gradient goes through"
                    " such a router, so no balance loss can change it",
                )
        check(
            balance.bias_rule == "none" or router.selection_bias,
            "balance.bias_rule",
            balance.bias_rule,
            "needs model.router.selection_bias = True: there is no expert_bias to move",
        )
        check(
            balance.bias_rule != "quantile" or router.num_groups == 1,
            "balance.bias_rule",
            balance.bias_rule,
            f"needs model.router.num_groups = 1, not {router.num_groups}: prices know no groups",
        )
        check(
            balance.load_coef == 0 or router.noisy_top_k,
            "balance.load_coef",
            balance.load_coef,
            "needs model.router.noisy_top_k = True: the smooth load is a probability over that noise",
        )
        check(
            balance.load_coef == 0 or (router.choice.kind == "top_k" and router.noise_steps is None),
            "balance.load_coef",
            balance.load_coef,
            "needs model.router.choice = top_k, and noise_steps = None: noise that ends has no smooth load",
        )
        check(
            router.num_routes % balance.num_devices == 0,
            "balance.num_devices",
            balance.num_devices,
            f"must divide the number of experts, {router.num_routes}",
        )
        check(
            balance.communication_coef == 0 or router.num_groups in (1, balance.num_devices),
            "balance.num_devices",
            balance.num_devices,
            f"must equal router.num_groups = {router.num_groups}: its groups are the devices",
        )

    def _check_attention(self) -> None:
        """Raise ConfigError for balance settings that mixtures of attention cannot honour."""
        balance = self.balance
        for _, mixer in self.model.mixtures_of_attention:
            rule = "must be 0 with a mixture of attention, whose router has no noise to smooth its load"
            check(balance.load_coef == 0, "balance.load_coef", balance.load_coef, rule)
            check(
                mixer.num_experts % balance.num_devices == 0,
                "balance.num_devices",
                balance.num_devices,
                f"must divide the number of experts of the mixture of attention, {mixer.num_experts}",
            )

    def _check_pools(self) -> None:
        router, balance = self.model.router, self.balance
        if not router.pools:
            return
        for name in ("device", "communication", "load"):
            coef = getattr(balance, f"{name}_coef")
            rule = "must be 0 with model.router.pools, which decide how many tokens reach which experts"
            check(coef == 0, f"balance.{name}_coef", coef, rule)
        rule = "must be another with model.router.pools: prices know no pools"
        check(balance.bias_rule != "quantile", "balance.bias_rule", "quantile", rule)

    def _check_validation(self) -> None:
        """Raise ConfigError if experts depend on later tokens, which validation must not see."""
        router, capacity = self.model.router, self.model.capacity
        if not self.model.moe_layers:
            return
        ahead = router.choice.looks_ahead(training=False)
        check(ahead is None, "model.router.choice", router.choice.kind, f"cannot be validated: {ahead}")
        ahead = capacity.looks_ahead(training=False)
        check(
            ahead is None, "model.capacity.drop_policy", capacity.drop_policy, f"cannot be validated: {ahead}"
        )
