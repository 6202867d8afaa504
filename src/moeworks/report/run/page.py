"""The page: everything about a run in one HTML file that needs nothing else, not even a network."""

from moeworks.analyse.verdicts.words import plural
from moeworks.report.fragments import Panel, card, details, escape, grid, section
from moeworks.report.run import tables
from moeworks.report.run.alarms import alarm_section
from moeworks.report.run.heat_maps import load_windows
from moeworks.report.run.names import layer_names
from moeworks.report.run.panels import (
    balance_panels,
    domain_panel,
    engine_panels,
    learning_panels,
    load_panel,
)
from moeworks.report.run.run_data import RunData
from moeworks.report.run.verdicts import judge_run
from moeworks.report.shell import PageWords, asset, fill_page
from moeworks.report.verdict import verdict_list


def _subtitle(run: RunData) -> str:
    model = run.config.model
    layers = plural(model.num_layers, "layer")
    if not run.moe_layers:
        return (
            f"A dense language model of {layers}: it has no Mixture-of-Experts layer, so nothing is routed."
        )
    which = "each" if len(run.moe_layers) == model.num_layers else str(len(run.moe_layers))
    return (
        f"A Mixture-of-Experts language model: {which} of its {layers} has"
        f" {plural(model.moe.num_routes, 'expert')},"
        f" and every token visits {model.router.top_k} of them in each."
    )


def _slider(count: int) -> str:
    """Play button and slider; nothing where there is only one position."""
    if count < 2:
        return ""
    return (
        '<div class="controls"><button type="button" class="play" data-for="load">▶ Play</button>'
        '<label for="load-slider">Training step</label>'
        f'<input type="range" id="load-slider" class="frames" data-for="load" min="0" max="{count - 1}"'
        f' value="{count - 1}"><output for="load-slider" aria-live="polite"></output></div>'
    )


def _layer_list(run: RunData) -> str:
    options = "".join(
        f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(layer_names(run))
    )
    return (
        '<div class="controls"><label for="domains-layer">Layer</label>'
        f'<select id="domains-layer" class="frames" data-for="domains">{options}</select></div>'
    )


def _load_section(run: RunData) -> tuple[str, list[Panel]]:
    windows = load_windows(run)
    if not run.moe_layers or not windows:
        return "", []
    panel = load_panel(run, windows)
    after = f"<h4>The last stretch, {windows[-1].steps}</h4>{tables.load_table(run, windows[-1]).html()}"
    intro = "Load compares the work of an expert with its fair share. Where all do the same, each is at 1."
    return section("work", "Load", intro, card(panel, _slider(len(windows)), after)), [panel]


def _domain_section(run: RunData) -> tuple[str, list[Panel]]:
    """Validation by domain, and the experts that each domain uses."""
    found = tables.domain_table(run)
    scores = ""
    if found is not None:
        scores = f'<div class="card wide"><h3>How hard is each kind of text?</h3>{found.html()}</div>'
    intro = "A domain is a kind of text: a folder or a file type of the data. All numbers are on unseen text."
    panel = domain_panel(run)
    if panel is None:
        return section("domain", "Domains", intro, scores), []
    chart = card(panel, _layer_list(run), tables.favourite_tables(run))
    return section("domain", "Domains", intro, chart, scores), [panel]


def _sample_section(run: RunData) -> str:
    if run.summary is None:
        return ""
    intro = (
        "The model continued the marked prompt. It imitates its training text; it does not know what is true."
    )
    return section("sample", "A sample", intro, tables.sample(run.summary))


def _body(run: RunData) -> tuple[str, list[Panel]]:
    """The sections in reading order, and the figures that they hold."""
    learning, balance, engine = learning_panels(run), balance_panels(run), engine_panels(run)
    load, load_panels = _load_section(run)
    domain, domain_panels = _domain_section(run)
    sections = [
        section("words", "In words", tables.setting_line(run), verdict_list(judge_run(run))),
        alarm_section(run),
        asset("guide.html") if run.moe_layers else "",
        section("learning", "Learning", "", grid(learning) if learning else ""),
        load,
        section("balance-title", "Balance over training", "", grid(balance) if balance else ""),
        domain,
        _sample_section(run),
        section("engine", "Under the hood", "", grid(engine) if engine else ""),
        section("config", "Configuration", "", details("Show every field", tables.config_table(run))),
    ]
    return "".join(sections), [*learning, *load_panels, *balance, *domain_panels, *engine]


def build_page(run: RunData) -> str:
    """The HTML of the report of `run`."""
    body, panels = _body(run)
    return fill_page(
        PageWords(
            kind="Training report",
            state="finished" if run.summary else "not finished",
            title=run.name,
            subtitle=_subtitle(run),
            footer=tables.machine_line(run),
        ),
        tables.headline(run),
        body,
        panels,
    )
