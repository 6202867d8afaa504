"""The routing of a trace, given back to a model that reads the same texts."""

from collections.abc import Sequence

import numpy as np

from moeworks.config.model import ModelConfig
from moeworks.data.model_tokenizer import ModelTokenizer
from moeworks.errors import DataError
from moeworks.trace.read import RoutingTrace


class TraceReplay:
    """The experts that a trace has for each token of each document, by the document's place in the data."""

    def __init__(
        self, trace: RoutingTrace, config: ModelConfig, tokenizer: ModelTokenizer, source: str
    ) -> None:
        """`source` names the trace in messages.

        Raises DataError where its experts, its layers or its tokenizer are not the model's.
        """
        header, self._source = trace.header, source
        print_of_tokens = header.tokenizer_fingerprint
        rules = {
            "num_experts": (header.num_experts, config.router.num_routes),
            "top_k": (header.top_k, config.router.slots),
            "layers": (header.layers, config.moe_layers),
            "tokenizer": (print_of_tokens or tokenizer.fingerprint, tokenizer.fingerprint),
        }
        for name, (recorded, own) in rules.items():
            if recorded != own:
                raise DataError(
                    f"{source}: {name} = {recorded!r}: the model has {own!r}, so it cannot be replayed"
                )
        tokens = trace.tokens
        if len(tokens) and int(tokens.token_id.min()) < 0:
            raise DataError(f"{source}: does not know its token ids, so it cannot be matched with texts")
        order = np.lexsort((tokens.position, tokens.sequence, tokens.document))
        self._token_ids, self._documents = tokens.token_id[order], tokens.document[order]
        self._ids = [trace.ids(layer)[order] for layer in header.layers]
        self.context = int(tokens.position.max()) + 1 if len(tokens) else 1
        """Tokens of its longest sequence."""

    def of_document(self, number: int, ids: Sequence[int], name: str) -> np.ndarray:
        """[layers, tokens, K]: the experts of a document's tokens; `number` counts documents of the data.

        Raises DataError where the trace has other tokens, or not all of them.
        """
        first, end = np.searchsorted(self._documents, [number, number + 1])
        found, wanted = self._token_ids[first:end], np.asarray(ids)
        where = f"{self._source}: document {number} ({name})"
        if not len(found):
            raise DataError(f"{where}: the trace has none of it; record it of the same --data, to the end")
        common = min(len(found), len(wanted))
        other = np.flatnonzero(found[:common] != wanted[:common])
        if len(other):
            place = int(other[0])
            here, there = int(wanted[place]), int(found[place])
            raise DataError(
                f"{where}: token {place} is {here} here and {there} in the trace, which is of another text"
            )
        if len(found) != len(wanted):
            raise DataError(
                f"{where}: the trace has {len(found)} tokens of it, and here it has {len(wanted)}"
            )
        return np.stack([layer[first:end] for layer in self._ids])
