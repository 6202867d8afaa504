"""Text to text: prompts, tokens, stop strings, pieces as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from moeworks.config.generate import GenerationConfig
from moeworks.data.model_tokenizer import ModelTokenizer
from moeworks.errors import check
from moeworks.generate.loop import generate, generate_batch
from moeworks.generate.prefix import PrefixCache
from moeworks.generate.speculative import Acceptance, generate_ahead
from moeworks.generate.stream import StopStrings, TextStream
from moeworks.models.decoder import Decoder

Reason = Literal["length", "stop"]


@dataclass(frozen=True)
class Completion:
    """What follows one prompt."""

    text: str
    ids: tuple[int, ...]
    """The tokens that were drawn, those of a stop string included."""
    reason: Reason
    """Why it ended: max_new_tokens, or a stop token or string."""
    prompt_tokens: int


class _Writer:
    """The text of one completion, collected token by token."""

    def __init__(self, tokenizer: ModelTokenizer, stop: Sequence[str], prompt_ids: Sequence[int]) -> None:
        before = tokenizer.without_frame(prompt_ids)
        self._stream, self._stops = TextStream(tokenizer.decode, before), StopStrings(stop)
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._prompt_tokens = len(prompt_ids)
        self.ended = False

    def add(self, token: int | None) -> str:
        """The text that can be shown now; None is the model's own end."""
        if self.ended:
            return ""
        if token is None:
            return self.finish("stop")
        self._ids.append(token)
        piece = self._stops.add(self._stream.add(token))
        self._pieces.append(piece)
        if self._stops.stopped:
            self._end("stop")
        return piece

    def finish(self, reason: Reason) -> str:
        """What was held back."""
        if self.ended:
            return ""
        piece = self._stops.add(self._stream.finish()) + self._stops.finish()
        self._pieces.append(piece)
        self._end("stop" if self._stops.stopped else reason)
        return piece

    def _end(self, reason: Reason) -> None:
        self.ended, self._reason = True, reason

    def completion(self) -> Completion:
        """The completion, once the text has ended."""
        return Completion("".join(self._pieces), tuple(self._ids), self._reason, self._prompt_tokens)


def stream(
    model: Decoder,
    tokenizer: ModelTokenizer,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    *,
    seed: int = 0,
    prefix: PrefixCache | None = None,
    acceptance: Acceptance | None = None,
    draft_tokens: int | None = None,
    done: Callable[[Completion], None] | None = None,
) -> Iterator[str]:
    """Yield the text after a prompt piece by piece, whole characters each, up to a stop string.

    Args:
        prompt_ids: from encode_prompt or encode_chat.
        seed: seed of the random draws.
        prefix: remembered prompts.
        acceptance: to draft with the model's MTP layers and count the drafts; greedy decoding only.
        draft_tokens: how many drafts a step checks; None: as many as there are MTP layers.
        done: called with the completion at the end.

    Raises ConfigError for a prompt longer than the model's context.
    """
    check_prompt(model, prompt_ids)
    if acceptance is None:
        tokens = generate(
            model, prompt_ids, config.max_new_tokens, sampling=config.sampling, seed=seed,
            stop_ids=tokenizer.stop_ids, prefill_chunk=config.prefill_chunk, prefix=prefix,
        )  # fmt: skip
    else:
        plain = config.sampling.temperature == 0 and config.sampling.repetition_penalty == 1
        check(plain, "sampling", config.sampling, "drafts need temperature 0 and no repetition_penalty")
        tokens = generate_ahead(
            model, prompt_ids, config.max_new_tokens, draft_tokens=draft_tokens,
            stop_ids=tokenizer.stop_ids, acceptance=acceptance, prefill_chunk=config.prefill_chunk,
        )  # fmt: skip
    writer, count = _Writer(tokenizer, config.stop, prompt_ids), 0
    for token in tokens:
        count += 1
        yield writer.add(token)
        if writer.ended:
            break
    yield writer.finish("length" if count == config.max_new_tokens else "stop")
    if done is not None:
        done(writer.completion())


def complete(
    model: Decoder,
    tokenizer: ModelTokenizer,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    seeds: Sequence[int] | None = None,
    prefix: PrefixCache | None = None,
) -> list[Completion]:
    """Continue a batch of prompts; each text is the one that its prompt and seed give alone.

    With a `prefix` cache, starts that prompts share with each other or with earlier ones are read once.
    Raises ConfigError for a prompt longer than the model's context.
    """
    for prompt_ids in prompts:
        check_prompt(model, prompt_ids)
    if not prompts:
        return []
    if len(prompts) > 1 and model.config.capacity.eval_capacity_factor is not None:
        # In a batch, experts of limited capacity would make each text depend on the others.
        own_seeds = range(len(prompts)) if seeds is None else seeds
        return [
            complete(model, tokenizer, [ids], config, seeds=[seed], prefix=prefix)[0]
            for ids, seed in zip(prompts, own_seeds, strict=True)
        ]
    writers = [_Writer(tokenizer, config.stop, prompt_ids) for prompt_ids in prompts]
    ended = [False] * len(prompts)
    batch = generate_batch(
        model, prompts, config.max_new_tokens, sampling=config.sampling, seeds=seeds,
        stop_ids=tokenizer.stop_ids, prefill_chunk=config.prefill_chunk, prefix=prefix, ended=ended,
    )  # fmt: skip
    for tokens in batch:
        for row, (writer, token) in enumerate(zip(writers, tokens, strict=True)):
            writer.add(token)
            ended[row] = writer.ended
    for writer in writers:
        writer.finish("length")
    return [writer.completion() for writer in writers]


def check_prompt(model: Decoder, prompt_ids: Sequence[int]) -> None:
    """Raise ConfigError for a prompt that the model cannot see as a whole."""
    limit = model.config.max_seq_len
    check(
        len(prompt_ids) <= limit, "prompt", len(prompt_ids), f"tokens exceed the model's context of {limit}"
    )
