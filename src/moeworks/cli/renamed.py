"""Spellings of the release before, which still work and say what they are called now."""

from collections.abc import Mapping

from moeworks.cli.streams import note

_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "trace": {"--seq-len": "--context"},
    "plan": {"--batch": "--batch-size"},
}
"""By verb: from an option's former name to its present one."""

_DROPPED: Mapping[str, Mapping[str, str]] = {
    "generate": {"--stream": "texts are shown while they are written anyway; --no-stream waits for the end"},
}
"""By verb: options that say what happens anyway, and why they are not needed."""

_LISTS: Mapping[tuple[str, str], str] = {
    ("config", "--list"): "presets",
    ("info", "--list"): "models",
    ("doctor", "--list"): "checks",
    ("plan", "--list-gpus"): "gpus",
    ("lab", "list"): "labs",
}
"""Verbs and words that are `moeworks list ...` now."""


def current_spelling(argv: list[str]) -> list[str]:
    """`argv`, which begins with a verb, in the spelling of today, with a note for each change."""
    verb, *words = argv
    for (lister, word), what in _LISTS.items():
        old = [other for other in words if other.replace("_", "-") == word]
        if verb == lister and old and (word.startswith("-") or words[0] == word):
            note(f"`moeworks {verb} {word}` is now `moeworks list {what}`")
            return ["list", what, *(other for other in words if other not in old)]
    if verb == "simulate" and words[:1] == ["comm"]:
        note("`moeworks simulate comm` is now `moeworks simulate communication`")
        words[0] = "communication"
    dropped = _DROPPED.get(verb, {})
    for word in dropped.keys() & set(words):
        note(f"{word} is not needed: {dropped[word]}")
    return [verb, *(_renamed(verb, word) for word in words if word not in dropped)]


def _renamed(verb: str, word: str) -> str:
    option, equals, value = word.partition("=")
    now = _OPTIONS.get(verb, {}).get(option.replace("_", "-"))
    if now is None:
        return word
    note(f"{option} is now {now}")
    return now + equals + value
