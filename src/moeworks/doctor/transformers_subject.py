"""A transformers model as a subject."""

import copy
import inspect
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from moeworks.doctor import hf_routing
from moeworks.doctor.hf_recorder import TransformersRecorder
from moeworks.doctor.low_rank import LowRank
from moeworks.doctor.subject import Adapted, Block, Claims, Inputs, Seen, Step, Subject, Unavailable
from moeworks.doctor.transformers_blocks import transformers_blocks
from moeworks.errors import ConfigError
from moeworks.ops.routing import Routing

try:
    from peft import LoraConfig, get_peft_model
except ImportError:  # adapters are then parametrizations
    LoraConfig = get_peft_model = None

_RESERVED = 3
"""Token ids below are left out of inputs: they are often padding and such."""
_BOTH_WAYS = ("OpenAIPrivacyFilterForTokenClassification", "OpenAIPrivacyFilterModel")
"""Classes that read in both directions."""
_TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "num_experts_per_token")


class TransformersSubject(Subject):
    """A model of a class of transformers; a step is what its Trainer does with the model's loss.

    Balance losses are those that the model returns with output_router_logits, which `step` switches on.
    """

    kind = "transformers model"

    def __init__(self, model: PreTrainedModel, name: str | None = None) -> None:
        self.name = name or type(model).__name__
        self._module = model
        self._config: Any = model.config.get_text_config(decoder=True)
        self._encodes = model.config.is_encoder_decoder
        self.claims = self._read_claims()
        try:
            self.balance(self._module, self.inputs())
        except Unavailable:
            pass
        except Exception as error:  # of someone else's loss function
            self.claims = replace(self.claims, balance_error=f"{type(error).__name__}: {error}"[:120])

    # Passes.

    def model(self) -> nn.Module:
        return copy.deepcopy(self._module).float().requires_grad_(True).eval()

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return type(self._module)(copy.deepcopy(self._module.config)).float()

    def inputs(self, rows: int = 2, length: int = 12, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        vocabulary = self._config.vocab_size
        return Inputs(torch.randint(_RESERVED, vocabulary, (rows, length), generator=generator))

    def output(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return _output(self._call(model, inputs))

    def run(self, model: nn.Module, inputs: Inputs) -> Seen:
        try:
            recorder = TransformersRecorder(model, detach=False)
        except ConfigError as error:
            raise Unavailable(str(error)) from error
        try:
            with recorder:
                output = _output(self._call(model, inputs))
        except ConfigError as error:
            raise Unavailable(f"its routing cannot be recorded: {error}") from error
        if not recorder.passes:
            raise Unavailable("no MoE layer ran")
        routings = recorder.passes[-1].routings
        if len(routings) != len(self.blocks(model)):
            raise Unavailable(f"{len(routings)} decisions of {len(self.blocks(model))} MoE layers were seen")
        return Seen(output, routings)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        return transformers_blocks(model)

    def _call(self, model: nn.Module, inputs: Inputs, **options: Any) -> Any:
        mask = None if inputs.valid_BL is None else inputs.valid_BL.long()
        if self._encodes:
            rows = len(inputs.values)
            source = torch.arange(_RESERVED, _RESERVED + 6).expand(rows, 6)
            options |= dict(input_ids=source, decoder_input_ids=inputs.values, decoder_attention_mask=mask)
        else:
            options |= dict(input_ids=inputs.values, attention_mask=mask)
        if "use_cache" in self._parameters(model) or "kwargs" in self._parameters(model):
            options["use_cache"] = False
        return model(**options)

    @staticmethod
    def _parameters(model: nn.Module) -> set[str]:
        return set(inspect.signature(model.forward).parameters)

    # Training.

    def balance(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        loss = getattr(self._asked(model, inputs), "aux_loss", None)
        if not isinstance(loss, Tensor):
            raise Unavailable("it offers no balance loss")
        return {"switch": loss}

    def balance_by_default(self, model: nn.Module, inputs: Inputs) -> Tensor | None:
        output = self._call(model, inputs, **self._labels(model, inputs))
        loss = getattr(output, "aux_loss", None)
        return (
            self.claims.balance_coef * loss if isinstance(loss, Tensor) and self.claims.balance_coef else None
        )

    def balance_in_step(self, model: nn.Module, inputs: Inputs) -> Tensor | None:
        coef = self.claims.balance_coef
        return None if coef is None else coef * self.balance(model, inputs)["switch"]

    def task(self, model: nn.Module, inputs: Inputs) -> Tensor:
        logits = self.output(model, inputs).float()
        self._labels(model, inputs)
        if self._encodes:
            return F.cross_entropy(logits.flatten(0, 1), inputs.values.flatten())
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs.values[:, 1:].flatten())

    def step(self, model: nn.Module, batches: list[Inputs]) -> Step:
        total = sum(int(self._targets(b).ne(-100)[:, 1:].sum()) for b in batches)
        asked = "output_router_logits" in self._parameters(model) and self.claims.balance_coef is not None
        asked = asked and self.claims.balance_error is None
        objective = torch.zeros(())
        for batch in batches:
            options: dict[str, Any] = self._labels(model, batch)
            if asked:
                options["output_router_logits"] = True
            if not self._encodes:
                options["num_items_in_batch"] = torch.tensor(total)
            loss = self._call(model, batch, **options).loss
            loss.backward()
            objective = objective + loss.detach()
        return Step(objective, objective)

    def _asked(self, model: nn.Module, inputs: Inputs) -> Any:
        if self.claims.balance_error is not None:
            raise Unavailable("asked for its balance loss, it raises an error (balance-definition)")
        if "output_router_logits" not in self._parameters(model):
            raise Unavailable("it offers no balance loss")
        return self._call(model, inputs, output_router_logits=True)

    def _labels(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        if "labels" not in self._parameters(model) or "TokenClassification" in type(model).__name__:
            raise Unavailable("it is a model without a language model's loss")
        return {"labels": self._targets(inputs)}

    @staticmethod
    def _targets(inputs: Inputs) -> Tensor:
        if inputs.valid_BL is None:
            return inputs.values
        return inputs.values.masked_fill(~inputs.valid_BL, -100)

    @contextmanager
    def recomputing(self, model: nn.Module, *, reentrant: bool) -> Generator[None]:
        assert isinstance(model, PreTrainedModel)
        if not model.supports_gradient_checkpointing:
            raise Unavailable("its class has no gradient checkpointing")
        try:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        except ValueError as error:
            raise Unavailable("its class has no gradient checkpointing") from error
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()

    # Decisions, the disk, adapters.

    def replay(self, model: nn.Module, inputs: Inputs, routings: tuple[Routing, ...]) -> Tensor:
        found = {b.path: b for b in hf_routing.find_blocks(model)}
        with ExitStack() as stack:
            for block, routing in zip(self.blocks(model), routings, strict=True):
                seen = found[block.path]
                if seen.reading.read is not hf_routing._given:
                    raise Unavailable("its experts are not called with ids and weights")
                if type(seen.module).__name__.startswith("Inkling"):
                    raise Unavailable(
                        "its shared experts share the router's softmax, and are not in the record"
                    )
                factor = hf_routing._factor_outside(seen.module)
                experts = seen.module.get_submodule("experts")
                hook = _Forced(routing, factor)
                handle = experts.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            return self.output(model, inputs)

    def save_and_load(self, model: nn.Module, folder: Path) -> nn.Module:
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()

    def adapt(self, model: nn.Module) -> Adapted:
        names = [
            (block.path, _prefix(model, block), t.name)
            for block in self.blocks(model)
            for t in block.experts
            if len(t.parts) == 1 and t.parts[0].dim() == 3
        ]
        if not names:
            raise Unavailable("its experts are not stacked in 3-D parameters")
        if LoraConfig is None or get_peft_model is None:
            return _parametrized(model, [f"{p}.{n}" for _, p, n in names])
        config = LoraConfig(
            r=2, lora_alpha=2, init_lora_weights=False, target_modules=[],
            target_parameters=[f"{prefix}.{name}" for _, prefix, name in names],
        )  # fmt: skip
        adapted = get_peft_model(model, config)
        added = tuple(p for n, p in adapted.named_parameters() if "lora_" in n)
        return Adapted(adapted, added, lambda: adapted.merge_and_unload())

    # What its config says.

    def _read_claims(self) -> Claims:
        config = self._config
        blocks = self.blocks(self._module)
        biased = any(b.selection_bias is not None for b in blocks)
        groups = getattr(config, "n_group", None) or getattr(config, "num_expert_group", None) or 1
        if getattr(config, "topk_method", None) == "greedy":
            groups = 1
        coef = getattr(config, "router_aux_loss_coef", None)
        top_k = next((v for n in _TOP_K if isinstance(v := getattr(config, n, None), int)), None)
        renormalize = getattr(config, "norm_topk_prob", None)
        return Claims(
            top_k=top_k,
            score=self._score() if renormalize is not None else None,
            renormalize=renormalize,
            scale=float(getattr(config, "routed_scaling_factor", None) or 1.0),
            num_groups=groups,
            top_k_groups=getattr(config, "topk_group", None) or 1,
            group_score="max" if config.model_type == "deepseek_v2" else "top2_sum",
            chooses_by="logits" if config.model_type == "kolibri1" else "scores",
            causal=type(self._module).__name__ not in _BOTH_WAYS,
            bias_is_trained=biased,
            balance_coef=coef or None,
        )

    @torch.no_grad()
    def _score(self) -> Any:
        """The score that its recorded probabilities are."""
        try:
            routing = self.run(self._module, self.inputs()).routings[0]
        except Unavailable:
            return None
        logits_TE, probs_TE = routing.router_logits_TE, routing.router_probs_TE
        choices = {"softmax": logits_TE.softmax(1), "sigmoid": logits_TE.sigmoid()}
        return next((n for n, v in choices.items() if torch.allclose(v, probs_TE, atol=1e-6)), "sqrtsoftplus")


def _output(made: Any) -> Tensor:
    logits = getattr(made, "logits", None)
    return logits if isinstance(logits, Tensor) else made[0]


class _Forced:
    """A hook that gives the experts recorded ids and weights."""

    def __init__(self, routing: Routing, factor: float) -> None:
        self._routing, self._factor = routing, factor

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = [*args, *kwargs.values()]
        ids = next(i for i, v in enumerate(values) if _is(v, floating=False) and i)
        weights = next(i for i, v in enumerate(values) if _is(v, floating=True) and i)
        routing = self._routing
        if values[weights].shape[-1] != routing.top_k:
            raise Unavailable("its experts are called with a weight for every expert")
        values[ids] = routing.expert_ids_TK.view_as(values[ids]).to(values[ids].dtype)
        scaled = routing.routing_weights_TK / self._factor
        values[weights] = scaled.view_as(values[weights]).to(values[weights].dtype)
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))


def _is(value: Any, *, floating: bool) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() is floating


def _prefix(model: nn.Module, block: Block) -> str:
    """Path of the module whose parameters the expert tensors' names are."""
    module = model.get_submodule(block.path)
    return f"{block.path}.experts" if "experts" in dict(module.named_children()) else block.path


def _parametrized(model: nn.Module, names: list[str]) -> Adapted:
    before = {id(p) for p in model.parameters()}
    places = [(model.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in names]
    for owner, name in places:
        parametrize.register_parametrization(owner, name, LowRank(getattr(owner, name)))

    def merge() -> nn.Module:
        for owner, name in places:
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
        return model

    return Adapted(model, tuple(p for p in model.parameters() if id(p) not in before), merge)
