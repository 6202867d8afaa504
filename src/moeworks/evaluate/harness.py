"""The tasks of lm-eval (EleutherAI's evaluation harness) on a model: an adapter to its interface."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from moeworks.config.generate import GenerationConfig, SamplingConfig, sampling_advice
from moeworks.data.model_tokenizer import ModelTokenizer
from moeworks.errors import ConfigError, DataError, MoeworksError, require
from moeworks.evaluate.scoring import Row, Score, score_rows
from moeworks.generate.complete import complete
from moeworks.models.decoder import Decoder

MAX_GENERATED = 256
_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_BATCH = 16  # texts that are generated together


def harness_model(model: Decoder, tokenizer: ModelTokenizer, *, batch_tokens: int = 8192) -> Any:
    """An `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    Raises MissingDependencyError without lm-eval.
    """
    base = require("lm_eval.api.model", extra="lm-eval").LM
    return type("MoeworksLM", (_Adapter, base), {})(model, tokenizer, batch_tokens)


def evaluate_tasks(
    model: Decoder,
    tokenizer: ModelTokenizer,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_tokens: int = 8192,
) -> dict[str, dict[str, float]]:
    """The metrics of each task by name ("acc", "acc_norm_stderr"), as lm-eval computes them.

    Raises MissingDependencyError without lm-eval, ConfigError for an unknown task, DataError for one whose
    data cannot be had.
    """
    lm_eval = require("lm_eval", extra="lm-eval")
    known = _known_tasks()
    unknown = [task for task in tasks if not known.match_tasks([task])]
    if unknown:
        raise ConfigError(f"tasks = {unknown[0]!r}: lm-eval has no such task; `lm-eval ls tasks` names them")
    adapter = harness_model(model, tokenizer, batch_tokens=batch_tokens)
    try:
        found = lm_eval.simple_evaluate(
            model=adapter, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit,
            log_samples=False, task_manager=known,
        )  # fmt: skip
    except MoeworksError:
        raise
    except Exception as error:  # of many libraries below it
        raise DataError(f"lm-eval: {type(error).__name__}: {error}") from error
    if adapter.shortened:
        warnings.warn(
            f"lm-eval: {adapter.shortened} requests exceed the model's context of {model.config.max_seq_len}"
            " tokens and lost their beginning; fewer examples (num_fewshot) make them shorter",
            stacklevel=2,
        )
    return {task: _numbers(metrics) for task, metrics in found["results"].items()}


@cache
def _known_tasks() -> Any:
    """lm-eval's index of its tasks, which takes seconds to make."""
    return require("lm_eval.tasks", extra="lm-eval").TaskManager()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics without the names of filters where there is none, and without those that have no value."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    kept = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return {name.removesuffix(",none"): float(value) for name, value in kept.items()}


class _Adapter:
    """The methods of lm-eval's LM."""

    def __init__(self, model: Decoder, tokenizer: ModelTokenizer, batch_tokens: int) -> None:
        super().__init__()
        self._model, self._tokenizer, self._batch_tokens = model, tokenizer, batch_tokens
        self.shortened = 0
        """Requests whose context exceeded the model's and lost its beginning."""

    @property
    def _limit(self) -> int:
        return self._model.config.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        """What stored requests are told apart by."""
        return f"moeworks-{self._tokenizer.size}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Source of the chat template, "" for none."""
        return self._tokenizer.chat_template or ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text."""
        return self._tokenizer.chat_text(chat_history, answer=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding gives it) of each continuation after its context."""
        rows = [self._pair(*request.args) for request in requests]
        return [(-score.nats, score.greedy) for score in self._scores(rows)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text; of a long one in windows, each as full as can be."""
        results = []
        for request in requests:
            ids = self._encode(request.args[0])
            rows = list(rolling_rows(ids, self._start(), self._limit))
            results.append(-sum(score.nats for score in self._scores(rows)))
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to one of its `until` texts."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for options, indexes in groups.items():
            config = _generation(json.loads(options))
            # A long answer forgets the start of its context on its way; it keeps at least half of the window.
            keep = max(self._limit - config.max_new_tokens, self._limit // 2, 1)
            for start in range(0, len(indexes), _BATCH):
                chosen = indexes[start : start + _BATCH]
                prompts = [self._cut(self._context(requests[index].args[0]), keep) for index in chosen]
                found = complete(self._model, self._tokenizer, prompts, config)
                for index, completion in zip(chosen, found, strict=True):
                    texts[index] = completion.text
        return texts

    def _scores(self, rows: list[Row]) -> list[Score]:
        scores = dict(score_rows(self._model, rows, self._batch_tokens))
        return [scores[index] for index in range(len(rows))]

    def _pair(self, context: str, continuation: str) -> Row:
        """Both as one row; spaces at the end of the context belong to the first word after it."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            before, after = self._start(), self._encode(continuation)
        else:
            before, both = self._context(bare), self._context(bare + continuation)
            after = both[len(before) :]
        if not after:
            raise DataError(f"lm-eval: the continuation {continuation!r} adds no token to its context")
        kept = self._cut([*before, *after], self._limit + 1)
        return Row(kept, min(len(after), len(kept) - 1))

    def _cut(self, ids: list[int], most: int) -> list[int]:
        """The last `most` of `ids`; texts that lose their beginning are counted."""
        self.shortened += len(ids) > most
        return ids[-most:]

    def _context(self, text: str) -> list[int]:
        """Tokens of a context: with start tokens, once."""
        ids, start = self._encode(text), list(self._tokenizer.start_ids)
        ids = ids if start and ids[: len(start)] == start else [*start, *ids]
        return ids or self._start()

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode_marked(text)

    def _start(self) -> list[int]:
        start = list(self._tokenizer.prefix_ids)
        if not start:
            raise DataError("lm-eval: the tokenizer has neither a first nor a last token of texts")
        return start


def rolling_rows(ids: Sequence[int], start: Sequence[int], limit: int) -> Iterator[Row]:
    """Rows that predict each of `ids` once, after `start`; the model reads at most `limit` tokens a row."""
    everything, done = [*start, *ids], len(start)
    while done < len(everything):
        end = min(done + limit if done > len(start) else limit + 1, len(everything))
        yield Row(everything[max(end - limit - 1, 0) : end], end - done)
        done = end


def _generation(options: Mapping[str, Any]) -> GenerationConfig:
    """lm-eval's gen_kwargs as a config; greedy unless do_sample says otherwise."""
    until = options.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    asked = next((options[name] for name in _MAX_TOKENS if options.get(name) is not None), MAX_GENERATED)
    sampled = options.get("do_sample", (options.get("temperature") or 0) > 0)
    advice = sampling_advice({**options, "do_sample": bool(sampled)})
    if advice.ignored:
        raise ConfigError(f"lm-eval: {advice.ignored[0]}")
    return GenerationConfig(max_new_tokens=int(asked), stop=until, sampling=SamplingConfig(**advice.fields))
