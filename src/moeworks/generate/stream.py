"""From tokens to text as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
_OPEN = 3  # at most so many bytes of a character can be waiting for its last one
_BLOCK = 32  # tokens that are decoded together, at least: with more it takes longer

Decode = Callable[[list[int]], str]


class TextStream:
    """Text piece by piece; the pieces together are what `decode` makes of all tokens.

    A character whose bytes are not all there yet is held back. `decode` turns token ids into text; it may
    look at a token's neighbours, as tokenizers that swallow the first space do, but not far back.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._told = 0
        """Characters of the text of `_ids` that were given out."""
        self._open = 0
        """Tokens since the text last ended in a whole character."""

    def add(self, token: int) -> str:
        """The text that `token` completes, "" if it completes none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        self._open = self._open + 1 if text.endswith(REPLACEMENT) else 0
        whole = self._whole(text)
        fresh = text[self._told : whole]
        self._told = max(self._told, whole)
        if len(self._ids) >= 2 * _BLOCK and whole == len(text):
            self._shorten(text)
        if len(self._ids) >= 16 * _BLOCK:  # bytes that will never be text
            fresh += text[self._told :]
            self._ids, self._told = [], 0
        return fresh

    def finish(self) -> str:
        """What was held back: bytes that no token completed."""
        rest = self._decode(self._ids)[self._told :]
        self._told += len(rest)
        return rest

    def _shorten(self, text: str) -> None:
        """Keep the newest tokens, where their text alone is the end of the text of all."""
        for start in range(len(self._ids) - _BLOCK, len(self._ids) - _BLOCK // 2):
            kept = self._decode(self._ids[start:])
            if kept and text.endswith(kept) and not kept.startswith(REPLACEMENT):
                self._ids, self._told = self._ids[start:], len(kept)
                return

    def _whole(self, text: str) -> int:
        """Length of the text without an end that may still change: characters that lack bytes.

        A tokenizer with tokens for bytes shows a run of them as U+FFFD, all of it, until the last is there.
        """
        end = len(text.rstrip(REPLACEMENT))
        return end if self._open <= _OPEN else max(end, len(text) - _OPEN)


class StopStrings:
    """Passes text on until one of `stops` comes; holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """One has come; the text before it was passed on."""

    def add(self, text: str) -> str:
        """What is certain to come before any stop string."""
        if self.stopped:
            return ""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        # A stop that began earlier and is not complete yet would come first.
        open_from = self._possible_start()
        if found and min(found) <= open_from:
            passed, self._held, self.stopped = self._held[: min(found)], "", True
            return passed
        passed, self._held = self._held[:open_from], self._held[open_from:]
        return passed

    def finish(self) -> str:
        """What was held back, up to the first complete stop string in it."""
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.stopped = self.stopped or bool(found)
        passed, self._held = self._held[: min(found, default=len(self._held))], ""
        return passed

    def _possible_start(self) -> int:
        """Where the earliest stop string may begin whose end has not come."""
        longest = max(map(len, self._stops), default=1)
        for start in range(max(len(self._held) - longest + 1, 0), len(self._held)):
            rest = self._held[start:]
            if any(len(stop) > len(rest) and stop.startswith(rest) for stop in self._stops):
                return start
        return len(self._held)
