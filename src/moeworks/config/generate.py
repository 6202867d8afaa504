"""Settings of text generation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moeworks.errors import ConfigError, check

SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of the draw of the next token.

    In this order: repetition_penalty, temperature, top_k, top_p, min_p, each of what those before it left.
    """

    temperature: float = 0.8
    """Divisor of the logits; 0 takes the most probable token."""
    top_p: float = 1.0
    """Least sum of probabilities of the most probable tokens that are drawn from (Holtzman 2020)."""
    top_k: int | None = None
    """Number of most probable tokens that are drawn from."""
    min_p: float = 0.0
    """Least probability of a token that is drawn from, as a share of that of the most probable one (Nguyen
    2024)."""
    repetition_penalty: float = 1.0
    """Divisor of positive logits of tokens that prompt or text contain already, and factor of negative ones
    (Keskar 2019)."""

    def __post_init__(self) -> None:
        check(0 <= self.temperature < math.inf, "temperature", self.temperature, "must not be negative")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")
        check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "must be at least 1")
        check(0 <= self.min_p <= 1, "min_p", self.min_p, "must lie in [0, 1]")
        penalty = self.repetition_penalty
        check(0 < penalty < math.inf, "repetition_penalty", penalty, "must be positive")


@dataclass(frozen=True)
class SamplingAdvice:
    """Sampling settings that a model's makers recommend, and those that cannot be followed."""

    fields: Mapping[str, Any]
    """Recommended values by field of SamplingConfig."""
    ignored: tuple[str, ...] = ()
    """Recommendations that cannot be followed, each with the reason."""


def sampling_advice(record: Mapping[str, Any]) -> SamplingAdvice:
    """The sampling fields of a generation_config.json, which mean what transformers does with them.

    A top_k of 0, or below it as vLLM writes it, is no limit; top_p 0 and temperature 0 take the most probable
    token, and so does `do_sample` false, which leaves the repetition penalty in force. Values that make no
    sense are ignored, because advice must not keep a model from being used.
    """
    fields: dict[str, Any] = {}
    ignored: list[str] = []
    for name in SAMPLING_FIELDS:
        value = record.get(name)
        if value is None or (name == "top_k" and value in (0, -1)):
            continue
        if name == "top_p" and value == 0:
            name, value = "temperature", 0.0
        if name == "top_k" and isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            check(number, name, value, "must be a number")
            check(name != "top_k" or isinstance(value, int), name, value, "must be a whole number")
            SamplingConfig(**{name: value})
        except ConfigError as error:
            ignored.append(str(error))
        else:
            fields[name] = value
    if record.get("do_sample") is False:
        penalty = "repetition_penalty"
        fields = {"temperature": 0.0} | ({penalty: fields[penalty]} if penalty in fields else {})
    return SamplingAdvice(fields, tuple(ignored))


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of the continuation of a text."""

    max_new_tokens: int = 100
    """Largest number of tokens to write."""
    stop: tuple[str, ...] = ()
    """Strings before the first of which the text ends."""
    sampling: SamplingConfig = SamplingConfig()
    prefill_chunk: int = 2048
    """Most tokens of a prompt that are read at a time, which bounds the memory that reading takes."""

    def __post_init__(self) -> None:
        check(self.max_new_tokens >= 0, "max_new_tokens", self.max_new_tokens, "must not be negative")
        check(all(self.stop), "stop", self.stop, "must hold no empty string: it would end every text")
        check(self.prefill_chunk >= 1, "prefill_chunk", self.prefill_chunk, "must be at least 1")
