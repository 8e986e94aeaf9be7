"""Two runs beside each other: who became slower, by the ratios inside each run, and what is noise."""

import json

import numpy as np
import pytest
from compare_runs import latency_result, run_on

from dra_bench.cli import main
from dra_bench.compare import compare_figures, disagreement, verdict
from dra_bench.run_figures import block_draws, run_figures


def compared(a, b, limit=10.0, kind="latency"):
    return compare_figures(run_figures(kind, a, 0), run_figures(kind, b, 1), limit)


def says(found):
    return {(c.a.contender, c.a.group.split(",")[0]): c.says for c in found.judged}


def test_a_machine_that_is_slower_today_is_no_difference(tmp_path, capsys):
    code, out, err = run_on("compare", tmp_path, capsys, latency_result(), latency_result(machine=2.0))
    assert code == 0
    assert not err
    assert out.splitlines()[0] == "no difference beyond noise and 10 %"
    assert "agree in their 11 ratios within 10 %; the largest disagreement is 0.0 %" in out.splitlines()[1]
    assert "the machine was 0.50 times as fast in b" in out


def test_a_slow_part_of_one_contender_is_called_out_by_name(tmp_path, capsys):
    slow = {("onnxruntime-cpu int8", "text"): 2.0}
    b = latency_result(slow, machine=1.3, spread=0.05, seed=2)
    code, out, _ = run_on("compare", tmp_path, capsys, latency_result(spread=0.05, seed=1), b)
    assert code == 1
    heading, line = out.splitlines()[:2]
    assert heading == "SLOWER: onnxruntime-cpu int8, against pytorch-eager of the same run"
    assert line.startswith("  text, batch 1, 12 text tokens: ")
    assert float(line.split(": ")[1].split("×")[0]) == pytest.approx(2.0, rel=0.1)
    assert "don't agree in their 11 ratios" in out
    assert "SLOWER" not in "\n".join(out.splitlines()[1:])


def test_when_pytorch_itself_is_slower_it_is_the_one_that_is_named(tmp_path, capsys):
    code, out, _ = run_on(
        "compare", tmp_path, capsys, latency_result(), latency_result({("pytorch-eager", "compose"): 3.0})
    )
    assert code == 1
    assert out.splitlines()[:2] == [
        "SLOWER: pytorch-eager, against onnxruntime-cpu, onnxruntime-cpu int8 of the same run",
        "  compose, batch 1: 3.00× the time (3.00× to 3.00×)",
    ]
    assert "faster (pytorch-eager changed)" in out


def test_what_became_faster_is_said_and_no_failure(tmp_path, capsys):
    b = latency_result({("onnxruntime-cpu", "image"): 0.5})
    code, out, _ = run_on("compare", tmp_path, capsys, latency_result(), b)
    assert code == 0
    assert out.splitlines()[:2] == [
        "faster: onnxruntime-cpu, against pytorch-eager of the same run",
        "  image, batch 1: 0.50× the time (0.50× to 0.50×)",
    ]


def test_a_faster_pytorch_leaves_the_others_behind_and_is_named(tmp_path, capsys):
    code, out, _ = run_on(
        "compare", tmp_path, capsys, latency_result(), latency_result({("pytorch-eager", "image"): 0.5})
    )
    assert code == 1  # the bundle is less worth than it was
    assert out.splitlines()[0].startswith("faster: pytorch-eager, against onnxruntime-cpu")


def test_whose_fault_it_is_does_not_depend_on_the_machines_mood(tmp_path, capsys):
    b = latency_result({("onnxruntime-cpu int8", "text"): 0.5}, machine=2.0)  # its own time is what it was
    _, out, _ = run_on("compare", tmp_path, capsys, latency_result(), b)
    assert out.splitlines()[0] == "faster: onnxruntime-cpu int8, against pytorch-eager of the same run"


def test_the_limit_says_what_counts():
    slower = latency_result({("onnxruntime-cpu", "image"): 1.15})
    assert says(compared(latency_result(), slower))["onnxruntime-cpu", "image"] == "slower"
    assert says(compared(latency_result(), slower, 20))["onnxruntime-cpu", "image"] == "small"
    assert verdict(compared(latency_result(), slower, 20))[0] == "no difference beyond noise and 20 %"


def test_the_largest_disagreement_is_that_of_the_ratios():
    b = latency_result({("onnxruntime-cpu", "image"): 1.06, ("onnxruntime-cpu int8", "text"): 0.92}, machine=1.5)
    found = compared(latency_result(), b)
    assert found.largest.a.key == ("text, batch 1", "onnxruntime-cpu int8", "12 text tokens")
    assert disagreement(found.largest) == pytest.approx(1 / 0.92 - 1, abs=1e-3)
    assert "the largest disagreement is 8.7 %" in verdict(found)[1]


def test_two_runs_of_the_same_are_noise_in_words(tmp_path, capsys):
    noisy = [latency_result(spread=0.3, seed=seed) for seed in (1, 2)]
    code, out, _ = run_on("compare", tmp_path, capsys, *noisy)
    assert code == 0
    assert out.splitlines()[0] == "no difference beyond noise and 10 %"
    assert ", which is noise: " in out
    found = compared(*noisy)
    assert list(says(found).values()).count("noise") >= len(found.judged) - 2


def test_a_change_has_the_ratio_of_the_medians_and_an_interval_that_holds_it():
    a, b = (latency_result(spread=0.2, seed=seed) for seed in (3, 4))
    found = {c.a.key: c for c in compared(a, b).judged}["compose, batch 1", "onnxruntime-cpu", ""]

    def as_fast(result):
        ms = {r["backend"]: np.median(r["ms"]) for r in result["raw_ms"] if r["part"] == "compose"}
        return ms["pytorch-eager"] / ms["onnxruntime-cpu"]

    assert found.ratios == pytest.approx((as_fast(a), as_fast(b)))
    assert found.relative.value == pytest.approx(as_fast(b) / as_fast(a), abs=1e-4)
    assert found.relative.low < found.relative.value < found.relative.high
    # 1.25 * 0.2 / sqrt(40) is the standard error of each of the four medians
    assert np.log(found.relative.high / found.relative.low) == pytest.approx(4 * 1.96 * 1.2533 * 0.2 / 40**0.5, rel=0.4)


def test_moods_within_a_run_widen_the_interval():
    """Ten levels of ten rounds each: round by round there seem to be a hundred independent samples."""
    levels = np.repeat(np.exp(0.3 * np.random.default_rng(0).standard_normal(10)), 10)
    random = np.random.default_rng(0)
    blocks = np.median(levels[block_draws(100, random)], axis=1).std()
    singles = np.median(levels[random.integers(0, 100, (2000, 100))], axis=1).std()
    assert blocks > 1.5 * singles
    rounds = block_draws(100, random)
    assert rounds.shape == (2000, 100)
    assert np.isin(np.diff(rounds.reshape(-1, 10), axis=1), (1, -99)).all()
    assert block_draws(11, random).shape == (2000, 11)


def test_references_are_pytorchs_longest_text_and_its_whole_query_for_what_it_does_not_do():
    result = latency_result()
    cut = next(r for r in result["raw_ms"] if r["part"] == "text" and r["backend"] == "pytorch-eager")
    result["raw_ms"].append({**cut, "text_tokens": 8, "ms": [99.0] * 40})  # even where it happens to be slower
    figures = run_figures("latency", result, 0)
    assert figures["text, batch 1", "pytorch-eager", "8 text tokens"].reference[2] == "77 text tokens"
    assert figures["text, batch 1", "pytorch-eager", "77 text tokens"].reference is None
    group, contender, detail = figures["preprocess, batch 1", "dra-runtime", ""].reference
    assert group.startswith("query, new ")
    assert (contender, detail) == ("pytorch-eager", "77 text tokens")


def test_rows_of_one_run_alone_are_named(tmp_path, capsys):
    short = latency_result(leave_out=["onnxruntime-cpu int8"])
    code, out, _ = run_on("compare", tmp_path, capsys, latency_result(), short, words=["--json"])
    assert code == 0
    result = json.loads(out)
    assert ["image, batch 1", "onnxruntime-cpu int8", ""] in result["only_in_a"]
    assert result["only_in_b"] == []
    assert {"says", "change", "times_as_fast", "samples"} <= set(result["changes"][0])


@pytest.mark.parametrize("command", ["compare", "guard"])
def test_help_shows_both_commands_of_a_comparison(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    assert "dra-bench latency --bundle bundle/" in capsys.readouterr().out


def test_nothing_in_common_is_said(tmp_path, capsys):
    other = latency_result()
    for row in other["raw_ms"]:
        row["batch"] = 2
    code, out, _ = run_on("compare", tmp_path, capsys, latency_result(), other)
    assert code == 0
    assert out.splitlines()[0] == "nothing to judge: the two runs have no ratio in common"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cpu": "Two"}, "cpu 'One' and 'Two'"),
        ({"threads": 4}, "threads 2 and 4"),
        ({"torch": "3"}, "other versions: torch '2' and '3'"),
        ({"checkpoint_sha256": "d"}, "another checkpoint"),
        ({"used_by_others_percent": 40.0}, "other programs used 40 % of the CPUs during the second run"),
    ],
)
def test_what_makes_runs_doubtful_is_a_warning_by_name(tmp_path, capsys, change, words):
    code, out, _ = run_on("compare", tmp_path, capsys, latency_result(), latency_result(environment=change))
    assert code == 0
    assert words in next(line for line in out.splitlines() if line.startswith("warning: "))


def test_another_bundle_or_text_is_a_warning(tmp_path, capsys):
    other = latency_result()
    other["bundles"][1]["bundle_id"] = "new"
    other["text"] = "in blue"
    _, out, _ = run_on("compare", tmp_path, capsys, latency_result(), other)
    assert "warning: onnxruntime-cpu int8 is another bundle than before" in out
    assert "warning: another text: 'in red' and 'in blue'" in out
    _, same, _ = run_on("compare", tmp_path, capsys, latency_result(), latency_result())
    assert "warning" not in same


def test_what_can_not_be_compared_is_one_line(tmp_path, capsys):
    recalls = {"passed": True, "splits": []}
    truncated = {"rows": [], "raw_ms": [{"backend": "x"}], "environment": {"backbone": "demo"}}
    other = latency_result(environment={"backbone": "RN50x4"})
    for second, words in (
        (other, "different models (backbone demo and RN50x4)"),
        (recalls, "a.json is a result of dra-bench latency, b.json one of recall"),
        ({"peak": 1}, "b.json is no result of dra-bench latency, load, growth, recall"),
        ([1], "b.json is no result"),
        (truncated, "measure anew"),
    ):
        code, out, err = run_on("compare", tmp_path, capsys, latency_result(), second)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert words in err


def test_load_is_compared_in_all_its_shapes():
    def load(slow=1.0):
        rate = {"low": 90 / slow, "high": 110 / slow, "samples": 20, "queries_per_second": 100 / slow}
        pytorch = {"low": 45, "high": 55, "samples": 20, "queries_per_second": 50.0, "backend": "pytorch-eager"}
        names = {"backend": "onnxruntime-cpu", "reference": "new_image"}
        both = [{**rate, **names}, {**pytorch, "reference": "new_image"}]
        held = [{"queries_per_second": q / slow, "held": q < 70} for q in (50, 60, 70)]
        slower = [{"queries_per_second": q, "held": q < 35} for q in (25, 30, 35)]
        stream = {"p50_ms": 10.0, "iqr_ms": 1.0, "samples": 20, "reference": "new_image"}
        return {
            "single_stream": [
                {**stream, "backend": "onnxruntime-cpu", "p50_ms": 5.0 * slow},
                {**stream, "backend": "pytorch-eager"},
            ],
            "offline": [{**row, "batch": 8} for row in both],
            "threads": [{**row, "threads": 2} for row in both],
            "server": [
                {**names, "queries_per_second": 60 / slow, "attempts": held, "samples": 99},
                {**names, "backend": "pytorch-eager", "queries_per_second": 30.0, "attempts": slower, "samples": 99},
                {**names, "backend": "never", "queries_per_second": 0.0, "attempts": [], "samples": 0},
            ],
        }

    assert set(says(compared(load(), load(), kind="load")).values()) == {"noise"}
    found = compared(load(), load(2.0), kind="load")
    assert {(c.a.group, c.says, c.blamed[1]) for c in found.judged} == {
        (group, "slower", "onnxruntime-cpu")
        for group in ("one stream, new image", "offline, new image, batch 8", "throughput, new image, threads 2")
    } | {("server, new image", "slower", "onnxruntime-cpu")}
    assert {round(c.relative.value, 2) for c in found.judged} == {0.5}


def test_growth_is_compared_point_by_point_and_never_beyond_what_was_measured():
    def growth(slow=1.0):
        def curve(backend, level):
            points = [
                {"x": x, "y": level * x, "low": 0.95 * level * x, "high": 1.05 * level * x, "samples": 30}
                for x in (1, 10, 100)
            ]
            points = [{**p, "extrapolated": p["x"] == 100} for p in points]
            return {
                "title": "t", "part": "image", "x": "batch", "y": "ms", "backend": backend, "points": points
            }  # fmt: skip

        return {"curves": [curve("pytorch-eager", 2.0), curve("onnxruntime-cpu", slow)]}

    found = compared(growth(), growth(1.5), kind="growth")
    assert [(c.a.group, c.a.contender, c.says) for c in found.judged] == [
        ("t, image, batch 1", "onnxruntime-cpu", "slower"),
        ("t, image, batch 10", "onnxruntime-cpu", "slower"),
    ]


def recall_result(**candidates):
    reference = {"R@1": 50.0, "R@5": 80.0}
    splits = [
        {
            "dataset": "d",
            "split": "val",
            "queries": 1000,
            "artifact": name.replace("_", " "),
            "limits": {"recall_points": 0.5},
            "reference": reference,
            "candidate": {"R@1": r1, "R@5": 80.0},
            "changed_queries": 3,
        }
        for name, r1 in candidates.items()
    ]
    return {"passed": True, "splits": splits, "backbone": "demo", "checkpoint_sha256": "c"}


def test_a_recall_that_fell_below_its_limit_is_called_out_by_name(tmp_path, capsys):
    before = recall_result(fp32=50.0, int8=50.2)
    code, out, _ = run_on("compare", tmp_path, capsys, before, recall_result(fp32=50.0, int8=49.5))
    assert code == 1
    assert out.splitlines()[0] == (
        "LOWER: int8 on d / val: R@1 50.20 % before, 49.50 % now, 7 of 1000 queries (allowed: 0.5 points)"
    )
    code, out, _ = run_on("compare", tmp_path, capsys, before, recall_result(fp32=50.0, int8=49.8))
    assert code == 0
    assert "the largest loss: 0.40 points, R@1 of int8 on d / val" in out.splitlines()[0]
    code, out, _ = run_on("compare", tmp_path, capsys, before, recall_result(int8=51.0))
    assert (code, out.splitlines()[0]) == (0, "no recall is lower than before")
    assert "only in a.json: d / val, fp32" in out


def test_recalls_of_different_checkpoints_are_not_compared(tmp_path, capsys):
    other = {**recall_result(fp32=50.0), "checkpoint_sha256": "d"}
    code, _, err = run_on("compare", tmp_path, capsys, recall_result(fp32=50.0), other)
    assert code == 2
    assert "different models (checkpoint_sha256 c and d)" in err
