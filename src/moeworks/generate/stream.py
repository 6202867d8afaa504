"""From tokens to text as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Callable, Iterable, Sequence

REPLACEMENT = "\ufffd"
_OPEN = 3  # at most so many bytes of a character can be waiting for its last one
_BLOCK = 32  # tokens that are decoded together, at least: with more it takes longer

Decode = Callable[[list[int]], str]


class TextStream:
    """The text of a continuation, piece by piece as its tokens come.

    Tokens are decoded together with the end of what stands before them, because tokenizers look at
    neighbours: those like sentencepiece drop the space at the start of a text, and only there. The pieces
    together are what `decode` adds to the text of `before` when the new tokens follow it. A character whose
    bytes are not all there yet is held back; one that was given out stays, even where the bytes after it turn
    out to be no text.
    """

    def __init__(self, decode: Decode, before: Iterable[int] = ()) -> None:
        """`decode` turns token ids into text; `before` are the tokens that the new ones follow."""
        self._decode = decode
        self._ids = list(before)
        text = decode(self._ids) if self._ids else ""
        self._told = len(text.rstrip(REPLACEMENT))
        """Characters of the text of `_ids` that were given out, or stand before the first new token."""
        self._spelled = len(text) - self._told
        """U+FFFD that `before` ends in: its own, or for a character that the first new tokens complete."""
        self._open = 0
        """Tokens since the text last ended in a whole character."""
        if len(self._ids) > _BLOCK:
            self._shorten(text)

    def add(self, token: int) -> str:
        """The text that `token` completes, "" if it completes none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        self._open = self._open + 1 if text.endswith(REPLACEMENT) else 0
        whole = self._whole(text)
        fresh = self._fresh(text[:whole])
        if len(self._ids) >= 2 * _BLOCK and whole == len(text):
            self._shorten(text)
        if len(self._ids) >= 16 * _BLOCK:  # bytes that will never be text
            fresh += self._fresh(text)
            # The last token stays: with nothing before it, the next one may lose its space.
            self._ids = self._ids[-1:]
            self._told = len(self._decode(self._ids))
        return fresh

    def finish(self) -> str:
        """What was held back: bytes that no token completed."""
        return self._fresh(self._decode(self._ids)) if self._ids else ""

    def _fresh(self, text: str) -> str:
        """The end of `text` that was not given out yet, and is now."""
        if len(text) <= self._told:
            return ""
        fresh, self._told = text[self._told :], len(text)
        own = min(len(fresh) - len(fresh.lstrip(REPLACEMENT)), self._spelled)
        self._spelled = 0
        return fresh[own:]

    def _shorten(self, text: str) -> None:
        """Keep the newest tokens, where their text alone is the end of the text of all."""
        for start in range(len(self._ids) - _BLOCK, len(self._ids) - _BLOCK // 2):
            kept = self._decode(self._ids[start:])
            told = len(kept) - (len(text) - self._told)
            if told >= 0 and text.endswith(kept) and not kept.startswith(REPLACEMENT):
                self._ids, self._told = self._ids[start:], told
                return

    def _whole(self, text: str) -> int:
        """Length of the text without an end that may still change: characters that lack bytes.

        A tokenizer with tokens for bytes shows a run of them as U+FFFD, all of it, until the last is there.
        """
        end = len(text.rstrip(REPLACEMENT))
        return end if self._open <= _OPEN else max(end, len(text) - _OPEN)


def continuation_text(decode: Decode, before: Iterable[int], ids: Iterable[int]) -> str:
    """The text of `ids` where they follow the tokens `before`."""
    stream = TextStream(decode, before)
    return "".join([*map(stream.add, ids), stream.finish()])


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
