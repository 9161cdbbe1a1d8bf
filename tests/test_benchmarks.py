"""The laws of every benchmark, run on the example its file holds, and what those of this package read and refuse."""

import copy
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from fake_model import FakeModel, example
from PIL import Image

from sparsezip.errors import DataError, UnknownNameError, UsageError
from sparsezip.measure.benchmarks import benchmark, registry
from sparsezip.measure.benchmarks.base import spread
from sparsezip.measure.evaluate import evaluate
from sparsezip.measure.metrics import mme as mme_metric
from sparsezip.measure.metrics import yes_no
from sparsezip.measure.records import Row, Sample

EVERY = [benchmark(name) for name in registry.names()]
SNAPSHOT = Path(__file__).parent / "snapshots" / "prompts.json"


def answered(made, samples, answer):
    """Rows of a model that says `answer(sample)`."""
    return [Row.of(sample, benchmark=made.name, method="m", batch=0, answer=answer(sample)) for sample in samples]


@pytest.fixture(params=EVERY, ids=lambda made: made.name)
def law(request, tmp_path):
    made = request.param
    return made, example(made, tmp_path / "data")


# -- laws, for every file of the folder ----------------------------------------------------------------------------


def test_samples_are_complete_and_distinct(law):
    made, data = law
    samples = made.samples(data)
    assert len({sample.id for sample in samples}) == len(samples) > 0
    for sample in samples:
        assert sample.image.is_file()
        assert sample.image_id
        assert sample.references
        assert sample.group
        assert "\t" not in sample.question


def test_a_folder_of_benchmark_folders_will_do(law, tmp_path):
    made, data = law
    data.rename(tmp_path / made.name)
    assert made.samples(tmp_path)


def best(sample):
    """The reference that most annotators gave."""
    return Counter(sample.references).most_common(1)[0][0]


def test_perfect_answers_score_top_and_empty_ones_the_floor(law):
    made, data = law
    samples = made.samples(data)
    rows = [answered(made, samples, said) for said in (best, lambda _: "")]
    if made.name == "coco_caption" and shutil.which("java") is None:
        with pytest.raises(UsageError, match="Java"):
            made.measures(rows[0])
        return
    made.score([row for both in rows for row in both])  # at once: METEOR takes seconds to start and remembers texts
    perfect, empty = map(made.measures, rows)
    assert set(made.columns) <= set(perfect)
    assert made.headline in made.columns
    if perfect[made.headline].high > 1:  # CIDEr, whose top one caption of several does not reach
        assert perfect[made.headline].value > 3
        assert empty[made.headline].value == 0
        return
    assert perfect[made.headline].value == 1.0
    constants = {"nonsense", *(best(sample) for sample in samples)}
    scores = [made.score(answered(made, samples, lambda _, said=said: said))[made.headline] for said in constants]
    assert empty[made.headline].value <= min(0.5, *scores)


def test_no_rows_score_nothing(law):
    made, _ = law
    assert set(made.score([]).values()) == {None}


def test_prompts_are_the_recorded_ones(law):
    made, data = law
    asked = {
        prompt: {"text": made.samples(data, prompt=prompt)[0].question, "max_new_tokens": made.longest_answer(prompt)}
        for prompt in made.prompts
    }
    assert list(asked) == ["llava", "lmms-eval", "bare"]
    recorded = json.loads(SNAPSHOT.read_text("utf-8"))
    assert asked == recorded.get(made.name), f"if this is meant, put it into {SNAPSHOT}: {json.dumps(asked)}"


def test_groups_can_be_chosen(law):
    made, data = law
    samples = made.samples(data)
    group = samples[-1].group
    assert made.samples(data, only=[group]) == [sample for sample in samples if sample.group == group]
    with pytest.raises(UnknownNameError, match=f'no .*"{group[:-1]}x".*Did you mean "{group}"'):
        made.samples(data, only=[f"{group[:-1]}x"])


def test_an_unknown_prompt_is_refused(law):
    made, data = law
    with pytest.raises(UnknownNameError, match='Did you mean "llava"'):
        made.samples(data, prompt="lava")


def test_missing_images_are_one_error(law, tmp_path):
    made, data = law
    images = [path for path in data.rglob("*") if path.suffix in (".png", ".jpg")]
    elsewhere = tmp_path / "elsewhere"
    for path in images:
        (elsewhere / path.relative_to(data)).parent.mkdir(parents=True, exist_ok=True)
        path.rename(elsewhere / path.relative_to(data))
    count = len({sample.image for sample in made.samples(data, images=elsewhere)})
    with pytest.raises(DataError, match=rf"{count} of {count} images are missing, such as .*{data}.*--images DIR"):
        made.samples(data)


def test_missing_files_are_named(law, tmp_path):
    made, _ = law
    with pytest.raises(DataError, match=str(tmp_path / "nowhere")):
        made.samples(tmp_path / "nowhere")


def rows_in(text):
    """The rows of an annotation file, which are dictionaries, and what makes the file of them again."""
    if "\n{" in text:
        return [json.loads(line) for line in text.splitlines()], lambda rows: "\n".join(map(json.dumps, rows))
    whole = json.loads(text)
    lists = {key: value for key, value in whole.items() if isinstance(value, list) and value}
    if not lists:  # rows by their ids
        return list(whole.values()), lambda rows: json.dumps(dict(zip(whole, rows, strict=True)))
    joined = [row for rows in lists.values() for row in rows]

    def file(rows):
        rows = iter(rows)
        return json.dumps({**whole, **{key: [next(rows) for _ in value] for key, value in lists.items()}})

    return joined, file


def numbers_in(text):
    """The number of each of those rows in messages."""
    rows, _ = rows_in(text)
    whole = {} if "\n{" in text else json.loads(text)
    lists = [value for value in whole.values() if isinstance(value, list) and value]
    return [number for rows in lists or [rows] for number, _ in enumerate(rows, 1)]


def changed_rows(made):
    """Each annotation file of the example with one row spoilt, and the number of that row."""
    for name, text in made.example.items():
        if text is None:
            continue
        if name.endswith(".txt"):
            lines = text.splitlines()
            for number, line in enumerate(lines, 1):
                for spoilt in (line.split("\t")[0], "\t" + line.split("\t")[1], line + "?"):
                    yield name, number, "\n".join([*lines[: number - 1], spoilt, *lines[number:]])
            continue
        rows, file = rows_in(text)
        for place, number in enumerate(numbers_in(text)):
            for key in rows[place]:
                for value in (..., None, "", "../../etc/passwd"):
                    spoilt = copy.deepcopy(rows)
                    spoilt[place].pop(key) if value is ... else spoilt[place].update({key: value})
                    yield name, number, file(spoilt)


def test_incomplete_rows_are_refused_with_file_and_number(law):
    """A row without what it needs is refused by its number; without what nobody reads, it changes nothing."""
    made, data = law

    def read():
        return [(s.image, s.question, s.references, s.group) for s in made.samples(data)]

    sound, refused = read(), set()
    for name, number, text in changed_rows(made):
        (data / name).write_text(text, encoding="utf-8")
        try:
            assert [row[0] for row in read()] == [row[0] for row in sound]
        except DataError as error:
            refused.add(str(error).replace(str(data), ""))
            told = (f"{data / name}, row {number} ", Path(name).name, " images are missing, such as ")
            if not any(part in str(error) for part in told):
                raise
        (data / name).write_text(made.example[name], encoding="utf-8")
    assert not [said for said in refused if "\n" in said or len(said) > 400]
    assert len(refused) >= 3  # image, question and reference, at the least


WRONG = (True, 10**400, 1e999, "x" * 5000, "\ud800", "\0", "/etc/passwd", [None], {"a": [1]})


def places(value, above=()):
    """The way to every value inside a JSON value."""
    yield above
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*above, key))


def put(value, place, new):
    if not place:
        return new
    value = copy.copy(value)
    value[place[0]] = put(value[place[0]], place[1:], new)
    return value


def test_wrong_values_at_any_depth_are_refused_in_a_line_or_not_read(law):
    made, data = law
    said = []
    for name, text in made.example.items():
        if text is None or name.endswith(".txt"):
            continue
        lines = text.splitlines() if "\n{" in text else [text]
        for number, line in enumerate(lines):
            for place in places(json.loads(line)):
                for wrong in WRONG:
                    spoilt = json.dumps(put(json.loads(line), place, wrong))
                    (data / name).write_text("\n".join([*lines[:number], spoilt, *lines[number + 1 :]]))
                    try:
                        made.samples(data)
                    except DataError as error:
                        said.append(str(error).replace(str(data), ""))
        (data / name).write_text(text)
    assert len(said) > 30 or made.name == "mme"
    assert not [line for line in said if "\n" in line or len(line) > 400]


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/passwd", "C:\\x.png", "..\\..\\x.png", "a/../../x.png", ".", "\\\\h\\x"]
)
def test_no_image_is_opened_outside_its_folder(tmp_path, name):
    """Also where such a file is there."""
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    data = example(benchmark("scenes"), tmp_path / "a" / "scenes")
    row = {"question_id": 1, "image": name, "question": "what?", "answer": "red", "type": "color"}
    (data / "scenes.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"scenes.jsonl, row 1 names the image .*which does not lie inside"):
        benchmark("scenes").samples(data, images=tmp_path / "a" / "b")


@pytest.mark.parametrize("made", [b for b in EVERY if b.name != "mme"], ids=lambda b: b.name)
@pytest.mark.parametrize("given", ["null", '""', "[1]", "true"])
def test_a_question_without_an_id_is_refused(made, tmp_path, given):
    data = example(made, tmp_path)
    name = next(name for name, text in made.example.items() if text and ID.search(text))
    (data / name).write_text(ID.sub(rf'"\1": {given}', made.example[name], count=1), encoding="utf-8")
    with pytest.raises(DataError, match=r'row 1 has no "(question_?[iI]d|cocoid|imageId)"'):
        made.samples(data)


ID = re.compile(r'"(question_?[iI]d|cocoid|imageId)": ("n\d+"|\d+)')


def test_a_question_that_holds_the_mark_of_an_image_is_refused(law):
    made, data = law
    name, text = next(iter(made.example.items()))
    marked = re.sub(r"(Is there|What is|[wW]hat .*is|Where is|Is it|A man)", r"<image> \1", text, count=1)
    assert marked != text
    (data / name).write_text(marked, encoding="utf-8")
    with pytest.raises(DataError, match='row 1 holds "<image>"'):
        made.samples(data)


GARBAGE = {
    "a list": b"[1, 2",
    "another encoding": b"\xff\xfe\x00",
    "nothing": b"",
    "no row": b"[]",
    "null": b"null",
    "text": b"hello",
    "rows of numbers": b'{"data": [7], "images": [7], "questions": [7], "annotations": [7], "x": 7}',
    "a number of rows": b'{"data": 7, "images": 7, "questions": 7, "annotations": 7}',
    "a huge number": b'{"question_id": ' + b"9" * 5000 + b"}",
    "deep nesting": b'{"data": ' + b"[" * 100_000,
    "NUL bytes": b'{"data": []}\x00\x00',
    "NUL bytes alone": bytes(1000),
    "half a character": b'{"data": "\xc3',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused(law, garbage):
    made, data = law
    for name, text in made.example.items():
        if text is None:
            continue
        (data / name).write_bytes(garbage)
        with pytest.raises(DataError, match=str(data / name)) as caught:
            made.samples(data)
        assert "\n" not in str(caught.value)
        (data / name).write_text(text, encoding="utf-8")


def test_an_annotation_file_that_is_no_file_is_refused(law):
    made, data = law
    name = next(iter(made.example))
    (data / name).unlink()
    (data / name).mkdir()
    with pytest.raises(DataError, match=re.escape(name.removeprefix("existence/"))):
        made.samples(data)


# -- limits --------------------------------------------------------------------------------------------------------


def numbered(*groups):
    return [
        Sample(id=f"{group}{number}", image=Path(), image_id="", question="", references=[], group=group)
        for group, count in groups
        for number in range(count)
    ]


def ids(samples):
    return [sample.id for sample in samples]


def test_a_limit_is_spread_over_the_groups():
    samples = numbered(("a", 50), ("b", 1), ("c", 50))
    for limit, counts in {7: (3, 1, 3), 2: (1, 1, 0), 60: (30, 1, 29)}.items():
        taken = spread(samples, limit)
        assert tuple([sample.group for sample in taken].count(group) for group in "abc") == counts
        assert taken == [sample for sample in samples if sample in taken]
    assert spread(samples, None) == spread(samples, 101) == samples


def test_a_limit_draws_the_same_questions_each_time_and_not_the_first():
    samples = numbered(("a", 100))
    few, more = ids(spread(samples, 10)), ids(spread(samples, 30))
    assert few == ids(spread(samples, 10))
    assert set(few) < set(more)
    assert few != [f"a{number}" for number in range(10)]


def test_a_limit_never_parts_a_pair():
    samples = numbered(("a", 8), ("b", 8))
    taken = ids(spread(samples, 5, together=2))
    assert len(taken) == 4
    assert [int(number[1:]) % 2 for number in taken] == [0, 1, 0, 1]
    assert {number[0] for number in taken} == {"a", "b"}
    assert len(spread(samples, 1, together=2)) == 2


def test_a_limit_leaves_pope_balanced(tmp_path):
    for split in ("random", "popular", "adversarial"):
        pope_file(tmp_path, split, [{**row, "label": ("yes", "no")[n % 2]} for n, row in enumerate(pope_rows(60))])
    for number in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"COCO_val2014_{number:012d}.jpg")
    pope = benchmark("pope")
    taken = spread(pope.samples(tmp_path), 30, pope.together)
    assert [sample.references for sample in taken].count(["yes"]) == 15
    assert len({sample.image for sample in taken}) > 6


# -- the benchmarks of this package --------------------------------------------------------------------------------


def pope_file(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pope_rows(count):
    return [
        {"question_id": n, "image": f"COCO_val2014_{n // 6:012d}.jpg", "text": f"Is there a thing{n}?", "label": "no"}
        for n in range(count)
    ]


@pytest.mark.parametrize("place", ["", "pope", "annotations", "pope/coco"])
def test_pope_annotations_load_and_their_missing_images_are_counted(tmp_path, place):
    for split in ("random", "popular", "adversarial"):
        pope_file(tmp_path / place, split, pope_rows(300))
    pope = benchmark("pope")
    assert len(pope.read([tmp_path, tmp_path / "pope"], [])) == 900
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / "COCO_val2014_000000000003.jpg")
    with pytest.raises(DataError) as caught:
        pope.samples(tmp_path)
    message = str(caught.value)
    assert "49 of 50 images are missing, such as COCO_val2014_000000000000.jpg" in message
    assert str(tmp_path / "val2014") in message
    assert "\n" not in message


def test_pope_numbers_its_questions_within_a_split(tmp_path):
    data = example(benchmark("pope"), tmp_path)
    assert [sample.id for sample in benchmark("pope").samples(data, only=["popular"])] == ["popular/1", "popular/2"]


def test_a_question_that_comes_twice_is_refused(tmp_path):
    data = example(benchmark("pope"), tmp_path)
    pope_file(data, "random", [{**pope_rows(1)[0], "image": "COCO_val2014_000000310196.jpg"}] * 2)
    with pytest.raises(DataError, match="'random/0' comes twice"):
        benchmark("pope").samples(data)


def rows_of(golden, image, group, reference, answer):
    """The lines of a golden file and the same as rows."""
    lines = (Path(__file__).parent / "goldens" / "metrics" / golden).read_text("utf-8").splitlines()
    given = [json.loads(line) for line in lines]
    return given, [
        Row(
            benchmark="b",
            method="m",
            batch=0,
            id=str(number),
            image=row[image],
            group=row[group],
            question="",
            references=[row[reference].lower()],
            answer=row[answer],
        )
        for number, row in enumerate(given)
    ]


def mme_rows():
    return rows_of("mme_7.jsonl", "question_id", "category", "answer", "prediction")


def test_pope_scores_are_those_of_the_official_scorer():
    given, ours = rows_of("pope_7.jsonl", "image", "category", "label", "answer")
    official, scores = yes_no.score(given), benchmark("pope").score(ours)
    assert scores["accuracy"] == pytest.approx(official["acc"])
    for same in ("precision", "recall", "f1", "yes_ratio"):
        assert scores[same] == pytest.approx(official[same])
    assert scores["no_recall"] == pytest.approx(official["TN"] / (official["TN"] + official["FP"]))


def test_mme_scores_are_those_of_the_official_scorer():
    rows, ours = mme_rows()
    official = mme_metric.score(rows)
    scores = benchmark("mme").score(ours)
    assert scores["perception"] == pytest.approx(official["total"]["mme_perception_score"])
    assert scores["cognition"] == pytest.approx(official["total"]["mme_cognition_score"])
    subtasks = list(official["subtask"].values())  # all of one size here, so that their mean is the overall accuracy
    assert scores["accuracy"] == pytest.approx(sum(subtask["acc"] for subtask in subtasks) / len(subtasks) / 100)
    assert scores["accuracy_plus"] == pytest.approx(sum(s["acc_plus"] for s in subtasks) / len(subtasks) / 100)


def test_mme_leaves_half_answered_images_out_of_its_pairs():
    _, ours = mme_rows()
    whole, part = benchmark("mme").measures(ours[2:]), benchmark("mme").measures(ours[1:])
    assert part["accuracy_plus"].value == whole["accuracy_plus"].value
    assert part["accuracy"].n == whole["accuracy"].n + 1


def test_mme_says_when_its_sums_are_not_the_published_ones():
    mme = benchmark("mme")
    assert "2 of 14 subtasks" in mme.remark(["color", "count"])
    assert mme.remark([*mme_metric.PERCEPTION, *mme_metric.COGNITION]) is None


def test_mme_wants_two_questions_on_an_image(tmp_path):
    data = example(benchmark("mme"), tmp_path)
    (data / "existence" / "000000006040.txt").write_text("Is it? Please answer yes or no.\tYes\n")
    with pytest.raises(DataError, match=r"000000006040.txt has 1 questions; MME asks two"):
        benchmark("mme").samples(data)


def test_docvqa_takes_the_older_file_name_and_images_by_their_bare_name(tmp_path):
    data = example(benchmark("docvqa"), tmp_path)
    (data / "val_v1.0_withQT.json").rename(data / "val_v1.0.json")
    assert benchmark("docvqa").samples(data, images=data / "documents")[0].image == data / "documents/pybv0228_81.png"


def test_docvqa_scores_half_right_spelling_by_anls_alone(tmp_path):
    made = benchmark("docvqa")
    rows = answered(made, made.samples(example(made, tmp_path)), lambda _: "0.29")
    assert made.score(rows) == {"anls": 0.75, "exact_match": 0.0}


# -- a user's own file ---------------------------------------------------------------------------------------------

MINE = Path(__file__).parents[1] / "examples" / "my_bench.py"


def counting(folder, answers):
    """The data set that examples/my_bench.py reads, with these answers."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for count, answer in enumerate(answers):
        Image.new("RGB", (8, 8), (20 * count, 0, 0)).save(folder / "images" / f"{count}.png")
        rows.append({"id": count, "image": f"{count}.png", "question": f"How many? {count}", "answer": answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_benchmark_of_a_users_own_file_runs_and_is_reported(tmp_path, monkeypatch):
    data = counting(tmp_path / "data", ["0", "2", "3"])
    monkeypatch.setattr(FakeModel, "_one", counts_two)
    results = evaluate(FakeModel(), [str(MINE)], ["keep_all", "grid"], tmp_path / "run", data=data, prompt="bare")
    mine = results["benchmarks"][str(MINE)]
    assert (mine["title"], mine["questions"], mine["headline"]) == ("counting", 3, "nearness")
    assert mine["methods"]["keep_all"]["scores"]["nearness"]["value"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert mine["methods"]["grid"]["scores"]["exact"]["value"] == pytest.approx(1 / 3)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["benchmarks"][str(MINE)] == mine
    assert "counting" in (tmp_path / "run" / "table.md").read_text()
    assert str(MINE) not in registry.names()


def counts_two(self, image, question, method):
    answer = one(self, image, question, method)
    answer.text = "There are 2 of them."
    return answer


one = FakeModel._one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "There is no file"),
        ("x = (", "cannot be loaded .SyntaxError"),
        ("x = 1", "one class that derives from Benchmark, but holds none"),
        ("{0}class A(Benchmark): pass\nclass B(Benchmark): pass", "but holds A, B"),
        ("{0}class A(Benchmark): title = 'a'", "A lacks columns, headline, measures, read"),
        ("{0}Prompt('{{word}}', 16)", r"SettingError: The prompt '{word}' may hold {question}"),
    ],
)
def test_a_users_file_that_is_no_benchmark_is_refused_in_a_line(tmp_path, text, said):
    path = tmp_path / "my_bench.py"
    if text is not None:
        path.write_text(text.format("from sparsezip.measure.benchmarks.base import Benchmark, Prompt\n"))
    with pytest.raises(UsageError, match=said) as caught:
        benchmark(str(path))
    assert "\n" not in str(caught.value)


# -- prompts and groups of those of this package -------------------------------------------------------------------


def test_textvqa_asks_for_the_ocr_file_that_llavas_prompt_needs(tmp_path):
    made = benchmark("textvqa")
    data = example(made, tmp_path)
    (data / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    assert "OCR" not in made.samples(data, prompt="lmms-eval")[0].question
    with pytest.raises(DataError, match=r"Get that file, or ask with --prompt lmms-eval"):
        made.samples(data)


def test_textvqa_tells_that_nothing_was_found(tmp_path):
    made = benchmark("textvqa")
    data = example(made, tmp_path)
    (data / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(
        '{"data": [{"image_id": "003a8ae2ef43b901", "ocr_tokens": []}]}'
    )
    assert made.samples(data)[0].question.splitlines()[1] == "Reference OCR token: "


def test_vqav2_counts_by_the_type_of_answers_and_forgives_case_where_all_agree(tmp_path):
    made = benchmark("vqav2")
    rows = answered(made, made.samples(example(made, tmp_path)), lambda _: "Yes.")
    assert made.score(rows) == {"accuracy": 0.5, "yes_no": 1.0, "number": None, "other": 0.0}


def test_vqav2_wants_an_answer_to_every_question_and_each_once(tmp_path):
    made = benchmark("vqav2")
    data = example(made, tmp_path)
    path = data / "v2_mscoco_val2014_annotations.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({"annotations": whole["annotations"][:1]}))
    with pytest.raises(DataError, match=r'questions.json, row 2 asks question "262148003", which v2_mscoco'):
        made.samples(data)
    path.write_text(json.dumps({"annotations": [*whole["annotations"], whole["annotations"][0]]}))
    with pytest.raises(DataError, match=r'annotations.json, row 3 has the "question_id" .* of an earlier row'):
        made.samples(data)


def test_gqa_tells_binary_questions_from_open_ones(tmp_path):
    made = benchmark("gqa")
    rows = answered(made, made.samples(example(made, tmp_path)), lambda _: " No.\n")
    assert made.score(rows) == {"accuracy": 0.5, "binary": 1.0, "open": 0.0}


def karpathy(folder, *splits):
    """COCO with images of these splits, which five people each described, and Karpathy's file."""
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number, _ in enumerate(splits)]
    notes = [
        {"image_id": image["id"], "caption": f" caption {n} of {image['id']} "} for n in range(5) for image in images
    ]
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": notes}))
    mine = [
        {"cocoid": image["id"], "filename": image["file_name"], "split": split, "filepath": "val2014"}
        for image, split in zip(images, splits, strict=True)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": mine}))
    for image in images:
        Image.new("RGB", (8, 8)).save(folder / "val2014" / image["file_name"])
    return folder


def test_coco_asks_karpathys_test_split_unless_told_otherwise(tmp_path):
    made = benchmark("coco_caption")
    data = karpathy(tmp_path, "test", "val", "restval", "test")
    assert [(s.id, s.group) for s in made.samples(data)] == [("0", "test"), ("3", "test")]
    assert [s.id for s in made.samples(data, only=["val"])] == ["1"]
    assert [s.id for s in made.samples(data, only=["val", "test"])] == ["0", "1", "3"]
    assert made.samples(data)[1].references == [f"caption {n} of 3" for n in range(5)]
    assert made.remark(["test"]) is None
    assert "the splits val, test; published scores" in made.remark(["val", "test"])


def test_coco_without_karpathys_file_asks_all_and_says_so(tmp_path):
    made = benchmark("coco_caption")
    data = karpathy(tmp_path, "test", "val", "restval")
    (data / "dataset_coco.json").unlink()
    assert [(s.id, s.group) for s in made.samples(data)] == [("0", "val2014"), ("1", "val2014"), ("2", "val2014")]
    assert "dataset_coco.json is not there" in made.remark(["val2014"])
    with pytest.raises(UnknownNameError, match=r'no split of COCO without dataset_coco.json "test"'):
        made.samples(data, only=["test"])
