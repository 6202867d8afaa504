"""The recorder for transformers models, against our own decoder and against what experts are seen to do."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from parity_models import tiny_model
from tiny_families import TINY
from tiny_zoo import ZOO, zoo_model
from torch import nn

from moeworks import BalanceConfig, Routing, balance_losses, load
from moeworks.doctor.hf_recorder import RoutedPass, TransformersRecorder
from moeworks.doctor.hf_routing import UNREADABLE, find_blocks
from moeworks.errors import ConfigError

MOE = [name for name in TINY if not name.startswith("llama3") and name != "llama"]
LENGTH = 24


def tokens_of(vocab_size: int, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [2, length] and a mask: the first row has 4 of padding at its end.

    As many as a sliding window would make rows that see nothing, which transformers gives NaN in float64.
    """
    tokens = torch.randint(3, vocab_size, (2, length), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(tokens)
    mask[0, -4:] = 0
    return tokens, mask


@torch.no_grad()
def recorded(model: nn.Module, *args, **kwargs) -> list[RoutedPass]:
    with TransformersRecorder(model) as recorder:
        model(*args, **kwargs)
    return recorder.passes


# Families that moeworks has too.


@pytest.mark.parametrize("name", MOE)
@torch.no_grad()
def test_the_same_as_our_decoder(name, tmp_path):
    theirs = tiny_model(name).double()
    theirs.config._experts_implementation = "eager"  # the default has no float64
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, dtype=torch.float64)
    tokens, mask = tokens_of(theirs.config.vocab_size)
    (routed,) = recorded(theirs, tokens, attention_mask=mask)
    output = ours(tokens, valid_BL=mask.bool())
    assert routed.layers == ours.config.moe_layers
    assert routed.phase == "prefill"
    pairs = [(routed.routings, output.routings), (routed.attention_routings, output.attention_routings)]
    for got, want in (pair for a, b in pairs for pair in zip(a, b, strict=True)):
        same(got, want, mask.bool().reshape(-1))


def same(got: Routing, want: Routing, valid_T: torch.Tensor) -> None:
    assert torch.equal(got.valid_T, valid_T)
    ids, order = got.expert_ids_TK[valid_T].sort(dim=1)
    wanted_ids, wanted_order = want.expert_ids_TK[valid_T].sort(dim=1)
    assert torch.equal(ids, wanted_ids)
    close = dict(rtol=0, atol=1e-5)
    weights = got.routing_weights_TK[valid_T].gather(1, order)
    wanted = want.routing_weights_TK[valid_T].gather(1, wanted_order)
    torch.testing.assert_close(weights, wanted, check_dtype=False, **close)
    probs, wanted_probs = got.router_probs_TE[valid_T], want.router_probs_TE[valid_T]
    torch.testing.assert_close(probs, wanted_probs, check_dtype=False, **close)
    # Some of theirs compute in float32 before the router; the logits' size is about 10.
    logits, wanted_logits = got.router_logits_TE[valid_T], want.router_logits_TE[valid_T]
    torch.testing.assert_close(logits, wanted_logits, check_dtype=False, rtol=0, atol=1e-4)


# Families that it has not: which experts work on a token is seen by changing an expert.


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "llama4_top2", "dbrx", "jetmoe", *ZOO])
@torch.no_grad()
def test_changing_an_expert_changes_the_tokens_that_chose_it(name):
    model = zoo_model(name) if name in ZOO else tiny_model(name)
    tokens, mask = tokens_of(97, 12)
    inputs = dict(input_ids=tokens, attention_mask=mask, use_cache=False)
    if name == "switch_transformers":
        inputs["decoder_input_ids"] = tokens
    calls: dict[str, tuple] = {}
    blocks = [block for block in find_blocks(model) if not block.attention]
    hooks = [
        block.module.register_forward_pre_hook(
            lambda _, args, kwargs, path=block.path: calls.__setitem__(path, (args, kwargs)), with_kwargs=True
        )
        for block in blocks
    ]
    passes = recorded(model, **inputs)
    for hook in hooks:
        hook.remove()
    depths = {block.stack: block.depth for block in blocks}
    routings = {  # where a layer runs several times, the last time, which is that of `calls`
        (routed.stack, layer % depths[routed.stack]): routing
        for routed in passes
        for layer, routing in zip(routed.layers, routed.routings, strict=True)
    }
    # One layer of each kind: that is the last one, and the first (hash routing, another width).
    ran = [block for block in blocks if block.path in calls]
    for block in (ran[0], ran[-1]):
        only_the_chosen_matter(block.module, calls[block.path], routings[block.stack, block.layer])


def only_the_chosen_matter(block: nn.Module, call: tuple, routing: Routing) -> None:
    count = sum_of_experts(block)
    hidden = output_of(block, call)
    touched = 0
    for expert in range(min(count, 8)):
        before = {name: p.clone() for name, p in block.named_parameters()}
        change(block, expert)
        moved_T = (output_of(block, call) != hidden).any(dim=1)
        weights_TK = routing.routing_weights_TK * (routing.expert_ids_TK == expert)
        if routing.kept_TK is not None:
            weights_TK = weights_TK * routing.kept_TK
        weight_T = weights_TK.sum(dim=1)
        assert not moved_T[weight_T == 0].any(), expert
        assert moved_T[weight_T > 1e-5].all(), expert
        touched += int(moved_T.sum())
        for parameter, value in zip(block.parameters(), before.values(), strict=True):
            parameter.copy_(value)
    assert touched > 0


def output_of(block: nn.Module, call: tuple) -> torch.Tensor:
    """[T, D], the block's output for what it was called with."""
    args, kwargs = call
    kwargs = kwargs | {key: None for key in ("cache", "past_key_values") if key in kwargs}
    output = block(*(copied(a) for a in args), **{key: copied(value) for key, value in kwargs.items()})
    output = output[0] if isinstance(output, tuple) else output
    width = next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)).shape[-1]
    return output.reshape(-1, width)


def copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def banks(block: nn.Module) -> list[nn.Module]:
    """The modules that hold the experts' weights."""
    names = ("experts", "input_linear", "output_linear", "down_embed", "up_embed")
    return [module for name in names if (module := getattr(block, name, None)) is not None]


def sum_of_experts(block: nn.Module) -> int:
    """How many experts have weights."""
    bank = banks(block)[0]
    if isinstance(bank, nn.ModuleDict):
        return len(bank)
    if hasattr(bank, "mlp"):
        return bank.num_experts
    sizes = {name: p.shape[0] for name, p in bank.named_parameters()}
    return sizes.get("down_proj", next(iter(sizes.values())))


def change(block: nn.Module, expert: int) -> None:
    for bank in banks(block):
        if isinstance(bank, nn.ModuleDict):
            parameters = list(bank[f"expert_{expert}"].parameters())
        elif hasattr(bank, "mlp"):  # DBRX: all experts in one matrix
            parameters = [p.view(bank.num_experts, -1)[expert] for p in bank.parameters()]
        else:
            parameters = [p[expert] for p in bank.parameters() if p.dim() > 1]
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))


FACTOR_OUTSIDE = ["laguna", "beam", "minimax_m3_vl", "step3p7", "openai_privacy_filter", "hy_v3", "mixtral"]


@pytest.mark.parametrize("name", FACTOR_OUTSIDE)
@torch.no_grad()
def test_weights_are_those_that_enter_the_sum(name):
    """Blocks may multiply the experts' sum by a factor: it belongs to the weights."""
    model = zoo_model(name) if name in ZOO else tiny_model(name)
    block = find_blocks(model)[-1]
    calls = []
    block.module.experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    hidden = []
    block.module.register_forward_pre_hook(
        lambda _, args, kwargs: hidden.append((args, kwargs)), with_kwargs=True
    )
    (routed,) = recorded(model, tokens_of(97, 12)[0])
    routing, (inputs, _, given) = routed.routings[-1], calls[0]
    full = output_of(block.module, hidden[0])
    alone = block.module.experts(inputs, routing.expert_ids_TK, routing.routing_weights_TK)
    for parameter in block.module.experts.parameters():
        parameter.zero_()
    torch.testing.assert_close(full - output_of(block.module, hidden[0]), alone, rtol=1e-4, atol=1e-5)
    factor = (routing.routing_weights_TK.sum() / given.sum()).item()
    assert (abs(factor - 1) > 0.1) == (name not in ("hy_v3", "mixtral"))


def test_every_family_of_the_installed_transformers_is_in_these_tests():
    """By the classes that hold experts: each folder of models that has one is tested or refused."""
    root = Path(transformers.__file__).parent / "models"
    holds = re.compile(r"^class \w+(Experts|MoE|Moe)\(", re.MULTILINE)
    found = {p.parent.name for p in root.glob("*/modeling_*.py") if holds.search(p.read_text())}
    families = {TINY[name].model_type.removesuffix("_text") for name in MOE}
    assert found - families - set(ZOO) == {"nllb_moe", "vitpose_backbone"}


@pytest.mark.parametrize("name", ["NllbMoeSparseMLP", "VitPoseBackboneMoeMLP"])
def test_what_cannot_be_seen_is_refused(name):
    model = nn.Module()
    model.layers = nn.ModuleList([type(name, (nn.Module,), {})()])
    with pytest.raises(ConfigError, match=rf"layers.0 is a {name}: .*{UNREADABLE[name][:20]}"):
        TransformersRecorder(model)


@torch.no_grad()
def test_a_layer_that_runs_again():
    """Layers 1 and 2 of 4 run twice: 0 1 2 1 2 3."""
    model = zoo_model("inkling2_loop")
    (routed,) = recorded(model, tokens_of(97)[0])
    assert routed.layers == (0, 1, 2, 3, 5, 6)
    assert not torch.equal(routed.routings[1].router_logits_TE, routed.routings[4].router_logits_TE)


# What every recording keeps.


@torch.no_grad()
def test_outputs_stay_and_the_hooks_go():
    model = tiny_model("deepseek_v3")
    tokens, mask = tokens_of(97)
    plain = model(tokens, attention_mask=mask).logits
    recorder = TransformersRecorder(model)
    for _ in range(2):
        with recorder:
            assert torch.equal(model(tokens, attention_mask=mask).logits, plain)
    assert len(recorder.passes) == 2
    model(tokens)
    assert len(recorder.passes) == 2
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_hooks_go_when_the_model_fails():
    model = tiny_model("mixtral")
    with pytest.raises(IndexError), TransformersRecorder(model):
        model(torch.tensor([[1000]]))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_training_with_checkpointing_is_recorded_once_and_reaches_the_router():
    model = tiny_model("mixtral").train()
    model.gradient_checkpointing_enable(dict(use_reentrant=False))
    tokens, mask = tokens_of(97)
    with TransformersRecorder(model, detach=False) as recorder:
        output = model(tokens, attention_mask=mask, use_cache=False)
        losses = balance_losses(recorder.passes[0].routings, BalanceConfig(switch_coef=1.0))
        (output.logits.mean() + losses["switch"]).backward()
    (routed,) = recorder.passes
    assert (routed.phase, routed.layers) == ("train", (0, 1, 2, 3))
    assert all(block.module.gate.weight.grad.abs().sum() > 0 for block in recorder.blocks)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "qwen3_next", "llama4", "jamba"])
@torch.no_grad()
def test_generation_with_a_cache_and_left_padding(name):
    """Each token of a decoding pass routes as in one pass over the whole text."""
    model = zoo_model(name) if name in ZOO else tiny_model(name)
    tokens = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    with TransformersRecorder(model) as recorder:
        text = model.generate(
            tokens, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0
        )
    first, *rest = recorder.passes
    assert (first.phase, first.shape) == ("prefill", (2, 9))
    assert [(p.phase, p.shape) for p in rest] == [("decode", (2, 1))] * 4
    positions = torch.cat([p.positions_BL for p in recorder.passes], dim=1)
    assert positions[0].tolist() == list(range(13))
    assert positions[1].tolist() == [0, 0, 0, *range(10)]
    assert torch.equal(torch.cat([p.token_ids_BL for p in recorder.passes], dim=1), text[:, :-1])
    (whole,) = recorded(model, text[:1, :-1])
    for layer, want in enumerate(whole.routings):
        got = [p.routings[layer].expert_ids_TK.view(*p.shape, -1)[0] for p in recorder.passes]
        assert torch.equal(torch.cat(got).sort(dim=1).values, want.expert_ids_TK.sort(dim=1).values)


@torch.no_grad()
def test_embeddings_and_no_mask():
    model = tiny_model("mixtral")
    tokens, _ = tokens_of(97)
    (a,) = recorded(model, tokens)
    (b,) = recorded(model, inputs_embeds=model.get_input_embeddings()(tokens))
    assert a.routings[0].valid_T is None
    assert b.token_ids_BL is None
    assert torch.equal(a.routings[-1].expert_ids_TK, b.routings[-1].expert_ids_TK)
    assert torch.equal(a.token_ids_BL, tokens)


@torch.no_grad()
def test_half_precision():
    model = tiny_model("deepseek_v3").bfloat16()
    model.config._experts_implementation = "eager"
    (routed,) = recorded(model, tokens_of(97)[0])
    assert all(r.routing_weights_TK.dtype == torch.float32 for r in routed.routings)
    for routing in routed.routings:
        assert torch.equal(routing.router_probs_TE, routing.router_logits_TE.sigmoid())


@torch.no_grad()
def test_a_mask_that_hides_padding_is_refused():
    model = tiny_model("mixtral")
    tokens, _ = tokens_of(97)
    four = torch.zeros(2, 1, LENGTH, LENGTH).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -1e9)
    with pytest.raises(ConfigError, match=r"attention_mask: must be \[batch, length\]"):
        recorded(model, tokens, attention_mask=four)


def test_models_without_a_router_are_refused():
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM.*has no MoE layer"):
        TransformersRecorder(tiny_model("llama"))
    lonely = nn.Module()
    lonely.mlp = nn.Module()
    lonely.mlp.experts = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ConfigError, match="mlp is a Module: it has experts and 0 routers"):
        TransformersRecorder(lonely)


class _Loops(nn.Module):
    """Experts that are called one by one, so that hooks see no choice."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, hidden):
        return self.experts[int(self.gate(hidden).sum() > 0)](hidden)


def test_experts_that_are_not_called_as_a_module_are_refused():
    with pytest.raises(ConfigError, match="its experts were not called as a module"):
        recorded(_Loops(), torch.randn(3, 4))
