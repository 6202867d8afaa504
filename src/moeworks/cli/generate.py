"""`moeworks generate PATH "prompt"`: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from moeworks.config.generate import GenerationConfig, SamplingConfig
from moeworks.errors import ConfigError, check


@dataclass(frozen=True)
class SamplingOptions:
    """The fields of SamplingConfig; None is what the model's generation_config.json says, or the default."""

    temperature: float | None = None
    """Logits are divided by it; 0 takes the most probable token. By default 0.8."""
    top_p: float | None = None
    """Draw from the fewest most probable tokens whose probabilities sum to at least this."""
    top_k: int | None = None
    """Draw from the k most probable tokens."""
    min_p: float | None = None
    """Draw from tokens at least this many times as probable as the most probable one."""
    repetition_penalty: float | None = None
    """Hold back tokens that prompt or text contain; 1 does nothing."""

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class GenerateOptions:
    """Continue texts with a model; a single text streams to standard output."""

    model: tyro.conf.Positional[Path]
    """A run's folder or one of its checkpoints, a published checkpoint's folder, or a .gguf file."""
    prompts: tyro.conf.Positional[tuple[str, ...]]
    """The text to continue; several are continued as one batch, and what all begin with is read once."""
    max_new_tokens: int = 100
    """Tokens to write at most."""
    seed: int = 0
    """Seed of the draws; the second text has the next one, and so on."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The text ends before the first of these (may be given several times)."""
    stream: bool = True
    """Show the text as it comes, not at its end."""
    json: bool = False
    """Print one JSON object instead."""
    domain: str | None = None
    """For models with pools of experts: write with those of this domain."""
    chat: bool = False
    """The prompt is a message, put to the model by its chat template; only the answer is shown."""
    system: str | None = None
    """With --chat: the system message."""
    speculative: bool = False
    """Draft with the model's multi-token prediction layers: the same greedy text, sooner. Several texts come
    one after the other."""
    draft_tokens: int | None = None
    """With --speculative: drafts that are checked at a time; by default as many as there are such layers."""
    prefill_chunk: int = 2048
    """Prompts are read in pieces of so many tokens."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; None keeps the checkpoint's."""
    sampling: Annotated[SamplingOptions, tyro.conf.arg(name="")] = field(default_factory=SamplingOptions)

    def generation(self, advice: dict[str, Any]) -> GenerationConfig:
        """What these options and, where they say nothing, `advice` ask for."""
        given = self.sampling.given()
        if self.speculative:
            advice = {"temperature": 0.0}
        _check_advice({name: value for name, value in advice.items() if name not in given})
        if given.get("temperature") and advice.get("temperature") == 0:
            advice = {}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            sampling=SamplingConfig(**{**advice, **given}),
            prefill_chunk=self.prefill_chunk,
        )


def _check_advice(advice: dict[str, Any]) -> None:
    """Raise ConfigError for advice in a model's generation_config.json that cannot be followed."""
    for name, value in advice.items():
        try:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            check(number, name, value, "must be a number")
            SamplingConfig(**{name: value})
        except ConfigError as error:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"generation_config.json: {error}; --{flag} takes another value in its place"
            ) from error


def parse(argv: list[str]) -> GenerateOptions:
    """The options that `argv` spells."""
    options = tyro.cli(GenerateOptions, prog="moeworks generate", args=argv)
    check(len(options.prompts) > 0, "prompts", options.prompts, "there is no text to continue")
    sampling = options.generation({}).sampling
    check(options.chat or options.system is None, "system", options.system, "goes with --chat")
    if options.speculative:
        check(sampling.temperature == 0, "temperature", sampling.temperature, "--speculative is greedy: 0")
        penalty = sampling.repetition_penalty
        check(penalty == 1, "repetition_penalty", penalty, "--speculative takes none")
    drafts = options.draft_tokens
    check(options.speculative or drafts is None, "draft_tokens", drafts, "goes with --speculative")
    check(drafts is None or drafts >= 1, "draft_tokens", drafts, "must be at least 1")
    return options
