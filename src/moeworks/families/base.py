"""What a model family is: presets, and a two-way mapping between its config.json and ModelConfig.

A family names the fields that map one to one (Field), the values that must stand as they are (`fixed`), what
a key means that is left out (`defaults`, those of the family's class in transformers), and reads and writes
the rest in two small functions. Reading consumes keys: what is left over must be known to change nothing, or
it is an error, so no field that changes the maths is overlooked.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from moeworks.config.codec import from_dict, to_dict
from moeworks.config.model import ModelConfig
from moeworks.config.weight_rules import WeightMap
from moeworks.errors import ConfigError, check, nearest

Json = dict[str, Any]

MAX_LAYERS = 10_000
LARGEST = 2**40
"""Bounds that no published model comes near: a hostile config.json is refused before it costs memory."""
REQUIRED = object()
"""Marks a value that has no fallback."""

HARMLESS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_experts_implementation", "_name_or_path",
    "architectures", "attention_dropout", "attention_probs_dropout_prob", "attn_implementation", "auto_map",
    "aux_loss_alpha", "bos_token_id", "chunk_size_feed_forward", "dtype", "embd_pdrop", "emb_pdrop",
    "eos_token_id", "ep_size", "hidden_dropout", "hidden_dropout_prob", "id2label", "initializer_range",
    "is_decoder", "is_encoder_decoder", "is_llama_config", "label2id", "max_window_layers", "model_type",
    "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id", "pretraining_tp",
    "problem_type", "quantization_config", "resid_pdrop", "return_dict", "router_aux_loss_coef", "seq_aux",
    "sep_token_id", "task_specific_params", "tokenizer_class", "torch_dtype", "transformers.js_config",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
    # How to generate, which older versions of transformers wrote into config.json.
    "diversity_penalty", "do_sample", "early_stopping", "length_penalty", "max_length", "min_length",
    "num_beam_groups", "num_beams", "num_return_sequences", "repetition_penalty", "temperature", "top_k",
    "top_p", "typical_p",
})  # fmt: skip
"""Keys that change neither shapes nor the maths of a forward pass."""

SAYS = {
    "attention_bias": "attention.qkv_bias", "attn_output_gate": "attention.output_gate",
    "expert_hidden_dim": "experts.d_expert", "first_k_dense_replace": "pattern.first_dense",
    "head_dim": "attention.head_dim",
    "n_group": "router.num_groups", "n_shared_experts": "shared.num_shared_experts",
    "norm_topk_prob": "router.renormalize", "num_shared_experts": "shared.num_shared_experts",
    "qk_norm": "attention.qk_norm", "qkv_bias": "attention.qkv_bias",
    "residual_multiplier": "residual_scale", "route_norm": "router.renormalize",
    "routed_scaling_factor": "router.routing_scale", "scoring_func": "router.score",
    "sliding_window": "attention.window", "tie_word_embeddings": "tie_embeddings",
    "topk_group": "router.top_k_groups", "use_qk_norm": "attention.qk_norm",
}  # fmt: skip
"""Keys that some families read, and where a model has what they say: a family that does not read one of them
accepts the value that its models have anyway."""
OFF = (None, False, 0, "", [], {})
"""Values that switch nothing on, whatever the key is."""
ONE = frozenset({
    "decoder_sparse_step", "embedding_multiplier", "embedding_multiplier_scale", "factor", "logits_scaling",
    "mlp_bias_scale", "moe_layer_freq", "moe_layer_interval", "output_multiplier_scale",
    "partial_rotary_factor", "route_scale", "router_scaling_factor", "scale_emb",
})  # fmt: skip
"""Factors and strides, which change nothing when they are 1."""


@dataclass(frozen=True)
class Field:
    """One key of a config.json that maps to one field of ModelConfig."""

    key: str
    """Its name in config.json."""
    path: str
    """The dotted path in ModelConfig."""
    also: tuple[str, ...] = ()
    """Other names that some writers give the key."""


Read = Callable[[Json, Json], None]
"""From a config.json, whose keys it pops, to the draft of a ModelConfig as nested dicts."""
Write = Callable[[ModelConfig, Json], None]
"""From a ModelConfig to a config.json."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published model family."""

    name: str
    """Its name here, that of its file."""
    model_types: tuple[str, ...]
    """The values of `model_type` that it reads; it writes the first one, or the one that was read."""
    architecture: str
    """The class name that its config.json carries."""
    template: ModelConfig
    """What all members share."""
    fields: tuple[Field, ...]
    """Keys that map one to one."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a key means that a config.json leaves out. A key that is neither here nor there is an error."""
    null: Mapping[str, Any] = field(default_factory=dict)
    """What null means for keys whose default is not null; null is an error for the others of `defaults`."""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Accepted values of keys that do not vary; an absent key means the first, which is written."""
    harmless: frozenset[str] = frozenset()
    """Further keys that change nothing in this family."""
    weights: WeightMap
    """Names and layouts of the tensors of its checkpoints."""
    read: Read = lambda config, draft: None
    """Function that reads the keys that do not map one to one."""
    write: Write = lambda model, config: None
    """Function that writes what `read` reads back into a config.json."""
    presets: Mapping[str, Json] = field(default_factory=dict)
    """Published configs by name, as their makers wrote them, without the harmless keys."""
    unwrap: Callable[[Json], Json] = lambda config: config
    """From a published config.json to the part that describes the decoder."""

    def from_hf(self, config: Mapping[str, Any]) -> ModelConfig:
        """The model that a config.json describes.

        Raises ConfigError for a key that is missing, has a value that this family does not have, or is
        unknown and not neutral: it might change the maths.
        """
        rest = self.unwrap(deepcopy(dict(config)))
        draft = to_dict(self.template)
        self._rename(rest)
        self._complete(rest)
        for entry in self.fields:
            value = rest.pop(entry.key, None)
            if value is None and not self._may_be_null(entry.key):
                raise ConfigError(f"{entry.key}: missing in the config, and it has no default")
            _check_number(entry.key, value, get(draft, entry.path))
            put(draft, entry.path, value)
        check(draft["num_layers"] <= MAX_LAYERS, "num_layers", draft["num_layers"], f"exceeds {MAX_LAYERS}")
        try:
            self.read(rest, draft)
        except (TypeError, AttributeError, KeyError, ValueError, ZeroDivisionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"config.json: a value that the family {self.name} cannot read: {error}"
            ) from error
        for key, accepted in self.fixed.items():
            value = rest.pop(key, None)
            rule = f"the family {self.name} has only {' or '.join(map(repr, accepted))}"
            check(value is None or value in accepted, key, value, rule)
        self._check_rest(rest, draft)
        return from_dict(ModelConfig, draft, "model")

    def _rename(self, rest: Json) -> None:
        """Other names of keys replaced by the usual ones."""
        for entry in self.fields:
            for other in entry.also:
                if (value := rest.pop(other, None)) is None:
                    continue
                usual = rest.setdefault(entry.key, value)
                rule = f"is another name of {entry.key}, which is {usual!r}"
                check(usual == value, other, value, rule)

    def _complete(self, rest: Json) -> None:
        """The keys that are left out, and the meaning of null."""
        for key, default in self.defaults.items():
            value = rest.setdefault(key, deepcopy(default))
            if value is None and key in self.null:
                rest[key] = deepcopy(self.null[key])
            else:
                rule = f"must not be null; leave the key out for the family's default, {default!r}"
                check(value is not None or default is None, key, value, rule)

    def _may_be_null(self, key: str) -> bool:
        return self.null.get(key, self.defaults.get(key, REQUIRED)) is None

    def to_hf(self, model: ModelConfig, origin: Mapping[str, Any] | None = None) -> Json:
        """The config.json of `model`.

        `origin` is the one that the model was loaded with: its harmless keys are kept, and the whole of it
        where it still describes the model. Raises ConfigError when the family cannot express the model.
        """
        if origin is not None and self.from_hf(origin) == model:
            return deepcopy(dict(origin))
        kept = self.unwrap(deepcopy(dict(origin or {})))
        written: Json = {"architectures": [self.architecture], "model_type": self.model_types[0]}
        written |= {key: value for key, value in kept.items() if key in HARMLESS | self.harmless}
        written |= {key: accepted[0] for key, accepted in self.fixed.items()}
        values = to_dict(model)
        for entry in self.fields:
            written[entry.key] = get(values, entry.path)
        self.write(model, written)
        self._check_expressed(model, written)
        return written

    def preset(self, name: str) -> ModelConfig:
        """The model that the published config `name` describes."""
        return self.from_hf(self.presets[name])

    def _check_rest(self, rest: Json, draft: Json) -> None:
        known = HARMLESS | self.harmless
        for key, value in sorted(rest.items()):
            if key in known or value in OFF or (key in ONE and value == 1):
                continue
            if key in SAYS and value == get(draft, SAYS[key]):
                continue
            names = {*known, *self.fixed, *(entry.key for entry in self.fields)}
            raise ConfigError(
                f"{key} = {value!r}: not a field of the family {self.name}, and it may change what the model"
                f" computes; {nearest(key, names)}"
            )

    def _check_expressed(self, model: ModelConfig, written: Json) -> None:
        back = to_dict(self.from_hf(written))
        different = [path for path in paths(to_dict(model)) if get(back, path) != get(to_dict(model), path)]
        if different:
            path = different[0]
            raise ConfigError(
                f"{path} = {get(to_dict(model), path)!r}: the family {self.name} cannot express it, its"
                f" config.json would read as {get(back, path)!r}"
            )


def _check_number(key: str, value: object, like: object) -> None:
    """Numbers are not converted, and are of a size that some model could have."""
    if not isinstance(like, (bool, int, float)):
        return
    numbers = {int: (int,), float: (int, float), bool: (bool,)}[type(like)]
    check(type(value) in numbers, key, value, f"must be {type(like).__name__}")
    assert isinstance(value, (int, float))
    check(-LARGEST <= value <= LARGEST, key, value, f"exceeds {LARGEST:,}")


def take(config: Json, key: str, default: Any = REQUIRED, *, null: bool = True) -> Any:
    """Remove `key` and return its value, or `default` when it is absent or, unless `null` is False, null.

    Raises ConfigError when it has no value and there is no default.
    """
    value = config.pop(key, None if null else default)
    if value is None and null:
        value = default
    if value is REQUIRED or (value is None and not null):
        raise ConfigError(f"{key}: missing in the config, or null, and it has no default")
    return value


def put(draft: Json, path: str, value: Any) -> None:
    """Set the value at a dotted path."""
    *parents, name = path.split(".")
    for parent in parents:
        draft = draft[parent]
    draft[name] = value


def get(draft: Json, path: str) -> Any:
    """The value at a dotted path; None where the path ends early."""
    value: Any = draft
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def paths(draft: Json) -> Sequence[str]:
    """The dotted paths of all leaves."""
    found: list[str] = []
    for name, value in draft.items():
        if isinstance(value, dict):
            found += [f"{name}.{inner}" for inner in paths(value)]
        else:
            found.append(name)
    return found
