"""The whole page, as a file."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moeworks.errors import DataError
from moeworks.report import write_report
from moeworks.report.run import page
from moeworks.report.run.run_data import read_run

RunMaker = Callable[..., Path]
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def payload(html: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def html(moe_run: Path) -> str:
    return page.build_page(read_run(moe_run))


def test_the_file_lies_in_the_run_directory_and_is_small(make_run: RunMaker) -> None:
    run_dir = make_run()
    before = set(run_dir.iterdir())
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    assert set(run_dir.iterdir()) - before == {path}
    assert path.stat().st_size < 5.2e6


def test_a_huge_model_stays_under_8_mb(make_run: RunMaker) -> None:
    run_dir = make_run(layers=61, experts=256, lines=14, domains=tuple(f"domain {i}" for i in range(50)))
    assert write_report(run_dir).stat().st_size < 8e6


def test_the_page_is_whole(html: str) -> None:
    assert html.startswith("<!doctype html>")
    assert html.rstrip().endswith("</html>")
    assert "plotly.js v" in html
    assert re.findall(r"<h2 id=\"[\w-]+\">(.*?)</h2>", html) == [
        "In words", "Alarms", "How to read this", "Learning", "Load", "Balance over training", "Domains",
        "A sample", "Under the hood", "Configuration",
    ]  # fmt: skip


def test_every_figure_has_a_place_and_every_place_a_figure(html: str) -> None:
    places = re.findall(r'class="plot" id="([\w-]+)"', html)
    assert sorted(places) == sorted(payload(html)["figures"])
    assert set(payload(html)["themes"]) == {"light", "dark"}


def test_ids_are_unique_and_labels_point_at_controls(html: str) -> None:
    markup = html.partition('<script type="application/json"')[0]
    ids = re.findall(r'\bid="([\w-]+)"', markup)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'<label for="([\w-]+)"', markup) + re.findall(r'aria-labelledby="([\w-]+)"', markup)
    assert len(targets) > 8
    assert set(targets) <= set(ids)


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    markup = html.partition('<script type="application/json"')[0]
    assert "default-src 'none'" in markup
    assert not re.search(r'\b(?:src|href)="(?!data:,|#)', markup)
    assert "url(" not in markup.replace("url(#tip)", "")


def test_max_vio_is_defined(html: str) -> None:
    assert "maximum load ÷ mean load − 1" in html


def test_hostile_names_and_samples_are_text(make_run: RunMaker) -> None:
    html = page.build_page(read_run(make_run(HOSTILE, sample=HOSTILE, domains=(HOSTILE, "email"))))
    assert "<script>alert" not in html
    assert "<img" not in html.partition("<script>\n/**")[0]
    assert (
        html.count("<script")
        == 3 + html.count("<script", html.index("plotly.js v"), html.rindex("</script>")) - 1
    )
    assert "<h1>&lt;/script&gt;" in html
    domains = payload(html)["figures"]["domains"]
    assert "<" not in json.dumps(domains["data"][0]["y"])  # pyrefly: ignore[bad-index]


def test_a_sample_with_half_a_surrogate_pair_is_written(make_run: RunMaker) -> None:
    path = write_report(make_run(sample="before \ud83d after"))
    assert "before ? after" in path.read_text(encoding="utf-8")


def test_dollar_signs_of_a_run_are_no_placeholders(make_run: RunMaker) -> None:
    html = page.build_page(read_run(make_run("$title ${body}", sample="$plotly")))
    assert "<h1>$title ${body}</h1>" in html
    assert "$plotly</pre>" in html


@pytest.mark.parametrize("lines", [1, 2, 12])
def test_an_unfinished_run_has_a_page(make_run: RunMaker, lines: int) -> None:
    html = page.build_page(read_run(make_run(lines=lines, finished=False)))
    assert "not finished" in html
    assert "A sample" not in html
    assert ("load-slider" in html.partition('<script type="application/json"')[0]) == (lines > 1)


def test_a_run_that_has_logged_nothing_has_a_page(make_run: RunMaker) -> None:
    run_dir = make_run(lines=1, finished=False)
    (run_dir / "metrics.jsonl").unlink()
    assert payload(page.build_page(read_run(run_dir)))["figures"] == {}


def test_a_dense_run_has_a_page_without_experts(make_run: RunMaker) -> None:
    html = page.build_page(read_run(make_run(dense=True)))
    assert "A dense language model of 4 layers" in html
    assert sorted(payload(html)["figures"]) == ["grad_norm", "learning_rate", "loss", "speed", "validation"]
    assert "How to read this" not in html
    assert "How hard is each kind of text?" in html


def test_a_failure_leaves_the_old_report_and_nothing_else(
    make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(lines=2)
    write_report(run_dir).write_text("old")
    before = set(run_dir.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", full)
    with pytest.raises(DataError, match=r"report\.html: cannot be written: No space left"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text() == "old"
    assert set(run_dir.iterdir()) == before


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        write_report(tmp_path)
