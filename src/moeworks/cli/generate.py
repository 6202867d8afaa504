"""`moeworks generate PATH "prompt"`: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from moeworks.cli.options import Dtype, option_name, parse_options, refuse_idle
from moeworks.config.generate import GenerationConfig, SamplingConfig
from moeworks.errors import ConfigError, check


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn; None is the value of the model's generation_config.json, or the default."""

    temperature: float | None = None
    """Divisor of the logits; 0 takes the most probable token. The default is 0.8."""
    top_p: float | None = None
    """Draw from the fewest most probable tokens whose probabilities sum to at least this."""
    top_k: int | None = None
    """Draw from the k most probable tokens."""
    min_p: float | None = None
    """Draw from tokens at least this many times as probable as the most probable one."""
    repetition_penalty: float | None = None
    """Factor against tokens that the prompt or the text contains already; 1 does nothing."""

    def values(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class GenerateOptions:
    """Continue texts with a model; a single text streams to standard output."""

    model: tyro.conf.Positional[Path]
    """A run's folder or one of its checkpoints, a published checkpoint's folder, or a .gguf file."""
    prompts: tyro.conf.Positional[tuple[str, ...]]
    """Texts to continue; several are continued as one batch, and a start that all of them share is read
    once."""
    max_new_tokens: int = 100
    """Most tokens to write."""
    seed: int = 0
    """Random seed of the first text; the second text has the next seed, and so on."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """String before which the text ends (may be given several times)."""
    stream: bool = True
    """Show the text while it is written, not at its end."""
    json: bool = False
    """Print one JSON object and nothing else."""
    domain: str | None = None
    """For models with pools of experts: the domain whose experts write."""
    chat: bool = False
    """Put the prompt to the model as a message, by its chat template, and show the answer alone."""
    system: str | None = None
    """With --chat: the system message."""
    speculative: bool = False
    """Draft with the model's multi-token prediction layers: the same greedy text, sooner. Several texts are
    written one after the other."""
    draft_tokens: int | None = None
    """With --speculative: drafts that are checked at a time; None is as many as there are such layers."""
    prefill_chunk: int = 2048
    """Tokens of a prompt that are read at a time."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    dtype: Dtype | None = None
    """Type of the weights; None keeps the checkpoint's."""
    sampling: Annotated[SamplingOptions, tyro.conf.arg(name="")] = field(default_factory=SamplingOptions)

    def generation(self, advice: dict[str, Any]) -> GenerationConfig:
        """The settings that these options and, where they say nothing, `advice` ask for.

        Raises ConfigError for an option that chooses among tokens when the text is greedy.
        """
        chosen = self.sampling.values()
        if self.speculative:
            advice = {"temperature": 0.0}
        elif chosen.get("temperature") and advice.get("temperature") == 0:
            advice = {name: value for name, value in advice.items() if name != "temperature"}
        sampling = SamplingConfig(**{**advice, **chosen})
        if sampling.temperature == 0:
            self._refuse_choosing(chosen)
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            sampling=sampling,
            prefill_chunk=self.prefill_chunk,
        )

    def _refuse_choosing(self, chosen: dict[str, Any]) -> None:
        if self.speculative:
            why = "with --speculative, which is greedy"
        elif "temperature" in chosen:
            why = "with --temperature 0, which is greedy"
        else:
            why = "here: the model's generation_config.json asks for greedy text; give a --temperature"
        refuse_idle(self, ("seed",), why)
        for name in ("top_p", "top_k", "min_p"):
            if name in chosen:
                raise ConfigError(f"{option_name(name)} has no effect {why}")


def parse(argv: list[str]) -> GenerateOptions:
    """The options that `argv` spells. Raises ConfigError for values that break a rule or do nothing."""
    options = parse_options(GenerateOptions, argv, "moeworks generate")
    check(len(options.prompts) > 0, "prompts", options.prompts, "there is no text to continue")
    if options.speculative:
        chosen = options.sampling.values()
        temperature = chosen.get("temperature", 0)
        check(temperature == 0, "temperature", temperature, "--speculative is greedy: 0")
        penalty = chosen.get("repetition_penalty", 1)
        check(penalty == 1, "repetition_penalty", penalty, "--speculative takes none")
    else:
        refuse_idle(options, ("draft_tokens",), "without --speculative")
    options.generation({})  # for its errors
    if not options.chat:
        refuse_idle(options, ("system",), "without --chat")
    if options.json:
        refuse_idle(options, ("stream",), "with --json")
    if len(options.prompts) > 1:
        refuse_idle(options, ("stream",), "with several prompts, whose texts are shown at their end")
    drafts = options.draft_tokens
    check(drafts is None or drafts >= 1, "draft_tokens", drafts, "must be at least 1")
    return options
