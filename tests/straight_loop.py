"""A MoE layer and a decoder as straight loops: one token, one expert, one head, one position at a time.

Written from the definitions and sharing no code with moeworks.ops: the tests hold every option of the
library, and every gradient, against it in float64. `weights` is a module's parameters and buffers by name.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeworks import ModelConfig, MoEConfig

Weights = dict[str, Tensor]


@dataclass
class Record:
    """What the loops decided, token by token."""

    ids: list[list[int]] = field(default_factory=list)
    unbiased_ids: list[list[int]] = field(default_factory=list)
    weights: list[list[Tensor]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)
    noise_std: list[Tensor | None] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    kept: list[list[bool]] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)

    @property
    def num_experts(self) -> int:
        return len(self.probs[0])

    @property
    def top_k(self) -> int:
        return len(self.ids[0])


def named_weights(module: torch.nn.Module) -> Weights:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def under(weights: Weights, prefix: str) -> Weights:
    """The weights whose names start with `prefix` and a dot, without it."""
    return {
        name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")
    }


def moe(
    x: Tensor,
    weights: Weights,
    config: MoEConfig,
    *,
    training: bool = True,
    valid: list[bool] | None = None,
    sequences: list[int] | None = None,
    jitter: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Record]:
    """One MoE layer over the rows of x; `jitter` and `noise` are the random numbers that it drew."""
    record = Record(valid=valid or [True] * len(x), sequences=sequences or [0] * len(x))
    # Padding counts as zeros, whatever it holds.
    x = torch.stack([token if there else 0 * token for token, there in zip(x, record.valid, strict=True)])
    for t in range(len(x)):
        scaled = x[t] if jitter is None else x[t] * jitter[t]
        route_token(scaled, under(weights, "router"), config, None if noise is None else noise[t], record)
    record.kept = keep(record, config, config.capacity_factor if training else config.eval_capacity_factor)
    rows = []
    for t in range(len(x)):
        y = torch.zeros_like(x[t])
        for slot in range(config.top_k):
            if record.kept[t][slot]:
                y = y + mixed(x[t], record.ids[t][slot], record.weights[t][slot], weights, config)
        rows.append(y + shared(x[t], weights, config))
    return torch.stack(rows), record


def route_token(x: Tensor, router: Weights, config: MoEConfig, noise: Tensor | None, record: Record) -> None:
    """Append one token's decision to the record."""
    logits = [torch.dot(row, x) for row in router["weight"]]
    if "bias" in router:
        logits = [logit + b for logit, b in zip(logits, router["bias"], strict=True)]
    clean, std = logits, None
    if noise is not None:
        std = [torch.log1p(torch.exp(torch.dot(row, x))) for row in router["noise_weight"]]
        logits = [logit + n * s for logit, n, s in zip(logits, noise, std, strict=True)]
    probs = scores(logits, config)
    bias = router.get("expert_bias", torch.zeros(len(logits)))
    raw = [v.item() for v in (probs if config.score_order == "before_top_k" else logits)]
    ids = choose([r + float(b) for r, b in zip(raw, bias, strict=True)], config)
    record.ids.append(ids)
    record.unbiased_ids.append(choose(raw, config))
    record.weights.append(mixing_weights([logits[e] for e in ids], [probs[e] for e in ids], config))
    record.logits.append(torch.stack(logits))
    record.clean.append(torch.stack(clean))
    record.noise_std.append(None if std is None else torch.stack(std))
    record.probs.append(torch.stack(probs))


def scores(logits: list[Tensor], config: MoEConfig) -> list[Tensor]:
    if config.score == "sigmoid":
        return [1 / (1 + torch.exp(-logit)) for logit in logits]
    if config.score == "sqrtsoftplus":
        return [torch.sqrt(torch.log1p(torch.exp(logit))) for logit in logits]
    return softmax(logits)


def softmax(logits: list[Tensor]) -> list[Tensor]:
    total = sum(torch.exp(logit) for logit in logits)
    return [torch.exp(logit) / total for logit in logits]


def choose(values: list[float], config: MoEConfig) -> list[int]:
    """The top_k best ids, ties to the lower one, from the best groups only."""
    size = len(values) // config.num_groups
    group_scores = []
    for g in range(config.num_groups):
        members = sorted(values[g * size : (g + 1) * size], reverse=True)
        group_scores.append(members[0] if config.group_score == "max" else sum(members[:2]))
    groups = ranked(group_scores)[: config.top_k_groups] if config.num_groups > 1 else [0]
    return [e for e in ranked(values) if e // size in groups][: config.top_k]


def ranked(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def mixing_weights(logits: list[Tensor], probs: list[Tensor], config: MoEConfig) -> list[Tensor]:
    if config.score_order == "after_top_k":
        chosen = softmax(logits)
    elif config.renormalize:
        chosen = [p / (sum(probs) + config.renormalize_eps) for p in probs]
    else:
        chosen = probs
    return [config.routing_scale * w for w in chosen]


def keep(record: Record, config: MoEConfig, factor: float | None) -> list[list[bool]]:
    """Which assignments are computed: none of padding, and no more than capacity of any expert."""
    kept = [[valid] * config.top_k for valid in record.valid]
    if factor is None:
        return kept
    tokens = sum(record.valid)
    exact = factor * tokens * config.top_k / record.num_experts
    capacity = min(max(math.ceil(exact - 1e-9), config.min_capacity), tokens)
    for expert in range(record.num_experts):
        asking = [
            (t, s)
            for t, ids in enumerate(record.ids)
            for s, e in enumerate(ids)
            if e == expert and record.valid[t]
        ]
        if config.drop_policy == "probability":
            asking.sort(key=lambda ts: -record.probs[ts[0]][expert].item())
        for t, s in asking[capacity:]:
            kept[t][s] = False
    return kept


def mixed(x: Tensor, expert: int, weight: Tensor, weights: Weights, config: MoEConfig) -> Tensor:
    """What one chosen expert adds to its token."""
    if expert >= config.num_experts + config.num_identity_experts:
        return torch.zeros_like(x)
    if expert >= config.num_experts:
        return weight * x
    parts = {name: w[expert] for name, w in under(weights, "experts").items()}
    if config.weights_on == "input":
        return feed_forward(weight * x, parts, config.activation)
    return weight * feed_forward(x, parts, config.activation)


def shared(x: Tensor, weights: Weights, config: MoEConfig) -> Tensor:
    if not config.num_shared_experts:
        return torch.zeros_like(x)
    y = feed_forward(x, linear_names(under(weights, "shared")), config.activation)
    if config.shared_token_gate:
        y = y / (1 + torch.exp(-torch.dot(weights["shared_token_gate.weight"][0], x)))
    return y


def linear_names(weights: Weights) -> Weights:
    """A dense block's "up_proj.weight" and "up_proj.bias" under the experts' names."""
    renamed = {name.removesuffix(".weight"): w for name, w in weights.items() if name.endswith(".weight")}
    return renamed | {n.replace("_proj.bias", "_bias"): w for n, w in weights.items() if n.endswith(".bias")}


def feed_forward(x: Tensor, parts: Weights, activation: str) -> Tensor:
    name = "gate_up" if activation in ("swiglu", "geglu") else "up"
    hidden = affine(x, parts[f"{name}_proj"], parts.get(f"{name}_bias"))
    if name == "gate_up":
        half = len(hidden) // 2
        act = [nonlinear(hidden[i], activation) * hidden[half + i] for i in range(half)]
    else:
        act = [nonlinear(h, activation) for h in hidden]
    return affine(torch.stack(act), parts["down_proj"], parts.get("down_bias"))


def affine(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    y = torch.stack([torch.dot(row, x) for row in matrix])
    return y if bias is None else y + bias


def nonlinear(h: Tensor, activation: str) -> Tensor:
    if activation == "swiglu":
        return h / (1 + torch.exp(-h))
    if activation in ("geglu", "gelu"):
        return h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    positive = h if h > 0 else 0 * h
    return positive * positive if activation == "relu2" else positive


def decoder(
    tokens: list[list[int]],
    weights: Weights,
    config: ModelConfig,
    *,
    documents: list[list[int]],
    valid: list[list[bool]],
) -> tuple[list[list[Tensor]], list[Record]]:
    """Logits by row and position, and the record of each MoE layer."""
    stream = [[weights["embed.weight"][token] for token in row] for row in tokens]
    places = [(b, i) for b, row in enumerate(tokens) for i in range(len(row))]
    names = {pair: n for n, pair in enumerate(sorted({(b, documents[b][i]) for b, i in places}))}
    records = []
    for layer in range(config.num_layers):
        block = under(weights, f"layers.{layer}")
        for b, row in enumerate(stream):
            normed = [rms_norm(x, block["attention_norm.weight"], config.norm_eps) for x in row]
            attended = attention(normed, documents[b], under(block, "attention"), config)
            stream[b] = [x + a for x, a in zip(row, attended, strict=True)]
        normed = {
            (b, i): rms_norm(stream[b][i], block["mlp_norm.weight"], config.norm_eps) for b, i in places
        }
        mlp = under(block, "mlp")
        if layer in config.moe_layers:
            y, record = moe(
                torch.stack([normed[p] for p in places]),
                mlp,
                config.moe,
                valid=[valid[b][i] for b, i in places],
                sequences=[names[b, documents[b][i]] for b, i in places],
            )
            records.append(record)
        else:
            y = [feed_forward(normed[p], linear_names(mlp), config.mlp.mlp_activation) for p in places]
        for (b, i), added in zip(places, y, strict=True):
            stream[b][i] = stream[b][i] + added
    head = weights.get("lm_head.weight", weights["embed.weight"])
    final = weights["final_norm.weight"]
    logits = [[affine(rms_norm(x, final, config.norm_eps), head) for x in row] for row in stream]
    return logits, records


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean() + eps)


def attention(row: list[Tensor], documents: list[int], weights: Weights, config: ModelConfig) -> list[Tensor]:
    """Causal attention of one sequence, head by head."""
    heads, kv_heads, width = config.attention.num_heads, config.attention.num_kv_heads, config.head_dim
    q, k, v = (
        [affine(x, weights[f"{n}_proj.weight"], weights.get(f"{n}_proj.bias")).split(width) for x in row]
        for n in "qkv"
    )
    turned = {}
    for name, projected in (("q", q), ("k", k)):
        for i, parts in enumerate(projected):
            for h, part in enumerate(parts):
                if config.attention.qk_norm:
                    part = rms_norm(part, weights[f"{name}_norm.weight"], config.norm_eps)
                turned[name, i, h] = rotate(part, i, config.attention.rope_theta)
    out = []
    for i in range(len(row)):
        parts = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            seen = [
                j for j in range(i + 1) if documents[j] == documents[i] or not config.attention.mask_documents
            ]
            share = softmax(
                [torch.dot(turned["q", i, h], turned["k", j, g]) / math.sqrt(width) for j in seen]
            )
            parts.append(sum(p * v[j][g] for p, j in zip(share, seen, strict=True)))
        out.append(affine(torch.cat(parts), weights["o_proj.weight"]))
    return out


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Turn the pairs (i, i + P/2) by position * theta^(-2i/P)."""
    half = len(x) // 2
    y = [None] * len(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        cos, sin = (torch.tensor(f(angle), dtype=x.dtype) for f in (math.cos, math.sin))
        y[i] = x[i] * cos - x[half + i] * sin
        y[half + i] = x[half + i] * cos + x[i] * sin
    return torch.stack(y)
