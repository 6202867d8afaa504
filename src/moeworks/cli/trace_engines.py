"""Engines that compute the routing that `moeworks trace` records: moeworks, or transformers with hooks."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util

import torch
from torch import Tensor, nn

from moeworks.checkpoint import read_checkpoint
from moeworks.cli.models import check_device, load_model
from moeworks.cli.trace import TraceOptions
from moeworks.config import RunConfig
from moeworks.config.codec import from_dict
from moeworks.config.pools import NAME_ONE, domain_types
from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.doctor.hf_load import load_transformers, text_config
from moeworks.doctor.hf_recorder import TransformersRecorder
from moeworks.doctor.hf_trace import engine_name, routed_header
from moeworks.errors import ConfigError, check
from moeworks.families import from_hf
from moeworks.ops.routing import Routing
from moeworks.pretrained import find_checkpoint, published_config
from moeworks.trace.header import TraceHeader
from moeworks.trace.record import model_header

_CONTEXT = 2048


@dataclass(frozen=True, eq=False)
class Engine:
    """A model that routes, with its tokenizer and limits."""

    header: TraceHeader
    tokenizer: ModelTokenizer
    context: int
    """Longest sequence where the user names none."""
    limit: int | None
    """Longest sequence that the model can read; None where its config does not say."""
    route: Callable[[Tensor, Tensor, Sequence[str]], Sequence[Routing]]
    """Function from tokens [B, L], a mask of the valid ones, and the domain of each row to one record per MoE
    layer of the header."""


def open_engine(options: TraceOptions) -> Engine:
    """The engine that `options.engine` names; auto is moeworks where it knows the model's family.

    Raises ConfigError or CheckpointError for a model that it cannot load.
    """
    check_device(options.device)
    config = published_config(options.model)
    if options.engine == "transformers":
        check(config is not None, "engine", "transformers", f"{options.model} is no published checkpoint")
        return _transformers(options)
    if options.engine == "moeworks" or config is None:
        return _moeworks(options)
    try:
        from_hf(config)
    except ConfigError as error:
        if util.find_spec("transformers") is None:
            raise ConfigError(
                f"{error}; transformers may know it: pip install 'moeworks[transformers]'"
            ) from error
        return _transformers(options)
    return _moeworks(options)


def _moeworks(options: TraceOptions) -> Engine:
    path = options.model
    model = load_model(path, options.device, options.dtype, options.domain)
    limit = model.config.max_seq_len
    tokenizer = tokenizer_of(path, model.config.vocab_size)
    step, fingerprint, context = None, None, min(_CONTEXT, limit)
    if path.suffix != ".gguf" and published_config(path) is None:
        directory = find_checkpoint(path)
        state = read_checkpoint(directory, verify=False).state
        step, context = state["progress"]["step"], from_dict(RunConfig, state["config"]).train.seq_len
        # The file of checksums names the weights.
        fingerprint = hashlib.sha256((directory / "checkpoint.json").read_bytes()).hexdigest()
    header = model_header(
        model.config,
        options.fields,
        model=str(path),
        model_fingerprint=fingerprint,
        engine=f"moeworks {metadata.version('moeworks')}",
        tokenizer_fingerprint=tokenizer.fingerprint,
        step=step,
    )

    def route(tokens_BL: Tensor, valid_BL: Tensor, domains: Sequence[str]) -> Sequence[Routing]:
        types_BL = None
        if model.config.router.pools and model.token_type is None:
            types = domain_types(model.config.router, domains, hint=NAME_ONE)
            types_BL = torch.tensor(types, device=tokens_BL.device)[:, None].expand_as(tokens_BL)
        return model(tokens_BL, valid_BL=valid_BL, token_types_BL=types_BL).routings

    return Engine(header, tokenizer, context, limit, route)


def _transformers(options: TraceOptions) -> Engine:
    for name in ("domain", "dtype"):
        value = getattr(options, name)
        check(value is None, name, value, "is for models that moeworks runs; transformers runs this one")
    model = load_transformers(options.model, options.device)
    recorder = TransformersRecorder(model)
    settings = text_config(model)
    tokenizer = tokenizer_of(options.model, settings.vocab_size)
    last_only = _switches(model)

    def route(tokens_BL: Tensor, valid_BL: Tensor, domains: Sequence[str]) -> Sequence[Routing]:
        recorder.passes.clear()
        with recorder:
            model(input_ids=tokens_BL, attention_mask=valid_BL.long(), **last_only)
        (routed,) = recorder.passes
        return routed.routings

    # A pass over one token shows which layers run, and how many experts they have.
    one = torch.zeros(1, 1, dtype=torch.int64, device=options.device)
    with torch.no_grad():
        route(one, one == 0, [""])
    (routed,) = recorder.passes
    header = routed_header(
        routed,
        options.fields,
        model=str(options.model),
        engine=engine_name(),
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
    limit = getattr(settings, "max_position_embeddings", None)
    return Engine(header, tokenizer, min(_CONTEXT, limit or _CONTEXT), limit, route)


def _switches(model: nn.Module) -> dict[str, object]:
    """Options that spare a forward pass what a trace does not need, where the model has them."""
    known = inspect.signature(model.forward).parameters
    wanted = {"use_cache": False, "logits_to_keep": 1}
    return {name: value for name, value in wanted.items() if name in known}
