"""The report page: it says what the JSON says, needs nothing from outside, and trusts no text."""

import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from dra_bench.report import page_from_run, render_html, render_markdown
from dra_bench.report_tables import markdown_text
from dra_bench.run_folder import read_run
from dra_bench.shown import answer, choose
from dra_runtime.errors import UsageError
from dra_train.data import load_cirr

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Parsed(HTMLParser):
    """The page as its tags, attributes and tables; fails on tags that don't close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.text = [], [], {}, ""
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
            self.table = self.tables[attributes["id"]] = []
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.table[-1][-1] += data


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
    assert sides["PyTorch"] == sides["bundle"] == ["45.5", "74.1", "83.2", "97.8", "66.6"]
    assert parsed.tables["changed"][1][2] == "a | <script>alert(1)</script>"


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
        assert ("don't quote" in page.latency_note) != quoted


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
