"""What uniform routing touches: experts of a batch, devices of a token, bytes between devices.

Uniform means that every set of top_k routes is equally likely, and tokens choose independently. Trained
routers are less even, and a batch of one text touches fewer experts; a routing trace tells by how much.
"""

from dataclasses import dataclass
from math import comb

from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.errors import check

MOST_ROUTES = 2**17
"""Hundreds of times what published routers have: binomials of more would take minutes."""


def expected_experts_touched(
    num_experts: int, top_k: int, tokens: int, num_routes: int | None = None
) -> float:
    """Expected number of experts that at least one of `tokens` tokens uses: E (1 - (1 - K/R)^B).

    R is `num_routes`, which counts zero-computation experts too; None means num_experts. Exact for uniform
    routing: a token misses an expert with probability 1 - K/R.

    >>> round(expected_experts_touched(256, 8, 4), 1)
    30.5
    """
    routes = num_experts if num_routes is None else num_routes
    check(0 <= top_k <= routes, "top_k", top_k, f"must lie between 0 and the number of routes, {routes}")
    check(tokens >= 0, "tokens", tokens, "must not be negative")
    return num_experts * (1.0 - (1.0 - top_k / routes) ** tokens)


def shares(total: int, parts: int) -> list[int]:
    """`total` things over `parts` places in order, whose sizes differ by at most one; the larger ones first.

    >>> shares(7, 3)
    [3, 2, 2]
    """
    check(parts >= 1, "devices", parts, "must be at least 1")
    size, larger = divmod(total, parts)
    return [size + 1] * larger + [size] * (parts - larger)


def expected_devices(router: RouterConfig, devices: int, *, limited: bool = True) -> float:
    """Expected number of distinct devices that hold a token's experts, exactly, under uniform routing.

    Experts lie on the devices in order, `shares` of them each. Without groups, equal shares give
    D (1 - C(E - E/D, K) / C(E, K)). With `limited`, a token first draws top_k_groups of the router's groups
    and then its experts inside them (DeepSeek-V2, section 2.1.3; V3, section 2.1.2): devices need not be
    the groups. Zero-computation experts lie on no device.

    >>> round(expected_devices(RouterConfig(num_experts=256, top_k=8), 8), 3)
    5.295
    """
    routes = router.num_routes
    check(routes <= MOST_ROUTES, "router.num_experts", routes, f"exceeds {MOST_ROUTES:,}")
    groups, keep = (router.num_groups, router.top_k_groups) if limited else (1, 1)
    size = router.num_routes // groups
    hit, first = 0.0, 0
    missed: dict[tuple[int, ...], float] = {}  # devices that lie alike in their groups are alike
    for held in shares(router.num_experts, min(devices, router.num_experts)):
        in_groups = _overlaps(first, held, size)
        if in_groups not in missed:
            missed[in_groups] = _missed(in_groups, groups, keep, size, router.top_k)
        hit += 1.0 - missed[in_groups]
        first += held
    return hit


def _overlaps(first: int, held: int, size: int) -> tuple[int, ...]:
    """How many of the experts first .. first + held - 1 lie in each group of `size` that has some."""
    counts: list[int] = []
    end = first + held
    while first < end:
        step = min(end, (first // size + 1) * size) - first
        counts.append(step)
        first += step
    return tuple(counts)


def _missed(in_groups: tuple[int, ...], groups: int, keep: int, size: int, top_k: int) -> float:
    """Probability that a token uses none of a device's experts, which lie in these numbers in some groups."""
    ways = {(0, 0): 1}  # (groups drawn, experts of the device in them): number of draws
    for count in in_groups:
        drawn = {(used + 1, held + count): number for (used, held), number in ways.items()}
        ways = {key: ways.get(key, 0) + drawn.get(key, 0) for key in ways.keys() | drawn.keys()}
    others, open_experts = groups - len(in_groups), keep * size
    missing = sum(
        number * comb(others, keep - used) * comb(open_experts - held, top_k)
        for (used, held), number in ways.items()
        if used <= keep
    )
    return missing / (comb(groups, keep) * comb(open_experts, top_k))


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What expert parallelism sends over `places` places (devices or nodes) that share the experts."""

    places: int
    per_token: float
    """Expected distinct places of a token's experts, with the router's limit."""
    per_token_unlimited: float
    """Expected distinct places of a token's experts, for a router without groups."""
    limit: int
    """Most places that a token can use: top_k, or what the kept groups lie on."""
    bytes_per_token_layer: float
    """Bytes sent per token and MoE layer, dispatch and combine, without the local share."""
    bytes_per_token_layer_unlimited: float
    bytes_per_token_layer_per_expert: float
    """Bytes sent per token and MoE layer when every chosen expert gets a copy of its own."""
    bytes_per_token: float
    """Bytes sent per token over all MoE layers, with the router's limit."""


def expert_traffic(
    model: ModelConfig, places: int, dispatch_bytes: float = 2, combine_bytes: float = 2
) -> Traffic:
    """Traffic of one token of `model` whose routed experts lie on `places` places; bytes per value as given.

    Per layer n d (dispatch + combine), n the expected distinct places other than the token's own, which is
    any of them with equal probability: n = expected_devices (1 - 1/places). A token goes once to each place,
    and one sum comes back (DeepSeek-V3, section 3.2.2).
    """
    router, width = model.router, model.d_model * (dispatch_bytes + combine_bytes)
    remote = 1 - 1 / places
    limited = expected_devices(router, places)
    unlimited = expected_devices(router, places, limited=False)
    copies = router.top_k * router.num_experts / router.num_routes
    return Traffic(
        places=places,
        per_token=limited,
        per_token_unlimited=unlimited,
        limit=most_places(router, places),
        bytes_per_token_layer=limited * remote * width,
        bytes_per_token_layer_unlimited=unlimited * remote * width,
        bytes_per_token_layer_per_expert=copies * remote * width,
        bytes_per_token=limited * remote * width * len(model.moe_layers),
    )


def most_places(router: RouterConfig, places: int) -> int:
    """A bound on the places that one token uses: its top_k experts', and those of its top_k_groups groups."""
    size, groups = router.num_routes // router.num_groups, router.num_groups
    spans, first = [0] * groups, 0
    for held in shares(router.num_experts, min(places, router.num_experts)):
        for group in range(first // size, (first + held - 1) // size + 1):
            spans[group] += 1
        first += held
    # Experts lie in order: neighbouring groups may share a place, so the widest groups give a bound.
    widest = sorted(spans, reverse=True)[: router.top_k_groups]
    return min(router.top_k, places, sum(widest))
