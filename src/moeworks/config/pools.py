"""Pools: the experts that tokens of one type (a modality, a language, a domain) may have.

A pool is written as `0-3,6` or, with the name of its type, `text=0-3,6`; the type is its place in the list.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from moeworks.errors import ConfigError, check, nearest

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig

OTHERS = "*"
"""The name of the type of all domains that no other pool names."""

NAME_ONE = "; or name one for all texts with --domain"
"""Advice that eval and trace give for a domain without a pool."""

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Pool:
    """The experts of one type of token."""

    name: str | None
    """Name of the type; None where types are numbers alone."""
    experts: tuple[int, ...]
    """Ids of the experts, ascending."""


@lru_cache(maxsize=64)
def parse_pools(texts: tuple[str, ...]) -> tuple[Pool, ...]:
    """The pools that RouterConfig.pools spells. Raises ConfigError for a text that is no pool."""
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Pool:
    # Names of domains may hold an equals sign, ranges may not.
    name, equals, ranges = text.rpartition("=")
    check(name != "" or not equals, "router.pools", text, "has an empty name")
    experts: list[int] = []
    for part in ranges.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            raise ConfigError(
                f"router.pools = {text!r}: must be experts such as 0-3,6, or with a name, text=0-3,6"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        check(first <= last, "router.pools", text, f"{part.strip()!r} runs backwards")
        experts += range(first, last + 1)
    check(len(set(experts)) == len(experts), "router.pools", text, "names an expert twice")
    return Pool(name or None, tuple(sorted(experts)))


def check_pools(router: "RouterConfig") -> None:
    """Raise ConfigError for pools that the router cannot honour."""
    pools = parse_pools(router.pools)
    if not pools:
        return
    routes, top_k = router.num_routes, router.top_k
    for text, pool in zip(router.pools, pools, strict=True):
        last = pool.experts[-1]
        check(last < routes, "router.pools", text, f"names expert {last}; there are {routes}, from 0 on")
        count = len(pool.experts)
        rule = f"has {count} experts, fewer than top_k = {top_k}"
        check(top_k <= count, "router.pools", text, rule)
    idle = sorted(set(range(routes)).difference(*(pool.experts for pool in pools)))
    check(
        not idle, "router.pools", router.pools, f"no pool has the experts {idle}: no token could reach them"
    )
    names = [pool.name for pool in pools if pool.name is not None]
    check(
        len(names) in (0, len(pools)), "router.pools", router.pools, "must have names for all pools or none"
    )
    check(len(set(names)) == len(names), "router.pools", router.pools, "must have different names")
    check(
        router.choice.pooled,
        "router.pools",
        router.pools,
        f"must be empty with router.choice = {router.choice.kind!r}: {router.choice.no_pools}",
    )
    check(
        router.num_groups == 1,
        "router.num_groups",
        router.num_groups,
        "must be 1 with router.pools: the best groups may hold fewer than top_k experts of a token's pool",
    )


def check_named(router: "RouterConfig") -> None:
    """Raise ConfigError for pools without names: documents are matched to pools by domain name."""
    named = all(pool.name is not None for pool in parse_pools(router.pools))
    rule = "must have names of domains, NAME=0-3,6 ...: tokens are of the type of their document's domain"
    check(named, "model.router.pools", router.pools, rule)


def domain_types(
    router: "RouterConfig", domains: Sequence[str], *, every: bool = False, hint: str = ""
) -> tuple[int, ...]:
    """The type of the tokens of each domain; empty where the router has no pools.

    `every`: each pool must have a domain. Raises ConfigError for pools without names and for a domain that
    no pool is for; `hint` then says what else can be done.
    """
    pools = parse_pools(router.pools)
    if not pools:
        return ()
    types = tuple(type_named(router, domain, "domain of the data", hint) for domain in domains)
    for number, pool in enumerate(pools):
        found = not every or number in types
        rule = f"no document of the data is of the domain {pool.name!r}: its domains are {', '.join(domains)}"
        check(found, "router.pools", router.pools[number], rule)
    return types


def type_named(router: "RouterConfig", name: str, what: str = "domain", hint: str = "") -> int:
    """The type of a domain by its name. Raises ConfigError where no pool is for it."""
    pools = parse_pools(router.pools)
    check(len(pools) > 0, what, name, "needs a model whose experts are in pools (router.pools)")
    check_named(router)
    names = [pool.name or "" for pool in pools]
    if name in names:
        return names.index(name)
    rule = f"the model has no pool of experts for it; {nearest(name, names)}{hint}"
    check(OTHERS in names, what, name, rule)
    return names.index(OTHERS)
