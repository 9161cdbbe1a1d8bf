"""What is answered together, and what one worker makes of it: memory that runs out, and what is broken."""

import random
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_model import FakeModel
from PIL import Image

from sparsezip import methods
from sparsezip.errors import FailureError, SettingError, UsageError
from sparsezip.measure import maps
from sparsezip.measure.plan import Batch, Plan, planned, turns
from sparsezip.measure.records import Sample
from sparsezip.measure.worker import Job, Worker, make_worker, out_of_memory


def asked(number, image, question="what?"):
    return Sample(
        id=str(number), image=Path(f"{image}.png"), image_id=image, question=question, references=["red"], group="g"
    )


# -- the plan -------------------------------------------------------------------------------------------------------


def test_questions_on_one_image_are_never_parted_where_a_batch_can_hold_them():
    rng = random.Random(0)
    sizes = [rng.randint(1, 9) for _ in range(40)]
    samples = [
        asked(100 * image + k, f"i{image}", "?" * rng.randint(1, 50)) for image, n in enumerate(sizes) for k in range(n)
    ]
    rng.shuffle(samples)
    batches = planned({"pope": samples}, 6).batches
    where = {id: batch.number for batch in batches for id in batch.ids}
    assert sorted(where) == sorted(sample.id for sample in samples)
    assert max(len(batch.ids) for batch in batches) == 6
    for image, n in enumerate(sizes):
        assert len({where[str(100 * image + k)] for k in range(n)}) == (1 if n <= 6 else 2)
    assert len(batches) <= 1.1 * len(samples) / 6


def test_the_longest_come_first_and_batches_are_of_similar_length():
    samples = [asked(number, f"i{number}", "?" * (7 * number % 64 + 1)) for number in range(64)]
    lengths = {sample.id: len(sample.question) for sample in samples}
    batches = planned({"pope": samples}, 8).batches
    assert [lengths[id] for batch in batches for id in batch.ids] == list(range(64, 0, -1))


def test_questions_on_one_image_stand_side_by_side_at_batch_1():
    samples = [asked(number, f"i{number % 5}", "?" * (number + 1)) for number in range(20)]
    ids = [batch.ids for batch in planned({"pope": samples}, 1).batches]
    assert ids[:4] == [["4"], ["9"], ["14"], ["19"]]  # the image with the longest question, in the data's order
    assert [len(each) for each in ids] == [1] * 20


def test_a_plan_is_one_for_every_benchmark_and_survives_its_file():
    plan = planned({"a": [asked(1, "x"), asked(2, "y")], "b": [asked(1, "x")]}, 4)
    assert plan.batches == [Batch(0, "a", ["1", "2"]), Batch(1, "b", ["1"])]
    assert Plan.of(plan.to_json()) == plan
    assert [label for _, label in turns(plan.batches, ["p", "q"])] == ["p", "q", "q", "p"]


# -- a worker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    """16 questions, two on each of eight images."""
    for number in range(8):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return [
        Sample(
            id=str(number),
            image=tmp_path / f"{number // 2}.png",
            image_id=f"{number // 2}.png",
            question=f"what color is thing {number}?",
            references=["red"],
            group="color",
        )
        for number in range(16)
    ]


class Small(FakeModel):
    """Has room for so many questions at once, and less for one that is huge."""

    def __init__(self, room, error=MemoryError, huge=""):
        super().__init__()
        self.room, self.error, self.huge = room, error, huge

    def answer(self, images, questions, method, max_new_tokens):
        answers = super().answer(images, questions, method, max_new_tokens)
        if len(questions) > self.room or (self.huge and any(self.huge in question for question in questions)):
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return answers

    def sizes(self):
        sizes = [len(questions) for _, questions in self.calls]
        self.calls.clear()
        return sizes


def job(samples, label="grid", number=0):
    return Job(Batch(number, "scenes", [sample.id for sample in samples]), label, samples, 16)


def worker(model):
    return Worker(model, {name: methods.method(name) for name in ("keep_all", "grid")})


def test_a_batch_that_is_too_large_is_halved_and_the_next_is_not_tried_whole(samples):
    model = Small(room=5)
    one = worker(model)
    rows = one.answer(job(samples))
    assert [row.id for row in rows] == [str(number) for number in range(16)]
    assert not any(row.error for row in rows)
    assert rows == worker(FakeModel()).answer(job(samples))
    assert model.sizes()[:4] == [16, 8, 4, 4]
    one.answer(job(samples))
    assert model.sizes() == [4, 4, 4, 4]
    one.answer(job(samples, "keep_all"))  # each method has its own size
    assert model.sizes()[0] == 16
    model.room = 2  # somebody else takes memory
    assert not any(row.error for row in one.answer(job(samples)))
    model.sizes()
    one.answer(job(samples))
    assert model.sizes() == [2] * 8


def test_one_question_that_is_too_large_by_itself_does_not_make_all_batches_small(samples):
    model = Small(room=16, huge="thing 3?")
    one = worker(model)
    rows = one.answer(job(samples))
    assert [row.id for row in rows if row.error] == ["3"]
    assert rows[3].error == "MemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    model.sizes()
    one.answer(job(samples[8:] + samples[4:8] + samples[:2]))
    assert model.sizes() == [8, 6]


def test_what_torch_and_others_say_when_memory_runs_out_is_understood():
    import torch

    alike = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ]
    assert all(out_of_memory(error) for error in alike)
    others = [
        RuntimeError("shape mismatch"),
        ValueError("out of memory of the story"),
        IndexError("index out of range"),
    ]
    assert not any(out_of_memory(error) for error in others)


def test_the_accelerators_cache_is_freed_before_the_halves_are_tried(samples, monkeypatch):
    import torch

    order = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("freed"))

    class Told(Small):
        def answer(self, *arguments, **options):
            order.append(len(arguments[1]))
            return super().answer(*arguments, **options)

    worker(Told(room=8)).answer(job(samples))
    assert order == [16, "freed", 8, 8]


def test_whatever_else_fails_is_found_by_halves_and_leaves_the_size_alone(samples):
    class Choking(Small):
        def answer(self, images, questions, method, max_new_tokens):
            super().answer(images, questions, method, max_new_tokens)
            if any("thing 9?" in question for question in questions):
                raise ValueError("cannot swallow that")
            return [self._one(i, q, method) for i, q in zip(images, questions, strict=True)]

    model = Choking(room=99)
    one = worker(model)
    rows = one.answer(job(samples))
    assert [(row.id, row.error) for row in rows if row.error] == [("9", "ValueError: cannot swallow that")]
    assert len(model.sizes()) == 1 + 2 * 4  # the batch, then two halves at each of four depths
    one.answer(job(samples[:8] + samples[10:]))
    assert model.sizes() == [14]


def test_an_answer_that_is_not_whole_is_a_failure_of_its_question(samples):
    class Odd(FakeModel):
        def answer(self, images, questions, method, max_new_tokens):
            answers = super().answer(images, questions, method, max_new_tokens)
            if len(questions) > 1:
                return answers[1:]  # one too few
            if "thing 1?" in questions[0]:
                del answers[0].tokens
            return answers

    rows = worker(Odd()).answer(job(samples[:4]))
    assert [row.id for row in rows if row.error] == ["1"]
    assert "has no attribute 'tokens'" in rows[1].error


def test_questions_on_one_image_get_the_same_object(samples):
    class Looking(FakeModel):
        def answer(self, images, questions, method, max_new_tokens):
            self.same = [a is b for a, b in pairwise(images)]
            return super().answer(images, questions, method, max_new_tokens)

    model = Looking()
    worker(model).answer(job(samples[:4]))
    assert model.same == [True, False, True]


def test_rows_say_what_the_prefill_took_and_where_the_patches_went(samples):
    class Whole(FakeModel):
        def _one(self, image, question, method):
            answer = super()._one(image, question, method)
            answer.prefill_flops, answer.kv_bytes = 2.5e12, 4096
            kept, source = ([0, 3], [0, -1, 1, 1]) if method.name == "grid" else ([0, 1, 2, 3], [0, 1, 2, 3])
            answer.maps = SimpleNamespace(
                kept=SimpleNamespace(tolist=lambda: kept), source=SimpleNamespace(tolist=lambda: source), grid=(2, 2)
            )
            return answer

    one = worker(Whole())
    row = one.answer(job(samples[:1]))[0]
    assert (row.prefill_flops, row.kv_bytes) == (2.5e12, 4096)
    assert maps.unpack(row.map) == ([0, 3], [0, -1, 1, 1], (2, 2))
    assert one.answer(job(samples[:1], "keep_all"))[0].map is None
    row = worker(FakeModel()).answer(job(samples[:1]))[0]
    assert (row.prefill_flops, row.kv_bytes, row.map) == (None, None, None)


def test_the_warm_up_tells_a_broken_method_from_too_little_memory(samples):
    class Broken(FakeModel):
        def answer(self, images, questions, method, max_new_tokens):
            if method.name == "grid":
                raise self.error
            return super().answer(images, questions, method, max_new_tokens)

    model = Broken()
    one = worker(model)
    model.error = RuntimeError("mat1 and mat2 cannot be multiplied")
    with pytest.raises(FailureError, match=r"grid answers no question of scenes \(RuntimeError: mat1"):
        one.warm_up({"scenes": samples[:4]}, {"scenes": 16})
    model.error = SettingError("no such layer")
    with pytest.raises(SettingError, match="no such layer"):
        one.warm_up({"scenes": samples[:4]}, {"scenes": 16})
    model.error = MemoryError()
    assert one.warm_up({"scenes": samples[:4]}, {"scenes": 16}) == {}


# -- a user's own model ---------------------------------------------------------------------------------------------

OWN = """
from __future__ import annotations
import sys
from dataclasses import dataclass
@dataclass
class Answer:  # made by looking its module up
    text: str
sys.path.insert(0, {tests!r})
from fake_model import FakeModel
def load(device=None):
    model = FakeModel()
    model.name = "mine on " + str(device)
    return model
"""


def test_a_model_of_a_users_own_file_answers(samples, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(tests=str(Path(__file__).parent)))
    one = make_worker(str(path), {"grid": methods.method("grid")}, {"device": "cpu"})
    assert one.described() == {"name": "mine on cpu", "revision": "1", "device": "None", "dtype": "None"}
    assert one.answer(job(samples)) == worker(FakeModel()).answer(job(samples))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", r"has no function load"),
        ("def load(): return 3", r"returns no model: int lacks name, revision, answer"),
        ("def load(): raise KeyError('weights')", r"load\(\) of .*mine.py failed \(KeyError: 'weights'\)"),
        ("def load(:", r"mine.py cannot be loaded \(SyntaxError"),
        (None, r"There is no file .*mine.py"),
    ],
)
def test_a_file_that_is_no_model_is_one_clear_line(tmp_path, text, words):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words) as told:
        make_worker(str(path), {}, {})
    assert "\n" not in str(told.value)


def test_torch_is_not_needed_to_free_memory(samples, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    assert not any(row.error for row in worker(Small(room=2)).answer(job(samples)))
