"""docs/routers.md says what there is, and its example runs."""

import re
import shlex
from pathlib import Path
from typing import get_args

import torch

from moeworks import BalanceConfig, balance_losses
from moeworks.cli.arguments import run_config
from moeworks.config import BalanceConfig as Balance
from moeworks.config import CapacityConfig, ChoiceConfig, CustomChoice, ModelConfig, RouterConfig
from moeworks.models.decoder import Decoder
from moeworks.trace import token_columns
from moeworks.trace.record import model_header, record

PAGE = (Path(__file__).parent.parent / "docs" / "routers.md").read_text("utf-8")


def run_example(text: str) -> dict:
    """The names that the one example with `text` in it leaves behind."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if text in code]
    assert len(code.splitlines()) <= 24
    names: dict = {}
    exec(compile(code, "routers.md", "exec"), names)
    return names


def test_every_choice_is_in_the_table():
    header, *named = re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)
    assert header == "choice"
    assert named == [member.kind.replace("_", "-") for member in get_args(ChoiceConfig)]


def test_options_and_commands_are_real():
    known = {"router": RouterConfig(), "balance": Balance(), "capacity": CapacityConfig()}
    for group, name in re.findall(r"`(router|balance|capacity)\.(\w+)", PAGE):
        assert hasattr(known[group], name), name
    for line in re.findall(r"^    moeworks (?:train|config) ([^#\n]*)", PAGE, re.MULTILINE):
        router = run_config(shlex.split(line), "p").model.router
        assert router.pools if "pools" in line else router.choice.kind in line.replace("-", "_")


def test_the_router_of_ones_own_runs_and_gets_losses_and_traces():
    names = run_example("class Nearest")
    _, routing = names["moe"](torch.randn(2, 7, 64))
    balance_losses([routing], BalanceConfig(switch_coef=1.0))["switch"].backward()
    assert names["moe"].router.route.centres.grad.any()
    config = ModelConfig(
        vocab_size=50, d_model=16, router=RouterConfig(num_experts=4, choice=CustomChoice(name="nearest"))
    )
    model = Decoder(config).eval()
    output = model(torch.randint(50, (2, 7)))
    block = record(output.routings, token_columns(14), model_header(config))
    assert block.layers[0].ids.shape == (14, 2)


def test_soft_moe_runs_and_its_record_is_as_said():
    names = run_example("SoftMoE")
    y, mixing = names["y"], names["mixing"]
    assert mixing.expert_shares().shape == (8,) and mixing.tokens_per_slot().shape == (4, 8, 2)
    assert mixing.dispatch_TEC.shape == mixing.combine_TEC.shape == (80, 8, 2)
    assert not y[~names["valid"]].any() and y[names["valid"]].all()
