"""Malformed annotations: one clear line, exit code 2, before a model is opened or a file is touched.

Every case is met by the command that would go on with a run that was killed half way, so that what was answered before
has to lie there afterwards as it was, byte for byte.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from fake_model import example
from tiny_vlm import make_model, make_processor
from transformers.utils import logging

from sparsezip import cli, vlm
from sparsezip.measure.benchmarks import benchmark
from sparsezip.measure.benchmarks.coco_caption import CocoCaption

NAMES = ["coco_caption", "docvqa", "gqa", "mme", "pope", "scenes", "textvqa", "vqav2"]
ANSWERED = [
    name for name in NAMES if name != "coco_caption"
]  # captions are scored with Java, which may be missing here


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Sound data of every benchmark, and a run on them that was killed half way; the command that goes on with it."""
    top = tmp_path_factory.mktemp("malformed")
    make_model().save_pretrained(top / "model")
    make_processor().save_pretrained(top / "model")
    for name in NAMES:
        example(benchmark(name), top / "data" / name)
    verbosity = logging.get_verbosity()
    command = ["eval", "--model", top / "model", "--method", "keep_all", "--benchmark", ",".join(ANSWERED)]
    command += ["--max-new-tokens", 2, "--data", top / "data", "--out", top / "run"]
    assert cli.main([str(part) for part in command]) == 0
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    answers = (top / "run" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (top / "run" / "answers.jsonl").write_bytes(b"".join(answers[: len(answers) // 2]))
    for name in ("results.json", "table.md"):
        (top / "run" / name).unlink()
    return top, command, tree(top / "run") | tree(top / "data"), answers


@pytest.fixture
def spoilt(killed, tmp_path, monkeypatch, capsys):
    """Run the command on a copy of the data that `spoil` has spoilt; the one line that comes of it."""
    top, command, before, _ = killed
    capsys.readouterr()

    def spoilt(name: str, spoil) -> str:
        def opened(*_: object, **__: object):
            raise AssertionError("a model was opened")

        data = tmp_path / "data"
        data.mkdir()
        for other in NAMES:
            if other != name:
                (data / other).symlink_to(top / "data" / other)
        shutil.copytree(top / "data" / name, data / name)
        spoil(data / name)
        monkeypatch.setattr(vlm, "load", opened)
        monkeypatch.setattr(CocoCaption, "ready", lambda _: None)
        arguments = [data if part == top / "data" else part for part in command]
        if name not in ANSWERED:
            arguments[arguments.index(",".join(ANSWERED))] = name
        beside = sorted(tmp_path.iterdir())
        code = cli.main([str(part) for part in arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("sparsezip: ")
        assert err.count("\n") == 1
        assert len(err) < 1500
        assert err.strip().isprintable()
        assert tree(top / "run") | tree(top / "data") == before
        assert sorted(tmp_path.iterdir()) == beside
        return err

    return spoilt


# -- annotation files ----------------------------------------------------------------------------------------------


def annotations(name: str) -> list[str]:
    return [file for file, text in benchmark(name).example.items() if text is not None]


FILES = [(name, file) for name in NAMES for file in annotations(name)[: 1 if name == "pope" else 2]]
JSON = [(name, file) for name, file in FILES if name != "mme"]


def ids(cases) -> list[str]:
    return [" ".join(str(part) for part in case)[:60] for case in cases]


def replaced(file: str, content: bytes):
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return spoil


@pytest.mark.parametrize(("name", "file"), FILES, ids=ids(FILES))
@pytest.mark.parametrize("damage", ["empty", "byte order mark", "not utf-8", "utf-16", "nul", "cut", "folder", "pipe"])
def test_damaged_files(spoilt, name, file, damage):
    def spoil(folder: Path) -> None:
        path = folder / file
        text = path.read_text("utf-8")
        contents = {
            "empty": b"",
            "byte order mark": b"\xef\xbb\xbf",
            "not utf-8": text.encode().replace(b"e", b"\xe9"),
            "utf-16": text.encode("utf-16"),
            "nul": text.encode().replace(b"e", b"\0"),
            "cut": text.encode()[: len(text.encode()) // 2 - 5],
        }
        path.unlink()
        if damage in contents:
            path.write_bytes(contents[damage])
        elif damage == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)

    said = spoilt(name, spoil)
    assert Path(file).name in said or benchmark(name).title in said


@pytest.mark.parametrize(("name", "file"), JSON, ids=ids(JSON))
@pytest.mark.parametrize(
    "content",
    [b"null", b"[[]]", b'{"data": 1, "images": 1}', b"NaN", b"[" * 100_000, b"9" * 5000],
    ids=lambda content: content[:20].decode(),
)
def test_json_of_another_shape(spoilt, name, file, content):
    assert Path(file).name in spoilt(name, replaced(file, content))


@pytest.mark.parametrize("name", ["docvqa", "gqa", "pope"])
def test_a_link_that_leads_to_itself(spoilt, name):
    def spoil(folder: Path) -> None:
        path = folder / annotations(name)[0]
        path.unlink()
        path.symlink_to(path)

    assert "is missing" in spoilt(name, spoil)


def test_a_file_that_may_not_be_read(spoilt, monkeypatch):
    """Root may read all, so the refusal is played."""
    read_text = Path.read_text

    def refused(path: Path, *arguments, **options):
        if path.name == "val_v1.0_withQT.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    assert "val_v1.0_withQT.json cannot be read" in spoilt("docvqa", lambda folder: None)


# -- rows ----------------------------------------------------------------------------------------------------------

ROWS = {  # where a benchmark's rows lie in its file, and what each of them must have
    "coco_caption": ("annotations/captions_val2014.json", "annotations", ["image_id", "caption"]),
    "docvqa": ("val_v1.0_withQT.json", "data", ["questionId", "question", "image", "answers"]),
    "gqa": ("testdev_balanced_questions.json", None, ["question", "imageId", "answer", "types"]),
    "pope": ("coco_pope_random.json", "lines", ["question_id", "image", "text", "label"]),
    "scenes": ("scenes.jsonl", "lines", ["question_id", "image", "question", "answer", "type"]),
    "textvqa": ("TextVQA_0.5.1_val.json", "data", ["question_id", "image_id", "question", "answers"]),
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", "questions", ["question_id", "image_id", "question"]),
}
ANSWERS = ("v2_mscoco_val2014_annotations.json", "annotations")
QUESTION = {"docvqa": "question", "gqa": "question", "pope": "text", "scenes": "question", "textvqa": "question",
            "vqav2": "question"}  # fmt: skip
IMAGE = {"docvqa": "image", "gqa": "imageId", "pope": "image", "scenes": "image", "textvqa": "image_id"}
GONE = object()


def changed(file: str, rows: str | None, key: str, value: object, number: int = 0):
    """One value of one row is another, or gone."""

    def spoil(folder: Path) -> None:
        path = folder / file
        text = path.read_text("utf-8")
        whole = [json.loads(line) for line in text.splitlines()] if rows == "lines" else json.loads(text)
        row = (list(whole.values()) if rows is None else whole if rows == "lines" else whole[rows])[number]
        if value is GONE:
            del row[key]
        else:
            row[key] = value
        path.write_text("\n".join(map(json.dumps, whole)) if rows == "lines" else json.dumps(whole))

    return spoil


CHANGES = [(name, key) for name, (_, _, keys) in ROWS.items() for key in keys]


@pytest.mark.parametrize(("name", "key"), CHANGES, ids=ids(CHANGES))
@pytest.mark.parametrize(
    "value",
    [GONE, None, {}, True, float("nan"), "\ud800"],
    ids=["gone", "null", "object", "true", "nan", "surrogate"],
)
def test_rows_without_what_they_need(spoilt, name, key, value):
    file, rows, _ = ROWS[name]
    said = spoilt(name, changed(file, rows, key, value))
    assert Path(file).name in said or benchmark(name).title in said


@pytest.mark.parametrize("key", ["question_id", "answers", "answer_type"])
@pytest.mark.parametrize("value", [GONE, None, [], "maybe", [1], [{"answer": 1}], [{}]], ids=repr)
def test_answers_of_vqav2_that_are_none(spoilt, key, value):
    said = spoilt("vqav2", changed(*ANSWERS, key, value))
    assert "VQAv2" in said or "v2_" in said


OUTSIDE = [
    "../../../../etc/passwd",
    "/etc/passwd",
    "..",
    "a/../../b.jpg",
    "..\\..\\b.jpg",
    "C:\\b.jpg",
    "\\\\host\\b.jpg",
]


@pytest.mark.parametrize("name", IMAGE)
@pytest.mark.parametrize("image", [*OUTSIDE, "x" * 300, "y/" * 600 + "z.jpg", "a\0b.jpg", "nowhere.jpg"], ids=ascii)
def test_images_that_lie_nowhere_or_elsewhere(spoilt, name, image):
    file, rows, _ = ROWS[name]
    said = spoilt(name, changed(file, rows, IMAGE[name], image))
    assert Path(file).name in said or "images are missing" in said


@pytest.mark.parametrize("name", QUESTION)
def test_questions_that_would_put_an_image_of_their_own(spoilt, name):
    file, rows, _ = ROWS[name]
    assert '"<image>"' in spoilt(name, changed(file, rows, QUESTION[name], "<image>What is it?"))


@pytest.mark.parametrize("name", ["pope", "scenes", "gqa", "vqav2"])
def test_ids_that_come_twice(spoilt, name):
    def spoil(folder: Path) -> None:
        file, rows, _ = ROWS[name]
        path = folder / file
        text = path.read_text("utf-8")
        if rows == "lines":
            path.write_text(text.rstrip() + "\n" + text.splitlines()[0])
        elif rows is None:  # JSON's own keys: a parser that keeps the last one alone would lose a question
            first = text[text.index('"') : text.index('"', text.index('"') + 1) + 1]
            path.write_text(text.rstrip()[:-1] + f", {first}: " + text[text.index(":") + 1 :].rstrip())
        else:
            whole = json.loads(text)
            whole[rows].append(whole[rows][0])
            path.write_text(json.dumps(whole))

    assert "twice" in spoilt(name, spoil)


LABELS = [
    ("pope", changed("coco_pope_random.json", "lines", "label", "maybe"), "the label 'maybe'"),
    ("gqa", changed("testdev_balanced_questions.json", None, "types", {"structural": "guess"}), "guess"),
    ("vqav2", changed(*ANSWERS, "answer_type", "essay"), "essay"),
    ("mme", replaced("existence/000000006040.txt", b"Is it?\tMaybe\nIs it not?\tNo\n"), "Maybe"),
    ("mme", replaced("existence/000000006040.txt", b"Is it? Yes\nIs it not? No\n"), "no answer Yes or No behind a tab"),
    ("mme", replaced("existence/000000006040.txt", b"Is it?\tYes\n"), "asks two on every image"),
    ("mme", replaced("existence/000000006040.txt", b"\tYes\n\tNo\n"), "has no question"),
    ("mme", replaced("existence/000000006040.txt", b"<image>?\tYes\nIs it not?\tNo\n"), '"<image>"'),
    ("mme", replaced("existence/nowhere.txt", b"Is it?\tYes\nIs it not?\tNo\n"), "images are missing"),
    ("coco_caption", changed("dataset_coco.json", "images", "cocoid", 1), "no caption"),
    ("vqav2", changed(*ANSWERS, "question_id", 1), "does not answer"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), LABELS, ids=ids((name, said) for name, _, said in LABELS))
def test_values_that_a_benchmark_does_not_know(spoilt, name, spoil, message):
    assert message in spoilt(name, spoil)


def test_an_image_that_is_a_loop_of_links(spoilt):
    def spoil(folder: Path) -> None:
        (image,) = (folder / "images").iterdir()
        image.unlink()
        image.symlink_to(image.name)

    assert "1 of 1 images are missing" in spoilt("scenes", spoil)


def test_sound_data_go_on_with_the_run(killed, capsys):
    """What the cases above left untouched is a run that can be finished, with the answers it had."""
    top, command, _, answers = killed
    shutil.copytree(top / "run", top / "again")
    arguments = [top / "again" if part == top / "run" else part for part in command]
    assert cli.main([str(part) for part in arguments]) == 0
    now = (top / "again" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    shutil.rmtree(top / "again")
    assert len(now) == len(answers)
    assert now[: len(answers) // 2] == answers[: len(answers) // 2]
    logging.enable_progress_bar()
