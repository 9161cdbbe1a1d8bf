"""`make lmms-eval-test`: lmms-eval itself runs its POPE scorer on compressed answers, which are ours to the letter.

It has an environment of its own, because lmms-eval brings packages that this one does without. The data are the
testbed's, in the columns of lmms-lab/POPE; nothing is downloaded but packages.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import yaml
from PIL import Image

import sparsezip
from sparsezip.measure.metrics import yes_no
from sparsezip.testbed import sets

METHOD = {"method": "sparsezip", "budget": 64}
QUESTIONS = 24


def main(folder: Path) -> None:
    """Make data and tasks in `folder`, run lmms-eval on them, compare."""
    sets.write(folder / "sets", 0, 16)
    pope = folder / "sets" / "pope"
    lines = (pope / "coco_pope_adversarial.json").read_text().splitlines()[:QUESTIONS]
    rows = [json.loads(line) for line in lines]
    docs = [
        {
            "question_id": str(row["question_id"]),
            "question": row["text"],
            "answer": row["label"],
            "category": "adversarial",
            "image": Image.open(pope / "images" / row["image"]).convert("RGB"),
        }
        for row in rows
    ]
    data = datasets.Dataset.from_list(docs)
    (folder / "data").mkdir()
    data.to_parquet(folder / "data" / "test.parquet")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text("from lmms_eval.tasks.pope.utils import *\n")
    measured = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
    task = {
        "task": "testbed_pope",
        "dataset_path": str(folder / "data"),
        "test_split": "test",
        "doc_to_visual": "!function utils.pope_doc_to_visual",
        "doc_to_text": "!function utils.pope_doc_to_text",
        "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}},
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 16, "temperature": 0, "until": ["\n\n"]},
        "process_results": "!function utils.pope_process_results",
        "metric_list": [
            {
                "metric": f"pope_{name}",
                "aggregation": f"!function utils.pope_aggregate_{name}",
                "higher_is_better": True,
            }
            for name in measured
        ],
    }
    text = re.sub(r"'(!function [\w.]+)'", r"\1", yaml.safe_dump(task))  # a tag of lmms-eval's own
    (tasks / "testbed_pope.yaml").write_text(text)
    arguments = ",".join(f"{key}={value}" for key, value in {"pretrained": "testbed", **METHOD}.items())
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model", "sparsezip", "--model_args", arguments]
    command += ["--include_path", str(tasks), "--tasks", "testbed_pope"]
    command += ["--batch_size", "4", "--device", "cpu", "--log_samples", "--output_path", str(folder / "out")]
    subprocess.run(command, check=True)

    vlm = sparsezip.load("testbed", device="cpu")
    method = sparsezip.method(METHOD["method"], budget=METHOD["budget"])
    own = []
    for start in range(0, QUESTIONS, 4):
        images, questions = ([doc[key] for doc in docs[start : start + 4]] for key in ("image", "question"))
        own += [answer.text for answer in vlm.answer(images, questions, method, max_new_tokens=16)]
    (file,) = (folder / "out").rglob("*samples_testbed_pope.jsonl")
    theirs = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"] for sample in theirs] == own
    results = json.loads(next((folder / "out").rglob("*results.json")).read_text())["results"]
    pairs = [{"answer": text, "label": doc["answer"]} for text, doc in zip(own, docs, strict=True)]
    scored = yes_no.score(pairs, "lmms_eval")
    for name in measured:
        theirs_is = results["testbed_pope"][f"pope_{name},none"]
        assert abs(theirs_is - scored[name]) < 1e-9, (name, theirs_is, scored[name])
    print(f"lmms-eval and sparsezip agree on {QUESTIONS} answers and {len(measured)} scores: {scored}")


with tempfile.TemporaryDirectory() as made:
    main(Path(made))
