"""Search for the module in which a NaN or an infinity first appears."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from moeworks.errors import NotFiniteError
from moeworks.models.decoder import Decoder, DecoderOutput
from moeworks.ops.routing import Routing

_AT_ONCE = 256  # positions whose logits are made together


@dataclass(frozen=True, eq=False)
class NonfiniteOutput:
    """The first output of a module that is not finite."""

    module: str
    tensors: tuple[Tensor, ...]


def first_nonfinite_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The name of the first submodule whose output is not finite while `run` calls the model, or None."""
    found = first_nonfinite_output(model, run)
    return None if found is None else found.module


def first_nonfinite_output(model: nn.Module, run: Callable[[], object]) -> NonfiniteOutput | None:
    """The first output of a submodule that is not finite while `run` calls the model, or None."""
    found: list[NonfiniteOutput] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensors = _checked(output)
            if not found and not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                found.append(NonfiniteOutput(name, tensors))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def not_finite(
    model: Decoder, what: str, run: Callable[[], DecoderOutput], name_position: Callable[[int, int], str]
) -> NotFiniteError:
    """The error that says where the model's outputs stop being finite.

    Args:
        what: what was found not to be finite, and in which text.
        run: a second pass over the same tokens.
        name_position: words for a position, from its row and its place in the row.
    """
    outputs: list[DecoderOutput] = []
    found = first_nonfinite_output(model, lambda: outputs.append(run()))
    rows, length = outputs[0].hidden_BLD.shape[:2]
    bad_BL = _bad_logits(outputs[0])
    if found is None and not bool(bad_BL.any()):
        return NotFiniteError(f"{what}; in a second pass, over all tokens at once, everything was finite")
    if found is None:
        module = "embed" if model.lm_head is None else "lm_head"
        where = f"in the logits of the output head {module}"
    else:
        # In attention a masked position has weight 0, and 0 * NaN spreads to the positions before it: those
        # of this output are where it began.
        module, bad_BL = found.module, _bad_positions(found.tensors, rows, length, bad_BL)
        where = f"in the output of {_in_words(module)}"
    place, row = bad_BL.T.nonzero()[0].tolist()
    return NotFiniteError(f"{what}: first at {name_position(row, place)}, {where}; {_cause(model, module)}")


def not_finite_after(model: Decoder, ids: Sequence[int], what: str) -> NotFiniteError:
    """The error for a text of the tokens `ids`, no more than the model's context."""
    tokens_BL = torch.tensor([list(ids)], device=next(model.parameters()).device)
    return not_finite(
        model, what, lambda: model(tokens_BL), lambda row, place: f"token {place} of {len(ids)} that it reads"
    )


def _bad_logits(output: DecoderOutput) -> Tensor:
    """bool [B, L]: positions whose logits are not finite."""
    hidden_BLD = output.hidden_BLD
    pieces = hidden_BLD.split(max(_AT_ONCE // hidden_BLD.shape[0], 1), dim=1)
    bad = [~torch.isfinite(output.head.logits(piece_BLD)).all(dim=-1) for piece_BLD in pieces]
    return torch.cat(bad, dim=1)


def _bad_positions(tensors: tuple[Tensor, ...], rows: int, length: int, otherwise: Tensor) -> Tensor:
    """bool [B, L]: where tensors of all tokens are not finite; `otherwise` if they are of another shape."""
    bad_BL = torch.zeros_like(otherwise)
    for tensor in tensors:
        if tensor.shape[0] == rows * length or tensor.shape[:2] == (rows, length):
            bad_BL |= ~torch.isfinite(tensor).reshape(rows, length, -1).all(dim=-1)
    return bad_BL if bool(bad_BL.any()) else otherwise


def _in_words(module: str) -> str:
    parts = module.split(".")
    return f"layer {parts[1]}, {'.'.join(parts[2:])}" if parts[0] == "layers" and len(parts) > 2 else module


def _cause(model: nn.Module, module: str) -> str:
    """Probable cause (the module's weights or an overflow in its sums), and the remedy."""
    for name, values in model.get_submodule(module).state_dict(prefix=f"{module}.").items():
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            return (
                f"{bad:,} of {values.numel():,} values of {name} are not finite: the checkpoint is damaged,"
                " or its training diverged"
            )
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"its weights are finite, so numbers overflow there in {kind}: try another dtype"


def _checked(output: object) -> tuple[Tensor, ...]:
    """What a leaf module returns: a tensor, or a router's Routing. Containers return what these made."""
    if isinstance(output, Routing):
        # Logits of experts that a token must not have are -inf.
        logits_TE = output.router_logits_TE
        logits_TE = logits_TE.masked_fill(logits_TE.isneginf(), 0.0) if output.pools else logits_TE
        return replace(output, router_logits_TE=logits_TE).tensors()
    return (output,) if isinstance(output, Tensor) else ()
