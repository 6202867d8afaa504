"""Groups of parameters, the two optimizers as one, and their state on disk."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moeworks.checkpoint import read_checkpoint, write_checkpoint
from moeworks.config import OptimizerConfig
from moeworks.errors import CheckpointError
from moeworks.train.adamw import clip_scale, gradient_norm
from moeworks.train.optimizer import (
    Optimizers,
    ParameterGroups,
    build_optimizers,
    first_nonfinite_gradient,
    group_parameters,
)

V, D, F, E = 10, 6, 4, 3


class Experts(nn.Module):
    """Stacks of expert matrices and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * F, D))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(E, 2 * F))
        self.down_proj = nn.Parameter(torch.randn(E, D, F))
        self.down_proj_bias = nn.Parameter(torch.randn(E, D))


class Layer(nn.Module):
    """One layer with a parameter of every kind that a decoder has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(D)
        self.attention = nn.ModuleDict({"q_proj": nn.Linear(D, D)})
        self.mlp = nn.ModuleDict(
            {"gate_up_proj": nn.Linear(D, 2 * F, bias=False), "down_proj": nn.Linear(F, D)}
        )
        self.router = nn.Linear(D, E)
        self.experts = Experts()
        self.shared_gate = nn.Linear(D, 1, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD + self.attention["q_proj"](self.norm(x_TD))
        gate, up = self.mlp["gate_up_proj"](x_TD).chunk(2, dim=-1)
        x_TD = x_TD + self.mlp["down_proj"](gate * up) * self.shared_gate(x_TD).sigmoid()
        weights_TE = self.router(x_TD).softmax(dim=-1)
        hidden = torch.einsum("td,efd->tef", x_TD, self.experts.gate_up_proj) + self.experts.gate_up_proj_bias
        gate, up = hidden.chunk(2, dim=-1)
        out_TED = torch.einsum("tef,edf->ted", gate.sigmoid() * up, self.experts.down_proj)
        return x_TD + torch.einsum("te,ted->td", weights_TE, out_TED + self.experts.down_proj_bias)


class Model(nn.Module):
    """Two layers between an embedding and an output projection."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.lm_head = nn.Linear(D, V, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens_T: Tensor) -> Tensor:
        x_TD = self.embed(tokens_T)
        for layer in self.layers:
            x_TD = layer(x_TD)
        return self.lm_head(x_TD)


def _model(dtype: torch.dtype = torch.float32, tied: bool = False) -> Model:
    torch.manual_seed(0)
    return Model(tied).to(dtype)


def _backward(model: nn.Module, step: int) -> None:
    tokens_T = torch.randint(V, (8,), generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(model(tokens_T), tokens_T.roll(-1)).backward()


def _train(model: nn.Module, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        optimizers.zero_grad()
        _backward(model, step)
        optimizers.set_lr_scale(1 / (1 + step))
        optimizers.step(clip_scale(gradient_norm(model.parameters()), 1.0))


def _layers(*names: str) -> tuple[str, ...]:
    return tuple(f"layers.{i}.{name}" for i in range(2) for name in names)


def test_every_parameter_is_in_the_group_of_its_kind() -> None:
    groups = group_parameters(_model())
    assert groups.matrices == _layers("attention.q_proj.weight", "mlp.down_proj.weight", "experts.down_proj")
    assert groups.fused_pairs == _layers("mlp.gate_up_proj.weight", "experts.gate_up_proj")
    assert set(groups.rest) == {"embed.weight", "lm_head.weight"} | set(
        _layers(
            "norm.weight",
            "attention.q_proj.bias",
            "mlp.down_proj.bias",
            "router.weight",
            "router.bias",
            "experts.gate_up_proj_bias",
            "experts.down_proj_bias",
            "shared_gate.weight",
        )
    )


def test_groups_part_the_trained_parameters() -> None:
    model = _model(tied=True)
    model.layers[0].requires_grad_(False)
    groups = group_parameters(model)
    names = [*groups.matrices, *groups.fused_pairs, *groups.rest]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert "lm_head.weight" not in names


def test_a_model_without_parameters_has_empty_groups() -> None:
    assert group_parameters(nn.ReLU()) == ParameterGroups((), (), ())
    optimizers = build_optimizers(nn.ReLU(), OptimizerConfig())
    optimizers.step()
    assert optimizers.state_tensors() == {}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_decay_is_on_hidden_matrices_only(name: str) -> None:
    model = _model(torch.float64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = OptimizerConfig(name=name, weight_decay=0.1, muon_lr=0.5, lr=0.25)
    optimizers = build_optimizers(model, config)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizers.step()
    groups = group_parameters(model)
    kept = 1 - 0.1 * (0.5 if name == "muon" else 0.25)
    for name, param in model.named_parameters():
        factor = 1.0 if name in groups.rest else kept
        torch.testing.assert_close(param.detach(), factor * before[name], rtol=1e-15, atol=0)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = _model()
    groups = group_parameters(model)
    optimizers = build_optimizers(model, OptimizerConfig(name="muon"))
    taken = {
        name: [group["param_names"] for group in part.param_groups] for name, part in optimizers.parts.items()
    }
    assert taken == {"muon": [list(groups.matrices), list(groups.fused_pairs)], "adamw": [list(groups.rest)]}
    assert [group["splits"] for group in optimizers.parts["muon"].param_groups] == [1, 2]


def test_adamw_takes_the_experts_when_asked_and_muon_keeps_the_other_matrices() -> None:
    optimizers = build_optimizers(_model(), OptimizerConfig(expert_optimizer="adamw", weight_decay=0.1))
    muon = [name for group in optimizers.parts["muon"].param_groups for name in group["param_names"]]
    assert muon == list(
        _layers("attention.q_proj.weight", "mlp.down_proj.weight") + _layers("mlp.gate_up_proj.weight")
    )
    decayed = optimizers.parts["adamw"].param_groups[0]
    assert decayed["param_names"] == list(_layers("experts.down_proj") + _layers("experts.gate_up_proj"))
    assert decayed["weight_decay"] == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_for_all_equals_plain_formulas(dtype: torch.dtype) -> None:
    """Decoupled decay and bias-corrected moments (Loshchilov and Hutter 2019, algorithm 2), two steps."""
    config = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-6)
    model = _model(dtype)
    optimizers = build_optimizers(model, config)
    assert list(optimizers.parts) == ["adamw"]
    matrices = {*group_parameters(model).matrices, *group_parameters(model).fused_pairs}
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in (1, 2):
        optimizers.zero_grad()
        _backward(model, step)
        for name, param in model.named_parameters():
            first[name] = 0.8 * first[name] + 0.2 * param.grad
            second[name] = 0.9 * second[name] + 0.1 * param.grad**2
            update = (first[name] / (1 - 0.8**step)) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            decay = 0.1 if name in matrices else 0.0
            expected[name] = (1 - 0.01 * decay) * expected[name] - 0.01 * update
        optimizers.step()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.detach(), expected[name], rtol=tolerance, atol=tolerance)


def test_adamw_is_fused_on_the_cpu() -> None:
    assert build_optimizers(_model(), OptimizerConfig()).parts["adamw"].param_groups[0]["fused"] is True


def test_lr_scale_multiplies_each_groups_own_rate() -> None:
    optimizers = build_optimizers(_model(), OptimizerConfig(muon_lr=0.04, lr=0.01))
    for scale in (0.5, 0.25):  # the second must not build on the first
        optimizers.set_lr_scale(scale)
        rates = {name: {g["lr"] for g in part.param_groups} for name, part in optimizers.parts.items()}
        assert rates == {"muon": {0.04 * scale}, "adamw": {0.01 * scale}}


def test_zero_grad_drops_or_zeroes() -> None:
    model = _model()
    optimizers = build_optimizers(model, OptimizerConfig())
    _backward(model, 0)
    optimizers.zero_grad(set_to_none=False)
    assert all(param.grad.eq(0).all() for param in model.parameters())
    optimizers.zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_state_is_keyed_by_parameter_name_and_complete_before_the_first_step() -> None:
    model = _model()
    optimizers = build_optimizers(model, OptimizerConfig())
    groups = group_parameters(model)
    expected = {f"muon/{name}/momentum_buffer" for name in groups.matrices + groups.fused_pairs}
    expected |= {f"adamw/{name}/{key}" for name in groups.rest for key in ("step", "exp_avg", "exp_avg_sq")}
    assert optimizers.state_tensors().keys() == expected
    _train(model, optimizers, range(2))
    assert optimizers.state_tensors().keys() == expected
    assert optimizers.state_tensors()["adamw/embed.weight/step"] == 2


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [False, True])
def test_resumed_training_continues_bit_for_bit(tmp_path: Path, name: str, tied: bool) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.1)
    straight = _model(tied=tied)
    _train(straight, build_optimizers(straight, config), range(6))

    first = _model(tied=tied)
    optimizers = build_optimizers(first, config)
    _train(first, optimizers, range(3))
    tensors = {"model": first.state_dict(), "optimizer": optimizers.state_tensors()}
    saved = read_checkpoint(write_checkpoint(tmp_path / "step-00000003", tensors, {"step": 3}))

    second = Model(tied)
    second.load_state_dict(saved.tensors["model"])
    resumed = build_optimizers(second, config)
    resumed.load_state_tensors(saved.tensors["optimizer"])
    _train(second, resumed, range(3, 6))
    for (key, expected), found in zip(
        straight.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), key


def test_state_of_another_model_is_refused_and_nothing_changed() -> None:
    model = _model()
    optimizers = build_optimizers(model, OptimizerConfig())
    saved = {key: value + 1 for key, value in optimizers.state_tensors().items()}
    del saved["adamw/embed.weight/exp_avg"]
    saved["adamw/other.weight/exp_avg"] = torch.zeros(1)
    missing, unknown = (
        r"1 missing \(first adamw/embed.weight/exp_avg\)",
        r"1 unknown \(first adamw/other.weight",
    )
    with pytest.raises(CheckpointError, match=f"{missing}, {unknown}"):
        optimizers.load_state_tensors(saved)
    assert all(value.eq(0).all() for value in optimizers.state_tensors().values())


def test_state_of_another_optimizer_is_refused() -> None:
    muon = build_optimizers(_model(), OptimizerConfig(name="muon"))
    adamw = build_optimizers(_model(), OptimizerConfig(name="adamw"))
    with pytest.raises(CheckpointError, match="of another model or optimizer"):
        adamw.load_state_tensors(muon.state_tensors())


@pytest.mark.parametrize("other", [torch.zeros(V, D + 1), torch.zeros(V, D, dtype=torch.float64)])
def test_state_of_another_shape_or_dtype_is_refused(other: Tensor) -> None:
    optimizers = build_optimizers(_model(), OptimizerConfig())
    saved = dict(optimizers.state_tensors())
    saved["adamw/embed.weight/exp_avg"] = other
    with pytest.raises(CheckpointError, match=r"embed.weight/exp_avg is float\d+ \[10, \d\]"):
        optimizers.load_state_tensors(saved)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_gradient_that_is_not_finite_is_named(bad: float) -> None:
    model = _model()
    assert first_nonfinite_gradient(model) is None
    _backward(model, 0)
    assert first_nonfinite_gradient(model) is None
    model.layers[1].experts.down_proj.grad[2, 0, 0] = bad
    model.lm_head.weight.grad[0, 0] = bad
    assert first_nonfinite_gradient(model) == "layers.1.experts.down_proj"
    assert not gradient_norm(model.parameters()).isfinite()
