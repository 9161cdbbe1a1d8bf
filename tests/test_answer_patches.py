"""Which patches bear an answer: read from beside the data, met by what a method kept, told in every report."""

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_model import FakeModel, example, write_data, written
from made_runs import rows, write

from sparsezip import cli
from sparsezip.errors import DataError, RunMismatchError
from sparsezip.measure import answer_patches
from sparsezip.measure.answer_patches import AnswerPatches
from sparsezip.measure.benchmarks import benchmark, registry
from sparsezip.measure.evaluate import evaluate
from sparsezip.measure.records import Sample
from sparsezip.measure.report import table
from sparsezip.measure.session import fingerprint
from sparsezip.measure.store import read_rows

ASKING = [benchmark(name) for name in registry.names() if name != "coco_caption"]  # captions have no one place


# -- the share ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "grid", "kept", "own", "share"),
    [
        ((0, 3), (2, 2), [0, 1, 2, 3], (2, 2), 1.0),  # nothing dropped
        ((0, 3), (2, 2), [], (2, 2), 0.0),
        ((0, 3), (2, 2), [1, 3], (2, 2), 0.5),
        ((1,), (2, 3), [1], (2, 3), 1.0),  # rows of three
        ((3,), (2, 3), [4], (3, 2), 1.0),  # its centre, 3/4 from the top and 1/6 from the left, lies in the last row
        ((3,), (2, 3), [0, 1, 2, 3, 5], (3, 2), 0.0),
        ((0, 5, 6, 15), (4, 4), [0], (2, 2), 0.5),  # a coarser grid: 0 and 5 lie in its first patch
        ((3,), (2, 2), [8], (3, 3), 1.0),  # a finer one: only the patch that holds the centre counts
        ((3,), (2, 2), [4, 5, 7], (3, 3), 0.0),
        ((0,), (1, 1), [3], (2, 2), 1.0),  # the centre is where four meet
    ],
)
def test_the_share_of_answer_patches_that_were_kept(cells, grid, kept, own, share):
    assert AnswerPatches(grid, cells).recall(kept, own) == share


# -- the file -------------------------------------------------------------------------------------------------------


def line(entry, **changed):
    return {"image": entry.image, "question": entry.question, "grid": [24, 24], "patches": [7, 30], **changed}


def put(folder, *lines):
    path = folder / answer_patches.FILE
    path.write_text("".join(f"{said if isinstance(said, str) else json.dumps(said)}\n" for said in lines))


@pytest.mark.parametrize("made", ASKING, ids=lambda made: made.name)
@pytest.mark.parametrize("inside", ["", "whatever it is called"])
def test_every_benchmark_reads_what_lies_beside_it(made, inside, tmp_path):
    data = example(made, tmp_path / made.name)
    entries = made.read([data], [])
    put(data, line(entries[0]))
    samples = made.samples(tmp_path if inside else data, prompt="lmms-eval")
    same = [(entry.image, entry.question) == (entries[0].image, entries[0].question) for entry in entries]
    assert [sample.answer_patches for sample in samples] == [
        AnswerPatches((24, 24), (7, 30)) if hit else None for hit in same
    ]


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", images=4)


def told(number=0, type_="color", **changed):
    question = f"what {type_} is thing {number}?"
    return {"image": f"{number}.png", "question": question, "grid": [4, 4], "patches": [0, 5, 10, 15], **changed}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "row 2 is not JSON"),
        ([1], "row 2 is not a JSON object but a list"),
        ({}, 'row 2 has no "image"'),
        (told(image="../1.png"), "does not lie inside the images' folder"),
        (told(image=None), 'has no "image"'),
        (told(question=3), 'has no "question" but 3'),
        (told(question="\ud800"), "half a character"),
        (told(grid=4), 'has no "grid" that lists whole numbers'),
        (told(grid=[4, 4.0]), 'has no "grid" that lists whole numbers'),
        (told(grid=[True, 4]), 'has no "grid" that lists whole numbers'),
        (told(grid=[16]), 'has a "grid" that is not rows and columns'),
        (told(grid=[4, 4, 1]), 'has a "grid" that is not rows and columns'),
        (told(grid=[-4, -4]), 'has a "grid" that is not rows and columns'),
        (told(grid=[10**30, 10**30]), "of at most 65,536 patches"),
        (told(patches=[]), 'has no "patches" that lists whole numbers'),
        (told(patches=None), 'has no "patches" that lists whole numbers'),
        (told(patches=["1"]), 'has no "patches" that lists whole numbers'),
        (told(patches=[16]), "not different ones of its 4 x 4 grid"),
        (told(patches=[-1]), "not different ones of its 4 x 4 grid"),
        (told(patches=[3, 3]), "not different ones of its 4 x 4 grid"),
        (told(0, patches=[1]), "row 2 has other patches than .*row 1 for the same question on the same image"),
        (told(9), r"row 2 is about a question that scenes does not ask\. Make the data again"),
        (told(1, type_="size"), "row 2 is about a question that scenes does not ask"),
    ],
)
def test_a_line_at_fault_is_refused_with_its_number(data, bad, said):
    put(data / "scenes", told(), bad)
    with pytest.raises(DataError, match=said) as refused:
        benchmark("scenes").samples(data)
    assert "\n" not in str(refused.value)
    assert str(data / "scenes" / answer_patches.FILE) in str(refused.value)


def test_a_file_that_is_none_is_refused(data):
    (data / "scenes" / answer_patches.FILE).mkdir()
    with pytest.raises(DataError, match=r"answer_patches\.jsonl is not a file"):
        benchmark("scenes").samples(data)


def test_lines_may_agree_and_may_be_about_groups_that_are_not_asked(data):
    put(data / "scenes", told(), told(patches=[15, 10, 5, 0]), told(1, "shape"))
    samples = benchmark("scenes").samples(data, only=["color"])
    assert [sample.answer_patches for sample in samples] == [AnswerPatches((4, 4), (0, 5, 10, 15)), None, None, None]


# -- the run --------------------------------------------------------------------------------------------------------


def listing(values):
    return SimpleNamespace(tolist=lambda: values)


class Mapped(FakeModel):
    """Of its 2 x 2 patches keep_all keeps each, grid the first (the last two are merged), random those beside."""

    def _one(self, image, question, method):
        answer = super()._one(image, question, method)
        kept, source = {
            "keep_all": ([0, 1, 2, 3], [0, 1, 2, 3]),
            "grid": ([0], [0, -1, 1, 1]),
            "random": ([1, 2], [-1, 0, 1, -1]),
        }[method.name]
        answer.maps = SimpleNamespace(kept=listing(kept), source=listing(source), grid=(2, 2))
        return answer


def ran(out, data, model=None):
    """Four images; the file tells of every question about a color."""
    put(data / "scenes", *map(told, range(4)))
    return evaluate(model or Mapped(), ["scenes", "mme"], ["keep_all", "random", "grid"], out, data=data)


def test_rows_tell_how_many_there_are_and_what_share_was_kept(data, tmp_path):
    ran(tmp_path / "out", data)
    shares = {
        (row.benchmark, row.method, row.group, row.answer_patches, row.answer_patch_recall)
        for row in read_rows(tmp_path / "out")
    }
    assert {share for share in shares if share[3:] != (None, None)} == {
        ("scenes", "keep_all", "color", 4, 1.0),
        ("scenes", "random", "color", 4, 0.0),
        ("scenes", "grid", "color", 4, 0.5),  # of those on the diagonal; merged ones are lost
    }
    assert {share[:3] for share in shares if share[3] is None} == {
        (name, method, group)
        for name, group in (("scenes", "shape"), ("mme", "color"))
        for method in ("keep_all", "random", "grid")
    }


def test_a_model_that_does_not_tell_where_patches_went_has_no_share(data, tmp_path):
    results = ran(tmp_path / "out", data, FakeModel())
    assert {row["answer_patch_recall"] for row in written(tmp_path / "out")} == {None}
    assert "APR" not in table.markdown(results)


def test_a_run_does_not_go_on_with_other_answer_patches(data, tmp_path):
    ran(tmp_path / "out", data)
    ran(tmp_path / "out", data)
    put(data / "scenes", told(0, patches=[1]), *map(told, range(1, 4)))
    with pytest.raises(RunMismatchError, match=r"data\.scenes\.fingerprint"):
        evaluate(Mapped(), ["scenes", "mme"], ["keep_all", "random", "grid"], tmp_path / "out", data=data)


def test_data_without_the_file_are_what_they_were(tmp_path):
    """The fingerprint of a run that was begun before there was such a file."""
    path = tmp_path / "no such image.png"
    sample = Sample(id="7", image=path, image_id="such.png", question="what?", references=["red"], group="color")
    assert fingerprint([sample]) == "fba60c49223fb68e"


# -- the report -----------------------------------------------------------------------------------------------------


def test_tables_show_the_share_where_it_was_measured_and_nowhere_else(data, tmp_path):
    results = ran(tmp_path / "out", data)
    text = table.markdown(results)
    scenes = next(part for part in text.split("\n\n") if "| APR % (95 %) |" in part)
    assert [row.split(" | ")[-1].removesuffix(" |") for row in scenes.splitlines()[2:]] == [
        "100.0 (25.0 to 100.0)",  # four images that agree: 3 / 4 to either side
        "0.0 (0.0 to 75.0)",
        "50.0 (0.0 to 100.0)",
    ]
    assert text.count("APR %") == 2  # neither in the summary nor with MME
    by_type = text.split("**scenes: APR % by type**\n\n")[1].split("\n\n")[0].splitlines()
    assert by_type[2] == "| color | 4 | 100.0 | 0.0 | 50.0 | +50.0 (-25.0 to +100.0) |"
    assert by_type[3] == "| shape | 0 | - | - | - | - |"
    assert text.count("APR (answer_patch_recall): of the patches that show what a question is about") == 1


def test_the_share_is_a_mean_with_an_interval_clustered_by_image(tmp_path):
    """Two questions on each of four images: shares of 1, 1, .5 and .5, so that each pulls a sixteenth."""
    given = rows("keep_all", answer_patches=2, answer_patch_recall=1.0)
    for row in rows("grid", answer_patches=2):
        given.append(replace(row, answer_patch_recall=0.5 if row.image in ("2.png", "3.png") else 1.0))
    folder = write(tmp_path / "run", ["keep_all", "grid"], given)
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "out.csv")]) == 0
    score = next(
        row
        for row in csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text("utf-8")))
        if (row["method"], row["group"], row["score"]) == ("grid", "all", "answer_patch_recall")
    )
    half = 3.182 * (4 / 3 * 4 / 16**2) ** 0.5  # Student's t, 3 degrees of freedom
    assert (score["n"], float(score["value"])) == ("8", 0.75)
    assert float(score["low"]) == pytest.approx(0.75 - half, abs=1e-3)
    assert float(score["minus_keep_all"]) == -0.25
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "out.html")]) == 0
    page = (tmp_path / "out.html").read_text("utf-8")
    assert "<th>APR % (95 %)</th>" in page
    assert "50% of 2 answer patches kept" in page


def test_runs_from_before_there_were_answer_patches_are_read(tmp_path, capsys):
    folder = write(tmp_path / "run", ["keep_all", "grid"])
    path = folder / "answers.jsonl"
    old = [{key: value for key, value in row.items() if "answer_patch" not in key} for row in written(folder)]
    assert "answer_patch" in path.read_text()
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    assert cli.main(["report", str(folder)]) == 0
    assert "APR" not in capsys.readouterr().out
