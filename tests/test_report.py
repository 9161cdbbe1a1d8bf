"""What a report says of rows whose numbers can be worked out by hand, and that it says nothing it does not know."""

import io
import itertools
import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from sparsezip.measure.benchmarks.scenes import Scenes
from sparsezip.measure.clock import spread
from sparsezip.measure.records import Row
from sparsezip.measure.report import axes, budgets, chart, fairness, summary, table

RECORD = {
    "config": {"benchmarks": ["scenes"], "methods": {"keep_all": {}, "random": {}, "grid": {}}},
    "model": {"name": "fake", "revision": "1", "device": "cpu", "dtype": "float32"},
    "data": {},
    "sessions": [{"started": "2026-01-01", "torch": "2", "transformers": "5"}],
}
RIGHT = {"keep_all": "1111 1110", "random": "1100 0000", "grid": "1111 0000"}  # colour, then shape


def rows(by_random=64.0, **changed):
    """Eight questions on four images by three methods; each method takes a millisecond per image number."""
    made = []
    for place, (method, right) in enumerate(RIGHT.items()):
        for number, hit in enumerate(right.replace(" ", "")):
            layers = 576.0 if method == "keep_all" else by_random if method == "random" else 64.0
            made.append(
                Row(
                    benchmark="scenes",
                    method=method,
                    batch=number,
                    id=str(number),
                    image=str(number % 4),
                    group="color" if number < 4 else "shape",
                    question="?",
                    references=["red"],
                    answer="red" if hit == "1" else f"wrong {place}",
                    **{
                        "tokens": 576 if method == "keep_all" else 64,
                        "tokens_before": 576,
                        "tokens_per_layer": layers,
                        "timing_ms": {"tower": 1.0, "total": (place + 1.0) * (number + 1)},
                        **changed,
                    },
                )
            )
    return made


@pytest.fixture(scope="module")
def results():
    return summary.summarise(RECORD, rows())


def method(results, label, group=None):
    made = results["benchmarks"]["scenes"]
    return (made["groups"][group] if group else made)["methods"][label]


def test_scores_in_all_and_by_group(results):
    scores = {label: method(results, label)["scores"]["exact_match"]["value"] for label in RIGHT}
    assert scores == {"keep_all": 7 / 8, "random": 2 / 8, "grid": 4 / 8}
    assert method(results, "random", "color")["scores"]["exact_match"]["value"] == 0.5
    assert results["benchmarks"]["scenes"]["groups"]["shape"]["n"] == 4


def test_differences_are_paired_and_clustered_by_image(results):
    difference = method(results, "grid")["differences"]["random"]["exact_match"]
    # By image, grid minus random: 0, 0, 1/8, 1/8 of all questions: pulls -1/16, -1/16, 1/16, 1/16 around 1/4.
    half = 3.182 * (4 / 3 * 4 / 16**2) ** 0.5  # Student's t, 3 degrees of freedom
    assert difference["value"] == 0.25
    assert difference["low"] == pytest.approx(0.25 - half, abs=0.01)
    assert difference["high"] == pytest.approx(0.25 + half, abs=0.01)
    assert set(method(results, "grid")["differences"]) == {"keep_all", "random"}
    assert set(method(results, "keep_all")["differences"]) == {"random"}


def test_agreement_is_with_the_answers_of_keep_all(results):
    assert method(results, "grid")["agreement"]["value"] == 4 / 8
    assert method(results, "keep_all")["agreement"]["value"] is None


def test_cost(results):
    grid = method(results, "grid")
    assert (grid["tokens"], grid["tokens_before"], grid["tokens_per_layer"]) == (64, 576, 64)
    assert grid["latency_ms"] == {"median": 13.5, "p10": pytest.approx(5.1), "p90": pytest.approx(21.9)}
    assert grid["latency_ratio"] == {"median": 3, "p10": 3, "p90": 3}
    assert method(results, "keep_all")["latency_ratio"] is None
    assert list(grid["stages_ms"]) == ["tower"]


def test_failures_leave_the_pairs(results):
    given = rows()
    failed = [
        row if (row.method, row.id) != ("random", "0") else Row(**{**row.to_json(), "answer": None, "error": "gone"})
        for row in given
    ]
    part = summary.summarise(RECORD, failed)
    assert method(part, "random")["scores"]["exact_match"]["value"] == 1 / 7
    assert method(part, "grid")["differences"]["random"]["exact_match"]["value"] == pytest.approx(3 / 7 - 1 / 7)
    first = {"benchmark": "scenes", "method": "random", "id": "0", "image": "0", "error": "gone", "answers": 1}
    assert part["failures"] == [first]


def test_what_was_not_measured_is_none_never_zero():
    given = rows(tokens_per_layer=None, tokens=None, tokens_before=None, timing_ms={})
    grid = method(summary.summarise(RECORD, given), "grid")
    costs = ("tokens", "tokens_before", "tokens_per_layer", "latency_ms", "latency_ratio")
    assert [grid[cost] for cost in costs] == [None] * 5
    assert spread([None]) is None
    alone = {**RECORD, "config": {"benchmarks": ["scenes"], "methods": {"grid": {}}}}
    grid = method(summary.summarise(alone, [row for row in given if row.method == "grid"]), "grid")
    assert grid["differences"] == {}
    text = table.markdown(summary.summarise(RECORD, given))
    assert "| grid | - | - | - | 50.0 |" in text
    assert f"| grid |{' - |' * 11}\n" in text


def test_unequal_budgets_are_told():
    notes = summary.summarise(RECORD, rows(by_random=82.2))["notes"]
    assert notes == [
        "scenes: the budgets differ, so scores do not compare at equal cost. "
        "Mean visual tokens per LLM layer: random 82.2, grid 64.0."
    ]
    assert summary.summarise(RECORD, rows(by_random=64.5))["notes"] == []


def test_budgets_of_a_sweep_are_compared_one_by_one():
    """Four answers of one method at two budgets; inside an LLM a budget is met to within a token."""
    record = {**RECORD, "config": {"benchmarks": ["scenes"], "methods": {
        f"{name}(budget={budget})": {"name": name, "budget": budget}
        for budget in (64, 32) for name in ("random", "grid")
    }}}  # fmt: skip

    def made(**means):
        return [
            Row(**{**row.to_json(), "method": f"{row.method}(budget={budget})", "tokens_per_layer": mean})
            for row in rows()
            for budget, mean in ((64, 64.0), (32, means.get(row.method, 32.0)))
            if row.method != "keep_all"
        ]

    assert summary.summarise(record, made(grid=31.1))["notes"] == []
    (note,) = summary.summarise(record, made(grid=30.9))["notes"]
    assert note.endswith("Mean visual tokens per LLM layer: random(budget=32) 32.0, grid(budget=32) 30.9.")


def test_the_names_of_pairs_do_not_break_a_table():
    record = {**RECORD, "config": {"benchmarks": ["scenes"], "methods": {"grid|fastv": {}}}}
    given = [Row(**{**row.to_json(), "method": "grid|fastv"}) for row in rows() if row.method == "grid"]
    text = table.markdown(summary.summarise(record, given))
    assert "| grid\\|fastv | 64 | 64 |" in text


def test_many_methods_have_a_row_each_where_groups_are_compared():
    record = {**RECORD, "config": {"benchmarks": ["scenes"], "methods": {f"m{number}": {} for number in range(9)}}}
    given = [
        Row(**{**row.to_json(), "method": f"m{number}"})
        for number in range(9)
        for row in rows()
        if row.method == "keep_all"
    ]
    assert "| method | color | shape |\n| --- | ---: | ---: |\n| m0 | 100.0 | 75.0 |" in table.markdown(
        summary.summarise(record, given)
    )


def test_a_sweep_compares_groups_budget_by_budget():
    """Grid beats random in neither group at 64 tokens, where it has random's answers, and in both at 32."""
    of = {f"{name}(budget={budget})": (name, budget) for budget in (64, 32) for name in ("random", "grid")}
    settings = {label: {"name": name, "budget": budget} for label, (name, budget) in of.items()}
    record = {**RECORD, "config": {"benchmarks": ["scenes"], "methods": {"keep_all": {}, **settings}}}
    given = [row for row in rows() if row.method == "keep_all"]
    for label, (name, budget) in of.items():
        source = "random" if budget == 64 else name
        given += [Row(**{**row.to_json(), "method": label}) for row in rows() if row.method == source]
    lines = table.markdown(summary.summarise(record, given)).splitlines()
    for budget, color in ((64, "50.0 | +0.0 ("), (32, "100.0 | +50.0 (")):
        start = lines.index(f"**scenes: EM % by type, budget {budget}**")
        assert lines[start + 2] == "| type | n | keep_all | random | grid | grid minus random |"
        assert lines[start + 4].startswith(f"| color | 4 | 100.0 | 50.0 | {color}")


def test_a_change_of_versions_is_told():
    record = {**RECORD, "sessions": [*RECORD["sessions"], {"started": "2026-01-02", "torch": "3", "transformers": "5"}]}
    assert summary.summarise(record, rows())["notes"] == [
        "The run was resumed under other conditions than it began with: torch."
    ]


def test_a_benchmark_without_rows_yet_is_left_out():
    record = {**RECORD, "config": {**RECORD["config"], "benchmarks": ["scenes", "pope"]}}
    assert list(summary.summarise(record, rows())["benchmarks"]) == ["scenes"]


def test_results_are_plain_json(results):
    assert json.loads(json.dumps(results)) == results


def test_markdown(results):
    text = table.markdown(results)
    assert text == MARKDOWN


def test_the_terminal_shows_every_column_however_narrow(results):
    console = Console(file=io.StringIO(), width=40)
    table.show(results, console)
    shown = console.file.getvalue()
    assert "…" not in shown
    for cell in ("minus random", "+25.0 (-20.9 to +70.9)", "x keep_all", "same answer %"):
        assert cell in shown, cell
    assert console.width == 40


def test_labels_are_not_markup():
    config = {"benchmarks": ["scenes"], "methods": {"keep_all": {}, "grid([b])": {}}}
    given = [Row(**{**row.to_json(), "method": "grid([b])"}) if row.method == "grid" else row for row in rows()]
    console = Console(file=io.StringIO(), width=200)
    shown = summary.summarise({**RECORD, "config": config}, [row for row in given if row.method != "random"])
    table.show(shown, console)
    assert "grid([b])" in console.file.getvalue()


MARKDOWN = """\
**Visual tokens sent, their mean per LLM layer, median latency per question, scores**

| method | tokens | per layer | scenes ms | EM % |
| --- | ---: | ---: | ---: | ---: |
| keep_all | 576 | 576 | 4.5 | 87.5 |
| random | 64 | 64 | 9.0 | 25.0 |
| grid | 64 | 64 | 13.5 | 50.0 |

**Cost of a question: visual tokens, the LLM's prefill and cache (means), milliseconds (median and p90)**

| method | tokens | per layer | prefill GFLOP | KV MB | TTFT ms | p90 | decode ms | p90 | total ms | p90 | x keep_all |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| keep_all | 576 | 576 | - | - | - | - | - | - | 4.5 | 7.3 | - |
| random | 64 | 64 | - | - | - | - | - | - | 9.0 | 14.6 | 2.00 |
| grid | 64 | 64 | - | - | - | - | - | - | 13.5 | 21.9 | 3.00 |

**Milliseconds of a question by stage: medians**

| method | tower |
| --- | ---: |
| keep_all | 1.0 |
| random | 1.0 |
| grid | 1.0 |

**scenes: 8 questions on 4 images; interval and paired differences are those of EM %**

| method | n | EM % | 95 % interval | minus keep_all | p | minus random | p | same answer % |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| keep_all | 8 | 87.5 | 47.7 to 100.0 | - | - | +62.5 (+22.7 to +100.0) | 0.031 | - |
| random | 8 | 25.0 | 0.0 to 70.9 | -62.5 (-100.0 to -22.7) | 0.031 | - | - | 25.0 |
| grid | 8 | 50.0 | 0.0 to 100.0 | -37.5 (-77.3 to +2.3) | 0.058 | +25.0 (-20.9 to +70.9) | 0.18 | 50.0 |

**scenes: EM % by type**

| type | n | keep_all | random | grid | grid minus random |
| --- | ---: | ---: | ---: | ---: | ---: |
| color | 4 | 100.0 | 50.0 | 100.0 | +50.0 (-41.9 to +100.0) |
| shape | 4 | 75.0 | 0.0 | 0.0 | +0.0 (-75.0 to +75.0) |

Model fake (1) on cpu, torch 2, transformers 5, 2026-01-01. Intervals are clustered by image; - means not measured.

p: two-sided test that a paired difference is 0, adjusted for the number of methods in its column (Holm).
"""


# -- several budgets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept():
    """Two methods at two budgets, one of them inside the LLM and left out at the lower one."""
    methods = {"keep_all": {"name": "keep_all", "budget": None}}
    for name in ("random", "grid"):
        methods |= {f"{name}(budget={budget})": {"name": name, "budget": budget} for budget in (64, 32)}
    record = {
        **RECORD,
        "config": {"benchmarks": ["scenes"], "methods": methods},
        "left_out": {"grid(budget=32)": "Grid sees all. Raise the budget."},
    }
    given = [row for row in rows() if row.method == "keep_all"]
    for row in rows():
        if row.method == "random":
            given += [
                Row(
                    **{
                        **row.to_json(),
                        "method": f"random(budget={budget})",
                        "tokens": budget,
                        "tokens_per_layer": budget,
                    }
                )
                for budget in (64, 32)
            ]
        if row.method == "grid":
            its = {**row.to_json(), "method": "grid(budget=64)", "tokens": 576, "tokens_per_layer": 63.7}
            given.append(Row(**its))
    return summary.summarise(record, given)


def test_methods_stand_beside_each_other_at_every_budget(swept):
    compared = budgets.compare(swept, "On a model.")
    (benchmark,) = compared["benchmarks"]
    assert compared["budgets"] == [64, 32]
    assert {name: [point["value"] for point in its] for name, its in benchmark["methods"].items()} == {
        "keep_all": [87.5], "random": [25.0, 25.0], "grid": [50.0],
    }  # fmt: skip
    assert json.loads(json.dumps(compared)) == compared
    text = table.budgets_markdown(compared)
    assert "| method | no budget | 64 | 32 |" in text
    assert "| keep_all | 87.5 ± 39.8 (576) | - | - |" in text
    assert "| random | - | 25.0 ± 45.9 | 25.0 ± 45.9 |" in text
    assert "| grid | - | 50.0 ± 50.0 (63.7) | - |" in text
    assert "`grid` is left out at 32. Grid sees all.\n\nOn a model.\n" in text
    assert "grid is left out at 32. Grid sees all. Raise the budget." in swept["notes"]
    assert text.split("\n\n")[1] in table.markdown(swept)
    assert "by budget" not in MARKDOWN


def test_a_name_keeps_what_is_no_budget():
    assert fairness.without_budget("a(budget=64, paper=True)", 64) == "a(paper=True)"
    assert fairness.without_budget("a(budget=64)", 64) == "a"
    assert fairness.without_budget("a(k=3)", None) == "a(k=3)"


def drawn(swept):
    """The elements of the picture by tag, each with its attributes and text."""
    root = ElementTree.fromstring(chart.svg(budgets.compare(swept, "")))
    found = {}
    for element in root.iter():
        found.setdefault(element.tag.rpartition("}")[2], []).append({**element.attrib, "text": element.text})
    return found


def test_the_picture_shows_every_point_where_it_belongs(swept):
    shown = drawn(swept)
    lines = [[tuple(map(float, dot.split(","))) for dot in line["points"].split()] for line in shown["polyline"]]
    (whole,), (random64, random32), (grid64,) = lines
    assert len(shown["circle"]) == 4
    assert whole[0] < grid64[0] < random32[0]  # fewer tokens to the right
    assert random64[0] == pytest.approx(grid64[0], abs=3)
    assert whole[1] < grid64[1] < random64[1] == random32[1]  # more right answers are higher
    scale = (whole[1] - random64[1]) / (87.5 - 25)
    assert grid64[1] == pytest.approx(random64[1] + 25 * scale, abs=0.2)
    assert [line["stroke-dasharray"] for line in shown["polyline"]] == ["", "", "6 3"]
    texts = [text["text"] for text in shown["text"]]
    assert {"keep_all 87.5 at 576", "random 25.0 at 32", "grid 50.0 at 63.7", "576", "64", "32"} <= set(texts)
    assert "64" in texts
    assert all(0 <= float(text["x"]) <= 960 for text in shown["text"])


def test_labels_of_a_picture_never_lie_on_each_other():
    places = axes.spread({str(number): 100.0 + number % 3 for number in range(12)}, 44, 300)
    heights = sorted(places.values())
    assert all(after - before >= axes.LINE for before, after in itertools.pairwise(heights))
    assert heights[0] >= 44
    assert heights[-1] <= 300


@pytest.mark.parametrize(
    ("values", "ticks"), [([62.5, 99.0], (60, 100, 5)), ([50.0], (50, 51, 1)), ([0.1, 0.9], (0.1, 0.9, 0.1))]
)
def test_an_axis_has_round_steps_around_its_values(values, ticks):
    assert axes.ticks(values) == pytest.approx(ticks)


def test_names_are_text_in_a_picture(swept):
    results = json.loads(json.dumps(swept).replace("random", "a<b>|c"))
    assert "a<b>|c 25.0 at 32" in [text["text"] for text in drawn(results)["text"]]


# -- tests and costs ------------------------------------------------------------------------------------------------


def test_differences_have_a_test_adjusted_for_how_many_there_are(results):
    """Student's t with 3 degrees of freedom: t = 5, 3 and 1.732 (the tables of any textbook)."""
    against = method(results, "random")["differences"]["keep_all"]["exact_match"]
    other = method(results, "grid")["differences"]["keep_all"]["exact_match"]
    assert (against["p"], other["p"]) == (pytest.approx(0.0154, abs=1e-4), pytest.approx(0.0577, abs=1e-4))
    assert (against["p_holm"], other["p_holm"]) == (2 * against["p"], other["p"])


def test_adjusted_ps_rise_with_the_raw_ones_and_stop_at_1():
    family = [{"p": p, "p_holm": None} for p in (0.5, 0.01, 0.02, 0.6, None)]
    summary._adjust([{str(n): {"differences": {"keep_all": {"s": made}}}} for n, made in enumerate(family)])
    assert [made["p_holm"] for made in family] == [1.0, 0.04, pytest.approx(0.06), 1.0, None]


def test_a_score_says_what_it_rests_on():
    given = rows()
    failed = [row if row.id != "0" else Row(**{**row.to_json(), "answer": None, "error": "gone"}) for row in given]
    score = method(summary.summarise(RECORD, failed), "grid")["scores"]["exact_match"]
    assert (score["n"], score["value"]) == (7, 3 / 7)


def test_what_an_answer_costs():
    given = [
        Row(
            **{
                **row.to_json(),
                "prefill_flops": 1e9 * (1 + int(row.id)),
                "kv_bytes": 3_000_000,
                "timing_ms": {"prefill": 2.0, "decode": float(row.id), "ttft": 7.0, "total": 7.0 + int(row.id)},
            }
        )
        for row in rows()
    ]
    results = summary.summarise(RECORD, given)
    grid = method(results, "grid")
    assert (grid["prefill_flops"], grid["kv_bytes"]) == (4.5e9, 3e6)
    assert grid["ttft_ms"] == {"median": 7, "p10": 7, "p90": 7}
    assert (grid["decode_ms"]["median"], grid["decode_ms"]["p90"]) == (3.5, pytest.approx(6.3))
    assert list(grid["stages_ms"]) == ["prefill", "decode"]
    text = table.markdown(results)
    assert "| grid | 64 | 64 | 4.5 | 3 | 7.0 | 7.0 | 3.5 | 6.3 | 10.5 | 13.3 | 1.00 |" in text
    for meaning in ("TTFT: from the question", "Prefill GFLOP: 1e9 operations"):
        assert meaning in text
        assert meaning not in MARKDOWN


def test_times_of_batches_are_said_to_be_shares():
    record = {**RECORD, "config": {**RECORD["config"], "batch_size": 8}}
    text = table.markdown(summary.summarise(record, rows()))
    assert "Up to 8 questions were answered at a time; times are a question's share of its batch's." in text


def test_a_score_is_worked_out_once_for_every_method(monkeypatch):
    """Captions go through Java: 24 rows of 3 methods, in all and in 2 groups, are 9 sets of answers."""
    asked = []
    whole = Scenes.measures
    monkeypatch.setattr(Scenes, "measures", lambda self, rows: asked.append(len(rows)) or whole(self, rows))
    summary.summarise(RECORD, rows())
    assert sorted(asked) == [4] * 6 + [8] * 3


def test_scores_around_one_have_three_digits(monkeypatch):
    monkeypatch.setattr(Scenes, "columns", {"exact_match": "CIDEr"})
    results = summary.summarise(RECORD, rows())
    assert "| grid | 8 | 0.500 | 0.000 to 1.000 | -0.375 (-0.773 to +0.023) |" in table.markdown(results)
    compared = budgets.compare(results, "")
    assert compared["benchmarks"][0]["methods"]["grid"][0]["value"] == 0.5
    assert "0.500 ± 0.500 (64)" in table.budgets_markdown(compared)
    assert "grid 0.500 at 64" in chart.svg(compared)


def test_what_comes_from_files_steers_neither_a_terminal_nor_a_page():
    given = [
        Row(**{**row.to_json(), "group": "<img src=x>\x1b[31m|" if row.group == "color" else "shape\nsplit"})
        for row in rows()
    ]
    results = summary.summarise(RECORD, given)
    console = Console(file=io.StringIO(), width=200)
    table.show(results, console)
    assert "\x1b" not in console.file.getvalue()
    assert "| &lt;img src=x> [31m\\| | 4 |" in table.markdown(results)
    assert "| shape split | 4 |" in table.markdown(results)
