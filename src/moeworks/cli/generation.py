"""The work of `moeworks generate`."""

import time
from typing import Any

from moeworks.cli.generate import GenerateOptions
from moeworks.cli.models import load_model
from moeworks.cli.output import print_json, write_text
from moeworks.cli.streams import note
from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.errors import check
from moeworks.generate.complete import Completion, complete, stream
from moeworks.generate.prefix import PrefixCache, worth_sharing
from moeworks.generate.speculative import Acceptance
from moeworks.models.decoder import Decoder


def run(options: GenerateOptions) -> int:
    """Load the model and write the texts."""
    model = load_model(options.model, options.device, options.dtype, options.domain)
    needed = model.config.router.pools and model.token_type is None
    check(not needed, "domain", None, "the model has pools of experts: say with --domain whose to use")
    tokenizer = tokenizer_of(options.model, model.config.vocab_size)
    for reason in tokenizer.ignored_advice:
        note(f"generation_config.json: ignored: {reason}")
    prompts = [_prompt_ids(tokenizer, options, text) for text in options.prompts]
    start = time.perf_counter()
    acceptance = Acceptance() if options.speculative else None
    prefix = PrefixCache(model) if not options.speculative and worth_sharing(prompts) else None
    if len(prompts) == 1:
        completions = [_continue_one(model, tokenizer, options, prompts[0], acceptance)]
    elif acceptance is not None:
        completions = [_speculate(model, tokenizer, options, ids, acceptance) for ids in prompts]
    else:
        config = options.generation(dict(tokenizer.sampling))
        seeds = range(options.seed, options.seed + len(prompts))
        completions = complete(model, tokenizer, prompts, config, seeds=seeds, prefix=prefix)
    seconds = time.perf_counter() - start
    if options.json:
        record = _record(options, completions, seconds, acceptance)
        record["prompt_tokens_saved"] = 0 if prefix is None else prefix.saved_tokens
        print_json(record)
    elif len(prompts) > 1:
        _print_all(options, completions)
    if acceptance is not None and not options.json:
        note(_acceptance_words(acceptance))
    return 0


def _prompt_ids(tokenizer: ModelTokenizer, options: GenerateOptions, text: str) -> list[int]:
    if not options.chat:
        return tokenizer.encode_prompt(text)
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return tokenizer.encode_chat([*system, {"role": "user", "content": text}])


def _continue_one(
    model: Decoder,
    tokenizer: ModelTokenizer,
    options: GenerateOptions,
    prompt_ids: list[int],
    acceptance: Acceptance | None,
) -> Completion:
    """Continue one prompt, and show it as it comes unless the options say otherwise."""
    found: list[Completion] = []
    config = options.generation(dict(tokenizer.sampling))
    pieces = stream(
        model, tokenizer, prompt_ids, config, seed=options.seed, acceptance=acceptance,
        draft_tokens=options.draft_tokens, done=found.append,
    )  # fmt: skip
    if options.json:
        list(pieces)
    else:
        shown = "" if options.chat else options.prompts[0]
        for piece in pieces if options.stream else ["".join(pieces)]:
            write_text(shown + piece)
            shown = ""
        write_text("\n")
    return found[0]


def _speculate(
    model: Decoder,
    tokenizer: ModelTokenizer,
    options: GenerateOptions,
    prompt_ids: list[int],
    acceptance: Acceptance,
) -> Completion:
    """Continue one of several prompts: rows of a batch would part ways at their first wrong draft."""
    found: list[Completion] = []
    config = options.generation(dict(tokenizer.sampling))
    pieces = stream(
        model, tokenizer, prompt_ids, config, acceptance=acceptance, draft_tokens=options.draft_tokens,
        done=found.append,
    )  # fmt: skip
    list(pieces)
    return found[0]


def _print_all(options: GenerateOptions, completions: list[Completion]) -> None:
    for number, (prompt, completion) in enumerate(zip(options.prompts, completions, strict=True), 1):
        write_text(f"--- {number} of {len(completions)}\n")
        write_text(("" if options.chat else prompt) + completion.text + "\n")


def _acceptance_words(acceptance: Acceptance) -> str:
    counts = f"{acceptance.accepted} of {acceptance.drafted}"
    words = f"drafts accepted: {counts} ({acceptance.rate:.1%})"
    places = list(zip(acceptance.accepted_at, acceptance.drafted_at, strict=True))
    if len(places) > 1:
        words += "; by place: " + ", ".join(f"{taken / drafted:.1%}" for taken, drafted in places)
    return words


def _record(
    options: GenerateOptions, completions: list[Completion], seconds: float, acceptance: Acceptance | None
) -> dict[str, Any]:
    """What --json prints."""
    record: dict[str, Any] = {
        "completions": [
            {
                "prompt": prompt,
                "text": completion.text,
                "reason": completion.reason,
                "prompt_tokens": completion.prompt_tokens,
                "tokens": len(completion.ids),
                "ids": list(completion.ids),
                "seed": options.seed + number,
            }
            for number, (prompt, completion) in enumerate(zip(options.prompts, completions, strict=True))
        ],
        "seconds": round(seconds, 3),
    }
    if acceptance is not None:
        record["drafted"], record["accepted"] = acceptance.drafted, acceptance.accepted
        record["acceptance_rate"] = acceptance.rate
        record["drafted_at"], record["accepted_at"] = acceptance.drafted_at, acceptance.accepted_at
    return record
