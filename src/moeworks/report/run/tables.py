"""Tables and small blocks of the page, as HTML."""

import html
import json

import numpy as np

from moeworks.analyse.verdicts.training import NEARLY_UNUSED
from moeworks.analyse.verdicts.words import duration, percent, short_number
from moeworks.config.count import count_parameters
from moeworks.config.explain import explain
from moeworks.report.fragments import escape, table, tile, tile_list
from moeworks.report.run.heat_maps import LoadWindow, domain_shares, drawn_domains
from moeworks.report.run.names import expert_names, layer_names
from moeworks.report.run.run_data import RunData, Summary
from moeworks.report.table import Table

_FAVOURITES = 3


def _parameters(run: RunData) -> tuple[int, int]:
    if run.summary is not None:
        return run.summary.total_parameters, run.summary.active_parameters
    counted = count_parameters(run.config.model)
    return counted.total, counted.active


def _parameter_tiles(run: RunData) -> str:
    total, active = _parameters(run)
    if not run.moe_layers:
        return tile(
            short_number(total), "parameters", "Numbers that were learned. Every token uses all of them."
        )
    everything = tile(
        short_number(total), "parameters", "Numbers that were learned, in all experts together."
    )
    words = "Those that work on any one token. They set the cost; the total sets the memory."
    return everything + tile(short_number(active), "active parameters", words)


def _progress(run: RunData) -> tuple[int, float] | None:
    """Tokens and seconds."""
    if run.summary is not None:
        return run.summary.tokens, run.summary.seconds
    return (run.train[-1].tokens, run.train[-1].seconds) if run.train else None


def headline(run: RunData) -> str:
    """The numbers that count, each with a sentence that says what it is."""
    tiles = []
    if run.last_eval is not None:
        read = f" ({run.last_eval.tokens:,} tokens)" if run.last_eval.tokens else ""
        which = f"all unseen text{read}" if run.summary is not None else f"a part of the unseen text{read}"
        words = f"What the model needs to write down {which}. Lower is better: 8 is knowing nothing, 0 all."
        name = "bits per byte" if run.summary is not None else f"bits per byte at step {run.last_eval.step:,}"
        tiles.append(tile(f"{run.last_eval.bits_per_byte:.3f}", name, words))
    tiles.append(_parameter_tiles(run))
    if (progress := _progress(run)) is not None:
        tokens, seconds = progress
        tiles.append(
            tile(
                short_number(tokens), "tokens seen", "Pieces of text, a few letters each, that it trained on."
            )
        )
        tiles.append(tile(duration(seconds), "time", "How long it trained, validations aside."))
        if seconds > 0:
            speed = short_number(tokens / seconds)
            tiles.append(tile(speed, "tokens per second", "Tokens seen divided by that time."))
    return tile_list(tiles)


def load_table(run: RunData, window: LoadWindow) -> Table:
    """Busiest, quietest and nearly unused experts of each layer in one stretch of training."""
    names = expert_names(run, window.load.shape[1])
    rows: list[tuple[object, ...]] = []
    for layer, load in zip(layer_names(run), window.load, strict=True):
        if np.isnan(load).any():
            rows.append((layer, "no tokens", "", "", ""))
            continue
        busiest, quietest = int(load.argmax()), int(load.argmin())
        rows.append((
            layer,
            f"{names[busiest]} ({load[busiest]:.2f})",
            f"{names[quietest]} ({load[quietest]:.2f})",
            int((load < NEARLY_UNUSED).sum()),
            f"{load.max() - 1:.2f}",
        ))  # fmt: skip
    header = ("layer", "busiest expert (load)", "quietest expert (load)", "nearly unused", "MaxVio")
    return Table(f"Load by layer, {window.steps}", header, rows, words=3)


def domain_table(run: RunData) -> Table | None:
    """Bits per byte of each domain, the easiest first."""
    if run.last_eval is None or not run.last_eval.domains:
        return None
    domains = sorted(run.last_eval.domains.items(), key=lambda item: item[1].bits_per_byte)
    rows = [(name, f"{e.bits_per_byte:.3f}", f"{e.bytes:,}", f"{e.tokens:,}") for name, e in domains]
    return Table("Validation by domain", ("domain", "bits per byte", "bytes", "tokens"), rows)


def favourite_tables(run: RunData) -> str:
    """For each MoE layer a table of the experts that work most on each domain; the page shows one layer."""
    domains = drawn_domains(run)
    if run.summary is None or not domains:
        return ""
    shares = domain_shares(run.summary.domain_tokens_per_expert, domains)
    names = expert_names(run, shares.shape[-1])
    tables = []
    for layer, shares_of_layer in zip(layer_names(run), shares, strict=True):
        rows = [(name, *_favourites(row, names)) for name, row in zip(domains, shares_of_layer, strict=True)]
        header = ("domain", "most", "second", "third")[: len(rows[0])]
        content = table(f"Experts that work most on each domain, {layer}", header, rows)
        tables.append(f'<div class="by-layer"{" hidden" if tables else ""}>{content}</div>')
    baseline = (
        f"Expert and its share of the domain. Spread evenly, each would have {percent(1 / len(names))}."
    )
    return f"<h4>Experts that work most on each domain</h4><p>{baseline}</p>{''.join(tables)}"


def _favourites(shares: np.ndarray, names: list[str]) -> list[str]:
    if np.isnan(shares).any():
        return ["no tokens"] + [""] * (min(_FAVOURITES, len(names)) - 1)
    best = np.argsort(-shares, kind="stable")[:_FAVOURITES]
    return [f"{names[i]} ({percent(shares[i])})" for i in best]


def sample(summary: Summary) -> str:
    """What the model wrote; the prompt stands out."""
    written = summary.sample_text.removeprefix(summary.sample_prompt)
    return f'<pre class="sample"><mark>{escape(summary.sample_prompt)}</mark>{escape(written)}</pre>'


def config_table(run: RunData) -> str:
    """Every field of the config and what it means."""
    rows = [(row.path, json.dumps(row.value), row.doc) for row in explain(run.config)]
    return table("Configuration", ("field", "value", "what it means"), rows)


def setting_line(run: RunData) -> str:
    """Model, batch, optimizer and machine in one line."""
    model, train, optimizer = run.config.model, run.config.train, run.config.optimizer
    parts = [f"{model.num_layers} layers of width {model.d_model}, vocabulary {model.vocab_size:,}"]
    if run.moe_layers:
        shared = f" + {model.shared.num_shared_experts} shared" if model.shared.num_shared_experts else ""
        parts.append(f"{model.router.num_experts} experts of width {model.experts.d_expert}{shared}")
        parts.append(f"top {model.router.top_k}")
    rate = f"{optimizer.name}, lr {optimizer.lr:g}"
    if optimizer.name == "muon":
        rate += f", matrices {optimizer.muon_lr:g}"
    parts += [f"{train.batch_size} × {train.seq_len} tokens a step", f"{rate}, {optimizer.schedule}"]
    device = train.device if run.summary is None else run.summary.machine.get("device", train.device)
    return " · ".join([*parts, f"{train.precision} on {device}"])


def machine_line(run: RunData) -> str:
    if run.summary is None:
        return ""
    return " · ".join(
        f"{html.escape(name)} {html.escape(value)}" for name, value in run.summary.machine.items()
    )
