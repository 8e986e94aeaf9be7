"""The report page: it says what the JSON says, needs nothing from outside, and trusts no text."""

import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from dra_bench.report import more_sections, sections
from dra_bench.report.build import page_from_run
from dra_bench.report.changed import changed_pictures
from dra_bench.report.page import Plot
from dra_bench.report.render import render_html, render_markdown
from dra_bench.report.run_folder import MORE, read_run
from dra_bench.report.tables import markdown_text, printed_table
from dra_bench.shown import answer, choose
from dra_runtime.errors import UsageError
from dra_train.data import load_cirr

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Parsed(HTMLParser):
    """The page as its tags, attributes and tables; fails on tags that don't close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.text = [], [], {}, ""
        self.figures = []  # cells that hold figures, with their table
        self.table = None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.id, self.table = attributes["id"], self.tables.setdefault(attributes["id"], [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")
            self.is_figure = tag == "td" and "words" not in attributes.get("class", "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.table[-1][-1] += data
            if self.is_figure:
                self.figures.append((self.id, data))


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """Plots take a second a page and have tests of their own: here each is a picture of nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sections, more_sections):
            patch.setattr(
                module, "both_schemes", lambda draw, names, alt: Plot(*["data:image/svg+xml;base64,"] * 2, alt)
            )
        yield


@pytest.fixture(scope="module")
def shown(squares):
    dataset = load_cirr(squares, "val")
    first = [q for q in dataset.queries if q.id % 2]

    def ranking(query):
        others = [n for n in dataset.images if n != query.target]
        return [query.target, *others] if query in first else [*others, query.target]

    return answer(choose(dataset.queries, 8, 0), dataset, ranking)


@pytest.fixture(scope="module")
def page(pristine_run, shown):
    return page_from_run(read_run(pristine_run), shown, "the rule", "0.1.0")


@pytest.fixture(scope="module")
def parsed(page):
    return Parsed(render_html(page))


@pytest.fixture(scope="module")
def full_page(full_run, shown, squares):
    run = read_run(full_run)
    changed = changed_pictures(run.recall["splits"], [load_cirr(squares, "val")])
    return page_from_run(run, shown, "the rule", "0.1.0", changed)


def load(folder, name):
    return json.loads((folder / name).read_text())


def test_recalls_on_the_page_are_those_of_the_json(parsed, pristine_run):
    for evaluation in load(pristine_run, "eval.json"):
        header, *rows = parsed.tables[f"recall-{evaluation['split']}"]
        found = {row[0]: dict(zip(header[2:], row[2:], strict=True)) for row in rows}
        named = {"composed query": evaluation["metrics"], "image only": evaluation["baselines"]["image_only"]}
        named |= {"text only": evaluation["baselines"]["text_only"]}
        named |= {f"edit: {edit}": metrics for edit, metrics in evaluation["by_edit"].items()}
        assert list(found) == list(named)
        for name, metrics in named.items():
            for k, figure in found[name].items():
                assert float(figure) == pytest.approx(metrics[k], abs=0.051)


def test_latencies_on_the_page_are_those_of_the_json(parsed, pristine_run):
    rows = load(pristine_run, "latency.json")["rows"]
    found = parsed.tables["latency-rows"][1:]
    assert len(found) == len(rows)
    for cells, row in zip(found, rows, strict=True):
        assert cells[1] == row["backend"]
        assert cells[3] == ("" if row["text_tokens"] is None else str(row["text_tokens"]))
        for cell, key in zip(cells[4:7], ("p50_ms", "p90_ms", "p99_ms"), strict=True):
            assert float(cell) == pytest.approx(row[key], rel=5e-3)
        assert int(cells[7]) == row["samples"]


def test_ratios_on_the_page_are_those_of_the_json(parsed, pristine_run):
    ratios = load(pristine_run, "latency.json")["ratios"]
    found = parsed.tables["ratios"][1:]
    assert [float(cells[3].rstrip("×")) for cells in found] == pytest.approx(
        [r["times_as_fast"] for r in ratios], rel=5e-3
    )


def test_parity_on_the_page_is_that_of_the_json(parsed, pristine_run):
    graphs = load(pristine_run, "verify.json")["graphs"]
    for name, smallest, largest, pairs in parsed.tables["parity"][1:]:
        graph = graphs.pop(name)
        assert 0 <= graph["min_cosine"] - float(smallest) < 1.01e-7
        assert float(largest) == pytest.approx(graph["max_abs"], rel=1e-2)
        assert int(pairs) == graph["pairs"]
    assert not graphs
    sides = {row[1]: row[3:] for row in parsed.tables["recall-parity"][1:]}
    assert sides["PyTorch"] == sides["bundle"] == ["45.45", "74.13", "83.24", "97.75", "66.61"]
    assert parsed.tables["changed"][1][3] == "a | <script>alert(1)</script>"


def test_the_verdict_is_computed_from_the_json(page):
    assert "45.5 % of 33 queries on val (image alone 4.6 %, text alone 2.5 %)" in page.verdict
    assert "41.8 % of 33 queries on val_unseen (image alone 4.6 %, text alone 2.5 %): recall R@1." in page.verdict
    assert "answers as PyTorch does" in page.verdict
    assert "2.00× as fast with a new reference and 13.2× as fast by id" in page.verdict
    assert page.passed
    assert "0.9999991" in page.check


@pytest.mark.parametrize("name", ["verify.json", "recall.json"])
def test_a_failed_check_stands_in_the_verdict(run_folder, shown, page, name):
    content = load(run_folder, name)
    (run_folder / name).write_text(json.dumps({**content, "passed": False}))
    failed = page_from_run(read_run(run_folder), shown[:1], "the rule", "0.1.0")
    assert not failed.passed
    assert "differs from PyTorch" in failed.verdict
    assert "FAILED" in failed.check
    assert ("span", {"id": "verify", "class": "failed"}) in Parsed(render_html(failed)).tags
    assert ("span", {"id": "verify", "class": "passed"}) in Parsed(render_html(page)).tags


def test_latencies_of_a_busy_machine_are_not_quoted(run_folder, shown):
    content = load(run_folder, "latency.json")
    for others, quoted in ((None, True), (3.0, True), (40.2, False)):
        content["environment"]["used_by_others_percent"] = others
        (run_folder / "latency.json").write_text(json.dumps(content))
        page = page_from_run(read_run(run_folder), shown[:1], "the rule", "0.1.0")
        assert ("as fast" in page.verdict) == quoted
        assert ("other programs used 40 % of the CPUs" in page.verdict) != quoted
        assert ("don't quote" in page.sections[0].note) != quoted


def test_recalls_on_emoji_pictures_are_called_demo_recalls(run_folder, shown, page):
    content = load(run_folder, "eval.json")
    (run_folder / "eval.json").write_text(json.dumps([{**e, "dataset": "emoji_cir"} for e in content]))
    demo = page_from_run(read_run(run_folder), shown[:1], "the rule", "0.1.0")
    for text in (render_html(demo), render_markdown(demo)):
        assert "demo recall R@1" in text
        assert "neither the paper" in text
    assert "demo" not in render_markdown(page).lower()


def test_the_page_asks_nothing_from_outside(parsed):
    references = [
        value
        for tag, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert references
    assert all(value.startswith("data:image/") for value in references)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}


def test_styles_ask_nothing_from_outside(page):
    style = re.search(r"<style>(.*?)</style>", render_html(page), re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_every_image_is_described(parsed):
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert len(images) >= 8 * 6
    assert all(attributes.get("alt", "").strip() for attributes in images)


def test_right_answers_are_marked_and_counted(parsed, page, shown):
    first = sum(query.is_first for query in shown)
    assert 0 < first < 8
    right = [attributes["alt"] for tag, attributes in parsed.tags if "the right one" in attributes.get("alt", "")]
    assert len(right) == sum(query.rank <= 5 for query in shown)
    assert page.shown_line.startswith(f"{first} of 8 shown are first")
    assert "the right one came 11th" in parsed.text


def test_texts_are_shown_and_not_obeyed(page, parsed):
    assert "<img src=x onerror=alert(1)> & {{ 7*7 }}" in parsed.text
    assert "你好" in parsed.text
    assert not [a for _, attributes in parsed.tags for a in attributes if a.startswith("on")]
    markdown = render_markdown(page)
    assert "<script" not in markdown
    assert r"a \| &lt;script>" in markdown


def test_markdown_tables_keep_their_columns(page):
    lines = render_markdown(page).splitlines()
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", above)) == len(re.findall(r"(?<!\\)\|", line))


def test_markdown_text_can_not_become_markup():
    assert markdown_text("a|b\n# *c* `d` <e> [f](g)") == r"a\|b \# \*c\* \`d\` &lt;e> \[f\](g)"


@pytest.mark.parametrize("name", ["eval.json", "verify.json", "latency.json", "recall.json"])
def test_a_missing_or_damaged_file_is_named_with_its_command(run_folder, name):
    (run_folder / name).write_text('{"rows": ')
    with pytest.raises(UsageError, match=f"{name} can't be read as JSON"):
        read_run(run_folder)
    (run_folder / name).write_text("[{}]")
    with pytest.raises(UsageError, match=f"{name} lacks"):
        read_run(run_folder)
    (run_folder / name).unlink()
    with pytest.raises(UsageError, match=f"{name} doesn't exist; write it with `dra-"):
        read_run(run_folder)


NUMBER = re.compile(r"(?<![\w.@])\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?(?![\w.]*\w)")


def numbers_of(value):
    """Return every number of a JSON value, and how long its lists are; raw samples left out."""
    if isinstance(value, dict):
        return [n for key, item in value.items() if not key.startswith("raw") for n in numbers_of(item)]
    if isinstance(value, list):
        return [float(len(value)), *(n for item in value for n in numbers_of(item))]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def not_in(known, text):
    """Return the figures of a text that are no number of ``known``, rounded as they are written."""
    missing = []
    for figure in NUMBER.findall(text.replace("×", "").replace("k ", "000 ")):
        plain = figure.replace(",", "")
        value, decimals = float(plain), len(plain.partition("e")[0].partition(".")[2])
        rounding = 10.0**-decimals * (value if "e" in plain else 1.0)
        if not any(abs(n - value) <= 0.51 * rounding or 0 <= n - value < rounding == 1e-7 for n in known):
            missing.append(figure)
    return missing


def known_numbers(folder):
    found = [n for path in folder.glob("*.json") for n in numbers_of(json.loads(path.read_text()))]
    lost = [c["was"] == c["target"] for s in load(folder, "recall.json")["splits"] for c in s["changed"]]
    spreads = [12.5]  # of the curves: half the way from 0.9 to 1.15 times, in percent
    return [*found, *(100 * n for n in found), float(sum(lost)), *spreads]


def test_every_figure_in_the_tables_is_in_the_json(full_run, full_page):
    known, parsed = known_numbers(full_run), Parsed(render_html(full_page))
    assert len(parsed.figures) > 300
    assert not [(table, cell) for table, cell in parsed.figures if not_in(known, cell)]


def test_every_figure_of_the_verdict_and_the_notes_is_in_the_json(full_run, full_page):
    known = known_numbers(full_run)
    for text in (full_page.verdict, full_page.check, *(section.note for section in full_page.sections)):
        assert not_in(known, text.replace("99 %", "").replace("float32", "")) == []


def test_the_search_for_figures_sees_a_wrong_one(full_run):
    known = known_numbers(full_run)
    assert not_in(known, "45.5 % of 33 queries, 2.00× (1.90× to 2.10×)") == []
    assert not_in(known, "45.6 % of 1,234 queries") == ["45.6", "1,234"]


def test_what_was_measured_has_a_section_and_what_was_not_has_none(full_run, pristine_run, full_page, page, shown):
    more = [name.removesuffix(".json") for name, *_ in MORE]
    assert set(more) <= {section.id for section in full_page.sections}
    assert not set(more) & {section.id for section in page.sections}
    assert all(section.plots for section in full_page.sections if section.id in ("load", "growth", "roofline"))


def test_a_damaged_optional_file_is_named_with_its_command(run_folder):
    for name, _, command in MORE:
        (run_folder / name).write_text("{}")
        with pytest.raises(UsageError, match=f"{name} lacks .*{command}"):
            read_run(run_folder)
        (run_folder / name).unlink()


def test_contenders_that_are_missing_are_named_with_the_reason(full_page):
    parsed = Parsed(render_html(full_page))
    assert parsed.tables["unavailable"][1] == ["tensorrt", "no GPU here"]
    (latency,) = [section for section in full_page.sections if section.id == "latency"]
    assert "tensorrt" in latency.note


def test_recall_against_latency_pairs_each_artifact_with_its_rows(full_run):
    run = read_run(full_run)
    p50 = {(r["backend"], r["part"]): r["p50_ms"] for r in run.latency["rows"]}
    recalls = {"onnxruntime-cpu": 45.45, "onnxruntime-cpu int8": 44.94, "pytorch-eager": 45.45}
    for part in ("query", "query_by_id"):
        found = {point.name: (point.p50_ms, point.recall) for point in sections.tradeoffs(run, part)}
        assert found == {name: (p50[name, part], recall) for name, recall in recalls.items()}


def test_pictures_of_changed_queries_say_what_was_and_what_is(full_page):
    (parity,) = [section for section in full_page.sections if section.id == "parity"]
    lost, won = parity.queries
    assert [(a.caption, a.name, a.right) for a in lost.answers] == [
        ("PyTorch", "gold", True),
        ("onnxruntime-cpu int8", "black", False),
        ("right answer", "gold", True),
    ]
    assert (lost.note, won.note) == ("onnxruntime-cpu int8, val: lost", "onnxruntime-cpu int8, val: now right")
    assert lost.reference.name == "red"
    assert "onnxruntime-cpu: none of 33; onnxruntime-cpu int8: 2 of 33" in parity.note


def test_changed_queries_of_another_data_set_are_counted_and_not_shown(full_run):
    found = changed_pictures(read_run(full_run).recall["splits"], [])
    assert found.queries == ()
    assert found.note == "0 of 2 are shown, lost answers first. The pictures of squares are shown with --dataset."


def test_the_verdict_has_three_sentences_and_names_what_is_wrong(run_folder, full_run, shown):
    for path in full_run.glob("*.json"):
        (run_folder / path.name).write_text(path.read_text())
    recall, latency, growth = (load(run_folder, f"{name}.json") for name in ("recall", "latency", "growth"))
    missed = ["squares / val: R@1: 20.00 % where PyTorch has 45.45 %, more than 0.5 points apart"]
    recall["artifacts"][1] |= {"passed": False, "missed": missed}
    recall["passed"] = False
    for ratio in latency["ratios"]:
        if ratio["candidate"]["part"] == "text":
            ratio |= {"times_as_fast": 0.25, "interval": [0.2, 0.3]}
    growth["environment"] = {**growth["environment"], "used_by_others_percent": 61.0}
    for name, content in (("recall", recall), ("latency", latency), ("growth", growth)):
        (run_folder / f"{name}.json").write_text(json.dumps(content))
    page = page_from_run(read_run(run_folder), shown[:1], "the rule", "0.1.0")
    assert "onnxruntime-cpu int8 (int8) differs from PyTorch by more than allowed" in page.verdict
    assert "onnxruntime-cpu is slower than PyTorch eager (text: 0.25× as fast)" in page.verdict
    assert "Other programs were busy while growth.json was measured" in page.verdict
    assert missed[0] in page.check
    assert not page.passed
    assert len(re.findall(r"\.(?:\s|$)", page.verdict)) == 3


def test_a_verify_of_several_artifacts_fails_with_any_of_them(run_folder, shown):
    good = load(run_folder, "verify.json")
    bad = {**good, "name": "demo-int8", "passed": False, "missed": ["query: smallest cosine 0.8"]}
    (run_folder / "verify.json").write_text(json.dumps([{**good, "name": "demo"}, bad]))
    page = page_from_run(read_run(run_folder), shown[:1], "the rule", "0.1.0")
    assert "demo-int8 differs from PyTorch" in page.verdict
    assert "demo-int8: query: smallest cosine 0.8" in page.check


def test_a_printed_table_keeps_its_empty_cells():
    table = printed_table("t", "T", "| a   |   b |\n| --- | --: |\n|     | 1.5 |\n| x   |     |")
    assert table.header == ("a", "b")
    assert table.rows == (("", "1.5"), ("x", ""))


def test_the_verdict_names_the_fastest_other_way(full_run, run_folder, shown):
    content = load(full_run, "latency.json")
    query = next(r for r in content["ratios"] if r["candidate"]["part"] == "query")
    fastest = {**query, "reference": {**query["reference"], "backend": "openvino"}, "times_as_fast": 0.93}
    (run_folder / "latency.json").write_text(json.dumps({**content, "fastest_baselines": [fastest]}))
    page = page_from_run(read_run(run_folder), shown[:1], "the rule", "0.1.0")
    assert "as PyTorch's full query, and 0.93× as fast as openvino, the fastest other way." in page.verdict
    assert Parsed(render_html(page)).tables["fastest-baselines"][1][3] == "0.93×"
