"""report.html: parses, asks nobody for anything, holds every number, escapes what it is given."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser

import pytest

from plr.report import write_report
from plr.report.figures.plot import ticks
from plr.report.html import flatten, report_html
from plr.report.results import contrasts, csv_text
from plr.scoring.metric import metric_named

VOID = {"meta", "link", "br", "img", "hr", "input"}
SVG_EMPTY = {"line", "polyline", "path", "circle", "rect"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, ids, references and classes."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_EMPTY
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text)).replace("\u2212", "-")

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attrs in self.tags for key, value in attrs.items() if key == name]


def made(cells, **given) -> str:
    return report_html(cells, **{"title": "A study", "settings": {}, "provenance": {}, "timings": [], **given})


GATE = {
    "rows": 32, "loss_16bit": 1.25, "loss": 7.5, "chance": 6.64, "verdict": "broken: at or above chance",
    "texts": [
        {"text": "task t, validation", "rows": 32, "tokens": 1931, "perplexity_16bit": 12.34, "perplexity": 24.68,
         "kl": 0.4321, "top1_agreement": 0.625, "kept": 0.4},
        {"text": "own.txt", "not_measured": "every document of the file calibrates"},
    ],
}  # fmt: skip


def test_bases_and_what_the_gate_says_of_them(small):
    old = {"verdict": "ok", "loss": 1.5}
    page = Page(made(small, bases=[{"name": "m-gptq-2bit", "gate": GATE}, {"name": "m-gptq-4bit", "gate": old}]))
    for text in (
        "m-gptq-2bit broken: at or above chance task t, validation 1,931 12.34 to 24.68 2 0.4321 62.5 %",
        "1.250 to 7.500 own.txt",
        "own.txt: not measured: every document of the file calibrates",
        "m-gptq-4bit ok",
    ):
        assert text in page.said
    page = Page(made(small))
    assert "own.txt" not in page.said
    assert "bases" not in page.attributes("id")


def test_page_nests_and_ids_are_unique_and_referred_to(small):
    page = Page(made(small))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    wanted = [one for text in page.attributes("aria-labelledby") for one in text.split()]
    wanted += [href[1:] for href in page.attributes("href") if href.startswith("#")]
    assert set(wanted) <= set(ids)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert page.tags[0] == ("html", {"lang": "en"})


def test_page_asks_nobody_for_anything(small):
    source = made(small)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", source)
    page = Page(source)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert all(href.startswith(("#", "data:")) for href in page.attributes("href"))
    assert "default-src 'none'" in source


def test_page_holds_every_number_of_every_metric(small):
    said = Page(made(small)).said
    for cell in small:
        for name, metric in cell.metrics.items():
            assert metric_named(name).show(metric.value) in said
    for contrast in contrasts(small):
        assert contrast.measure.show(contrast.difference) in said


def test_page_heatmap_has_scale_diagonal_choice_and_failure(small):
    page = Page(made(small))
    cells = [
        attrs for tag, attrs in page.tags if tag == "td" and re.search(r"\bv\b|failed|none", attrs.get("class") or "")
    ]
    primary = cells[:9]
    assert [(c.get("class") or "").split()[0] for c in primary] == [
        "v", "none", "none", "v", "v", "none", "v", "failed", "v",
    ]  # fmt: skip
    assert [c["style"] for c in primary if "style" in c] == ["--t:1.0", "--t:1.0", "--t:0.667", "--t:0.333", "--t:0.0"]
    assert sum("diagonal" in (c["class"] or "") for c in primary) == 3
    assert sum("chosen" in (c["class"] or "") for c in primary) == 1


def test_page_loss_heatmap_is_deepest_at_the_lowest(small):
    styles = re.findall(r"--t:([\d.]+)[^>]*><b>([\d.]+)</b>", made(small))
    loss = {value: float(share) for share, value in styles if len(value) == 6}
    assert loss["0.2500"] == 1.0
    assert loss["0.8000"] == 0.0


def test_page_csv_downloads_the_csv(small):
    (link,) = [href for href in Page(made(small)).attributes("href") if href.startswith("data:text/csv")]
    assert base64.b64decode(link.split(",", 1)[1]).decode() == csv_text(small)


def test_page_escapes_everything_it_is_given(cell):
    evil = '"><script>alert(1)</script>'
    cells = [
        cell(16, 16, "1110", losses=[0.1, 0.2, 0.3, 0.4], model=evil, task=evil, adapter=evil),
        cell(4, 4, "1100", losses=[0.1, 0.2, 0.3, 0.4], model=evil, task=evil, adapter=evil),
        cell(4, 16, "1110", losses=[0.1, 0.2, 0.3, 0.4], model=evil, task=evil, adapter=evil),
        cell(2, 2, error=evil, model=evil, task=evil, adapter=evil),
    ]
    source = made(cells, title=evil, settings={evil: evil}, provenance={evil: {evil: [evil]}}, timings=[{evil: evil}])
    assert "<script" not in source
    page = Page(source)
    assert evil in html.unescape(source)
    assert "script" not in {tag for tag, _ in page.tags}


def test_page_failed_cells_have_their_reasons(small):
    said = Page(made(small)).said
    assert "out of memory | 3.1 <GiB> needed" in said
    assert "k = 2, l = 4, restore, seed 0" in said


def test_page_says_how_far_a_machine_alone_moves_a_cell(small):
    said = Page(made(small)).said
    assert "another kind of cpu alone" in said.lower()
    assert "no finding" in said


def test_page_settings_provenance_and_times(small):
    said = Page(made(
        small,
        settings={"train": {"lr": 2e-4, "modules": ["q_proj", "v_proj"]}, "resume": None},
        provenance={"git": {"commit": "abc123"}},
        timings=[{"step": "quantize", "seconds": 12.345678}, {"step": "train", "peak": 3}],
    )).said  # fmt: skip
    for text in (
        "train.lr 0.0002",
        "train.modules q_proj, v_proj",
        "resume -",
        "git.commit abc123",
        "quantize 12.3457 -",
    ):
        assert text in re.sub(r"\s+", " ", said)


def test_page_curve_describes_its_numbers(small):
    source = made(small)
    descriptions = re.findall(r"<desc[^>]*>([^<]*)</desc>", source)
    assert len(descriptions) == 2
    assert "k = 4: +25.00 (0.00 to +75.00), k = 2: +25.00" in descriptions[0]


def test_page_curve_points_sit_where_the_numbers_say(cell):
    cells = [cell(4, 4, "0" * 8), cell(4, 16, "1" * 8), cell(2, 2, "1" * 8), cell(2, 16, "0" * 8)]
    heights = [float(y) for y in re.findall(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', made(cells))]
    zero = float(re.findall(r'<line class="zero"[^>]*y1="([\d.]+)"', made(cells))[0])
    assert heights[0] < zero < heights[1]
    assert zero - heights[0] == pytest.approx(heights[1] - zero, abs=0.2)


def test_page_several_models_are_told_apart_by_shape_and_name(cell):
    cells = [c for m in ("1B", "3B") for c in (cell(4, 4, "1100", model=m), cell(4, 16, "1110", model=m))]
    source = made(cells)
    assert source.count('<g class="s0">') == source.count('<g class="s1">') == 2, "the series and its place in the key"
    assert 'rect class="dot"' in source
    assert "1B, LoRA" in source


def test_page_of_nothing_and_of_failures_only(cell):
    assert "there is nothing to compare yet" in Page(made([])).said
    assert "gone" in Page(made([cell(4, 4, error="gone"), cell(4, 16, error="gone")])).said


def test_page_of_several_seeds_shows_the_spread(cell):
    cells = [cell(16, 16, bits, seed=seed) for seed, bits in enumerate(("1111", "1100"))]
    assert "75.00 ± 35.36" in Page(made(cells)).said


def test_page_has_light_and_dark(small):
    assert "@media (prefers-color-scheme: dark)" in made(small)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 0, [-1, -0.5, 0, 0.5, 1]), (-3.2, 11, [-5, 0, 5, 10, 15]), (0, 0.0037, [0, 0.001, 0.002, 0.003, 0.004])],
)
def test_ticks_are_round_and_cover(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_flatten_joins_keys():
    assert flatten({"a": {"b": {"c": 1}}, "d": {}}) == [("a.b.c", "1"), ("d", "-")]


def test_write_report_writes_three_whole_files(small, tmp_path):
    given = {"title": "A study", "settings": {}, "provenance": {}, "timings": []}
    paths = write_report(small, tmp_path / "runs" / "one", **given)
    assert {name: path.name for name, path in paths.items()} == {
        "csv": "results.csv", "table": "table.md", "html": "report.html",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "runs" / "one").iterdir()) == [
        "report.html",
        "results.csv",
        "table.md",
    ]
    first = {name: path.read_bytes() for name, path in paths.items()}
    write_report(small, tmp_path / "runs" / "one", **given)
    assert {name: path.read_bytes() for name, path in paths.items()} == first


def test_importing_the_report_is_light():
    import subprocess
    import sys

    heavy = {"torch", "numpy", "pandas", "matplotlib", "jinja2"}
    code = f"import sys, plr.report, plr.stats; print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
