"""The Hub's data sets become the same samples as the original files: small ones on disk, in the Hub's own columns."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from PIL import Image

from sparsezip.errors import DataError, FailureError, ImageError, RunMismatchError, UnknownNameError, UsageError
from sparsezip.images import open_image
from sparsezip.measure.benchmarks import benchmark, registry
from sparsezip.measure.hub import export
from sparsezip.measure.store import lock

TEXT, NUMBER, PICTURE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
TEXTS = datasets.List(TEXT)
COLUMNS = {  # as the data sets' own cards have them, by configuration
    "pope": {
        "default": {
            "id": TEXT,
            "question_id": TEXT,
            "question": TEXT,
            "answer": TEXT,
            "image_source": TEXT,
            "image": PICTURE,
            "category": TEXT,
        }
    },
    "mme": {"default": {"question_id": TEXT, "image": PICTURE, "question": TEXT, "answer": TEXT, "category": TEXT}},
    "docvqa": {
        "DocVQA": {
            "questionId": TEXT,
            "question": TEXT,
            "question_types": TEXTS,
            "image": PICTURE,
            "docId": NUMBER,
            "ucsf_document_id": TEXT,
            "ucsf_document_page_no": TEXT,
            "answers": TEXTS,
            "data_split": TEXT,
        }
    },
    "coco_caption": {
        "default": {
            "question_id": TEXT,
            "image": PICTURE,
            "question": TEXT,
            "answer": TEXTS,
            "id": NUMBER,
            "license": datasets.Value("int8"),
            "file_name": TEXT,
            "coco_url": TEXT,
            "height": NUMBER,
            "width": NUMBER,
            "date_captured": TEXT,
        }
    },
    "vqav2": {
        "default": {
            "question_type": TEXT,
            "multiple_choice_answer": TEXT,
            "answers": datasets.List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": NUMBER}),
            "image_id": NUMBER,
            "answer_type": TEXT,
            "question_id": NUMBER,
            "question": TEXT,
            "image": PICTURE,
        }
    },
    "textvqa": {
        "default": {
            "image_id": TEXT,
            "question_id": datasets.Value("int32"),
            "question": TEXT,
            "question_tokens": TEXTS,
            "image": PICTURE,
            "image_width": datasets.Value("int32"),
            "image_height": datasets.Value("int32"),
            "flickr_original_url": TEXT,
            "flickr_300k_url": TEXT,
            "answers": TEXTS,
            "image_classes": TEXTS,
            "set_name": TEXT,
            "ocr_tokens": TEXTS,
        }
    },
    "gqa": {
        "testdev_balanced_instructions": {
            "id": TEXT,
            "imageId": TEXT,
            "question": TEXT,
            "answer": TEXT,
            "fullAnswer": TEXT,
            "isBalanced": datasets.Value("bool"),
            "types": {"structural": TEXT, "semantic": TEXT, "detailed": TEXT},
            "semanticStr": TEXT,
        },
        "testdev_balanced_images": {"id": TEXT, "image": PICTURE},
    },
}


def picture(name):
    """A file of its own for each name, which differs from what an encoder would write again."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (sum(map(ord, name)) % 256, 0, 0)).save(file, "JPEG", quality=31, comment=name.encode())
    return file.getvalue()


def original(made, folder):
    """The example of a benchmark's file on disk, without what the Hub does not have."""
    for name, text in made.example.items():
        if name == "dataset_coco.json":
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(Path(name).stem) if text is None else text.encode())
    return folder


def hub_rows(name, data):
    """The rows of the Hub's data set that say what the example in `data` says, by configuration."""

    def image(stem):
        return {"bytes": picture(Path(stem).stem), "path": stem}

    def read(file):
        return json.loads((data / file).read_text())

    if name == "pope":
        return {
            "default": [
                {
                    "id": str(number),
                    "question_id": str(row["question_id"]),
                    "question": row["text"],
                    "answer": row["label"],
                    "image_source": row["image"].removesuffix(".jpg"),
                    "image": image(row["image"]),
                    "category": split,
                }
                for split in ("adversarial", "popular", "random")
                for number, row in enumerate(
                    map(json.loads, (data / f"coco_pope_{split}.json").read_text().splitlines())
                )
            ]
        }
    if name == "mme":
        rows = []
        for path in sorted(data.rglob("*.txt"), reverse=True):
            subtask = path.relative_to(data).parts[0]
            for line in path.read_text().splitlines():
                question, answer = line.split("\t")
                file = f"{subtask}/{path.stem}.jpg"
                rows.append({"question_id": file, "question": question, "answer": answer, "category": subtask})
                rows[-1]["image"] = image(file)
        return {"default": rows}
    if name == "docvqa":
        rows = read("val_v1.0_withQT.json")["data"]
        return {"DocVQA": [{**row, "questionId": str(row["questionId"]), "image": image(row["image"])} for row in rows]}
    if name == "coco_caption":
        whole = read("annotations/captions_val2014.json")
        return {
            "default": [
                {
                    **row,
                    "question_id": row["file_name"],
                    "question": "Please carefully observe the image and come up with a caption for the image.",
                    "answer": [note["caption"] for note in whole["annotations"] if note["image_id"] == row["id"]],
                    "image": image(row["file_name"]),
                }
                for row in whole["images"]
            ]
        }
    if name == "vqav2":
        questions = read("v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
        answers = {row["question_id"]: row for row in read("v2_mscoco_val2014_annotations.json")["annotations"]}
        return {
            "default": [
                {**answers[row["question_id"]], **row, "image": image(f"COCO_val2014_{row['image_id']:012d}.jpg")}
                for row in questions
            ]
        }
    if name == "textvqa":
        tokens = {row["image_id"]: row for row in read("TextVQA_Rosetta_OCR_v0.2_val.json")["data"]}
        rows = read("TextVQA_0.5.1_val.json")["data"]
        return {
            "default": [
                {**row, "ocr_tokens": tokens[row["image_id"]]["ocr_tokens"], "image": image(row["image_id"])}
                for row in rows
            ]
        }
    assert name == "gqa", "a benchmark with a data set on the Hub needs its columns here"
    rows = [{"id": number, **row} for number, row in read("testdev_balanced_questions.json").items()]
    images = dict.fromkeys(row["imageId"] for row in rows)
    return {
        "testdev_balanced_instructions": rows,
        "testdev_balanced_images": [{"id": number, "image": image(number)} for number in images],
    }


def on_hub(name, rows, folder):
    """The benchmark `name` whose data set of the Hub is a folder of parquet files with these rows."""
    made = benchmark(name)
    card = ["---", "configs:"]
    for config, mine in rows.items():
        columns = COLUMNS[name][config]
        filled = [{column: row.get(column) for column in columns} for row in mine]
        path = folder / config / f"{made.hub.split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(filled, features=datasets.Features(columns)).to_parquet(path)
        card += [f"- config_name: {config}", "  data_files:", f"  - split: {made.hub.split}"]
        card += [f"    path: {config}/{made.hub.split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    made.hub = replace(made.hub, id=str(folder))
    return made


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(samples):
    return sorted((s.id, s.image_id, s.question, s.references, s.group, s.image.read_bytes()) for s in samples)


@pytest.mark.parametrize("name", [name for name in registry.names() if benchmark(name).hub])
def test_the_hub_gives_the_same_samples_as_the_original(name, tmp_path):
    data = original(benchmark(name), tmp_path / "original")
    made = on_hub(name, hub_rows(name, data), tmp_path / "hub")
    folder = export(made, tmp_path / name)
    for prompt in made.prompts:
        assert told(made.samples(folder, prompt=prompt)) == told(made.samples(data, prompt=prompt))
    assert told(made.samples(tmp_path)) == told(made.samples(data)), "a folder of benchmark folders will do"
    group = made.samples(data)[-1].group
    assert told(made.samples(folder, only=[group])) == told(made.samples(data, only=[group]))
    with pytest.raises(UnknownNameError, match=f'Did you mean "{group}"'):
        made.samples(folder, only=[f"{group}x"])
    assert json.loads((folder / "source.json").read_text()) == {
        "id": made.hub.id,
        "config": made.hub.config,
        "split": made.hub.split,
        "revision": None,
    }
    assert "image" not in json.loads((folder / "hub.jsonl").read_text().splitlines()[0])


def test_the_data_sets_of_the_hub_are_the_recorded_ones():
    hubs = [benchmark(name).hub for name in registry.names()]
    assert [(hub.id, hub.config, hub.split) for hub in hubs if hub] == [
        ("lmms-lab-encoder/COCO-Caption", None, "val"),
        ("lmms-lab-encoder/DocVQA", "DocVQA", "validation"),
        ("lmms-lab-encoder/GQA", "testdev_balanced_instructions", "testdev"),
        ("lmms-lab-encoder/MME", None, "test"),
        ("lmms-lab-encoder/POPE", None, "test"),
        ("lmms-lab-encoder/textvqa", None, "validation"),
        ("lmms-lab-encoder/VQAv2", None, "validation"),
    ]


def pope_rows(count):
    return {
        "default": [
            {
                "question_id": str(number),
                "question": f"Is there a thing{number} in the image?",
                "answer": ("yes", "no")[number % 2],
                "image_source": f"COCO_val2014_{number // 6:012d}",
                "image": {"bytes": picture(str(number // 6)), "path": None},
                "category": ("adversarial", "popular", "random")[number * 3 // count],
            }
            for number in range(count)
        ]
    }


def test_a_killed_export_goes_on_and_ends_in_the_same_files(tmp_path):
    made = on_hub("pope", pope_rows(120), tmp_path / "hub")
    whole = export(made, tmp_path / "whole")
    killed = tmp_path / "killed"
    script = (
        "import sys, time\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from sparsezip.measure import hub\n"
        "from sparsezip.measure.benchmarks import benchmark\n"
        "keep = hub._keep_image\n"
        "hub._keep_image = lambda *given: (time.sleep(0.01), keep(*given))\n"
        "made = benchmark('pope')\n"
        "made.hub = replace(made.hub, id=sys.argv[1])\n"
        "hub.export(made, Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "hub"), str(killed)])
    partial = killed / "hub.jsonl.partial"
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= 20):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = partial.read_bytes()
    assert 20 <= there.count(b"\n") < 120
    partial.write_bytes(there + b'{"question_id": "12", "ques')  # as a kill in the middle of a write leaves it
    (killed / "images" / "COCO_val2014_000000000019.jpg.partial").write_bytes(b"half")
    asked = []
    made.hub_image = lambda row, place: asked.append(place) or type(made).hub_image(made, row, place)
    assert files(export(made, killed)) == files(whole)
    assert len(asked) == 120 - there.count(b"\n"), "rows that were there are not read again"
    assert not list((tmp_path / "killed").rglob("*.partial"))
    assert files(export(made, killed)) == files(whole)
    assert len(asked) == 120 - there.count(b"\n"), "a finished export reads nothing"


def test_two_processes_do_not_export_to_one_folder(tmp_path):
    """Neither rows nor images, which GQA has in a configuration of their own."""
    original(benchmark("gqa"), tmp_path / "data")
    made = on_hub("gqa", hub_rows("gqa", tmp_path / "data"), tmp_path / "hub")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "hub.jsonl.partial").open("w") as held:
        lock(held, tmp_path / "out")
        with pytest.raises(RunMismatchError, match="Another process"):
            export(made, tmp_path / "out")
    assert set(files(tmp_path / "out")) == {"hub.jsonl.partial", "source.json"}
    assert made.samples(export(made, tmp_path / "out"))


def test_a_broken_image_is_kept_as_it_is_for_the_run_to_count(tmp_path):
    rows = pope_rows(18)
    for number, broken in enumerate((b"\xff\xd8\xff no image", None, None)):
        for row in rows["default"][6 * number : 6 * number + 6]:
            row["image"] = {"bytes": broken, "path": None if broken else "/etc/passwd"} if number < 2 else None
    made = on_hub("pope", rows, tmp_path / "hub")
    samples = made.samples(export(made, tmp_path / "out"))
    assert len(samples) == 18
    assert [samples[index].image.read_bytes() for index in (12, 6, 0)] == [b"\xff\xd8\xff no image", b"", b""]
    for sample in samples:
        with pytest.raises(ImageError):
            open_image(sample.image)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..\\..\\evil", "a/../../../evil"])
def test_no_path_of_a_row_leaves_the_folder(tmp_path, name):
    rows = pope_rows(6)
    rows["default"][4]["image_source"] = name
    made = on_hub("pope", rows, tmp_path / "hub")
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"POPE on the Hub, row 5 names the image .*which does not lie inside"):
        export(made, tmp_path / "a" / "out")
    new = set(files(tmp_path)) - set(before)
    assert {str(Path(path).parent) for path in new} == {"a/out", "a/out/images"}
    assert not [path for path in new if "evil" in path]


def test_without_the_package_datasets_the_way_to_get_it_is_said(tmp_path, monkeypatch):
    made = on_hub("pope", pope_rows(6), tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install sparsezip\[hub\]"):
        export(made, tmp_path / "out")


def test_a_folder_keeps_to_one_data_set_and_revision(tmp_path):
    made = on_hub("pope", pope_rows(6), tmp_path / "hub")
    export(made, tmp_path / "out", revision="abc")
    assert json.loads((tmp_path / "out" / "source.json").read_text())["revision"] == "abc"
    assert export(made, tmp_path / "out")
    with pytest.raises(RunMismatchError, match="holds revision abc, not def"):
        export(made, tmp_path / "out", revision="def")
    made.hub = replace(made.hub, id="someone/else")
    with pytest.raises(RunMismatchError, match="not someone/else"):
        export(made, tmp_path / "out")
    (tmp_path / "out" / "source.json").write_text("{")
    with pytest.raises(FailureError, match=r"source\.json is damaged"):
        export(made, tmp_path / "out")


def test_a_hub_that_cannot_be_reached_leaves_no_folder_in_the_way_of_another_source(tmp_path, monkeypatch):
    def fail(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr("sparsezip.measure.hub._commit", fail)
    with pytest.raises(FailureError, match="no network"):
        export(benchmark("mme"), tmp_path / "data" / "mme")
    assert not (tmp_path / "data").exists()


def test_what_the_hub_does_not_have_is_said(tmp_path):
    with pytest.raises(UsageError, match="scenes has no data set on the Hub"):
        export(benchmark("scenes"), tmp_path / "out")
    made = on_hub("pope", pope_rows(6), tmp_path / "hub")
    made.hub = replace(made.hub, split="nowhere")
    with pytest.raises(FailureError, match=r"could not be exported .*The same command goes on") as caught:
        export(made, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_rows_at_fault_are_refused_by_file_and_number(tmp_path):
    made = on_hub("pope", pope_rows(6), tmp_path / "hub")
    folder = export(made, tmp_path / "out")
    lines = (folder / "hub.jsonl").read_text().splitlines()
    for key in ("question_id", "question", "answer", "image_source", "category"):
        for value in (None, "", 1e999, [], True):
            row = {**json.loads(lines[2]), key: value}
            (folder / "hub.jsonl").write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
            with pytest.raises(DataError, match=rf"{folder / 'hub.jsonl'}, row 3 ") as caught:
                made.samples(folder)
            assert "\n" not in str(caught.value)


def test_the_package_datasets_is_not_loaded_before_it_is_needed():
    code = "import sys, sparsezip.measure.hub; assert not {'datasets', 'torch', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
