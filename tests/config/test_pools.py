"""Pools in the config: how they are written, what they may not be, and which domain has which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config import (
    BalanceConfig,
    ExpertChoice,
    HashChoice,
    ModelConfig,
    PolicyGradientChoice,
    RouterConfig,
    RunConfig,
)
from moeworks.config.choices import ChoiceConfig, CustomChoice
from moeworks.config.codec import from_dict, to_dict
from moeworks.config.pools import domain_types, parse_pools, type_named
from moeworks.errors import ConfigError

NAMED = ("text=0-5", "image=4-7", "*=0,7")


def router(*pools: str, **options) -> RouterConfig:
    return RouterConfig(**dict(num_experts=8, pools=pools) | options)


def test_ranges_lists_and_names():
    assert router("0-3,6", "4-7").pool_experts == ((0, 1, 2, 3, 6), (4, 5, 6, 7))
    names = [pool.name for pool in parse_pools(("a=b=0-1", "math=2, 3"))]
    assert names == ["a=b", "math"]
    assert router().pool_experts == ()


@given(st.sets(st.integers(0, 30), min_size=1))
def test_what_is_written_is_what_is_read(experts):
    (pool,) = parse_pools((",".join(str(e) for e in sorted(experts)),))
    assert pool.experts == tuple(sorted(experts))


BAD = {
    r"router.pools = 'x': must be experts such as 0-3,6": ("x", "0-7"),
    r"router.pools = '0-': must be experts": ("0-", "0-7"),
    r"router.pools = '=0-7': has an empty name": ("=0-7",),
    r"router.pools = '3-1': '3-1' runs backwards": ("3-1", "0-7"),
    r"router.pools = '0-3,2': names an expert twice": ("0-3,2", "0-7"),
    r"router.pools = '4-8': names expert 8; there are 8, from 0 on": ("0-3", "4-8"),
    r"router.pools = '7': has 1 experts, fewer than top_k = 2": ("0-6", "7"),
    r"no pool has the experts \[3, 7\]: no token": ("0-2", "4-6"),
    r"must have names for all pools or none": ("a=0-3", "4-7"),
    r"must have different names": ("a=0-3", "a=4-7"),
}


@pytest.mark.parametrize("message", BAD)
def test_pools_that_are_none(message):
    with pytest.raises(ConfigError, match=message):
        router(*BAD[message])


def test_what_goes_not_with_pools():
    for choice, why in (
        (HashChoice(), "a function of ids and places"),
        (PolicyGradientChoice(), "drawn from the softmax of all logits"),
        (CustomChoice(name="mine"), "sees each token's type in context.token_types_T"),
    ):
        with pytest.raises(
            ConfigError, match=rf"must be empty with router.choice = '{choice.kind}': .*{why}"
        ):
            router("0-3", "4-7", choice=choice)
    with pytest.raises(ConfigError, match=r"router.num_groups = 2: must be 1 with router.pools"):
        router("0-3", "4-7", num_groups=2)
    with pytest.raises(ConfigError, match=r"'6-7': has 2 experts, fewer than top_k = 3"):
        router("0-5", "6-7", top_k=3, choice=ExpertChoice())
    unpooled = {m.kind for m in ChoiceConfig.__args__ if not m.pooled}
    assert unpooled >= {"hash", "random", "round_robin", "policy_gradient", "custom"}


def test_a_run_has_losses_that_know_pools():
    def run(*pools: str, **balance) -> RunConfig:
        return RunConfig(
            model=ModelConfig(router=router(*pools, selection_bias=True)), balance=BalanceConfig(**balance)
        )

    assert from_dict(RunConfig, to_dict(run(*NAMED))) == run(*NAMED)
    for name in ("device", "communication"):
        with pytest.raises(ConfigError, match=rf"balance.{name}_coef = 0.1: must be 0 with .*pools"):
            run(*NAMED, num_devices=2, **{f"{name}_coef": 0.1})
    with pytest.raises(ConfigError, match=r"balance.bias_rule = 'quantile': must be another with .*pools"):
        run(*NAMED, bias_rule="quantile")


def test_domains_and_their_types():
    config = router(*NAMED)
    assert domain_types(config, ("image", "poems", "text")) == (1, 2, 0)
    assert domain_types(router(), ("image",)) == ()
    assert type_named(config, "text") == 0
    strict = router("text=0-5", "image=4-7")
    with pytest.raises(ConfigError, match=r"domain of the data = 'imagee': .*did you mean 'image'\?; or"):
        domain_types(strict, ("imagee",), hint="; or else")
    with pytest.raises(ConfigError, match=r"router.pools = 'image=4-7': no document .* domains are text"):
        domain_types(strict, ("text",), every=True)
    with pytest.raises(ConfigError, match=r"domain = 'text': needs a model whose experts are in pools"):
        type_named(router(), "text")
    with pytest.raises(ConfigError, match=r"router.pools = .*: must have names of domains"):
        type_named(router("0-3", "4-7"), "text")
