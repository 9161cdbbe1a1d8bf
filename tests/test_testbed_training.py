"""The training script: packing, resuming, a minute's worth of learning; and the checkpoint that ships."""

import random

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from sparsezip.errors import UsageError
from sparsezip.models.load import TESTBED
from sparsezip.testbed.labels import patch_labels
from sparsezip.testbed.lessons import answer_loss, encode, pixels
from sparsezip.testbed.model import make_tokenizer
from sparsezip.testbed.packing import Words, looks, pack
from sparsezip.testbed.questions import ask
from sparsezip.testbed.scenes import CHARS, Difficulty, make
from sparsezip.testbed.score import score
from sparsezip.testbed.train import STAGES, Trainer, train


def test_packed_turns_equal_each_question_asked_alone(tmp_path):
    trainer = Trainer(tmp_path, "tune", minutes=1)
    scene = make("train", 5, 8, 8, Difficulty(objects=(3, 4), distractors=(0, 1), sign=0.0))
    turns = pack([scene], trainer.words, random.Random(0), turns=5)
    assert len(turns.asked[0]) > 2
    visual = torch.randn(1, 64, 192)
    with torch.no_grad():
        packed, _ = answer_loss(trainer.model, turns, visual, 0.0)
        alone, count = 0.0, 0
        for asked in turns.asked[0]:
            prompt = [*trainer.words.prefix, *[trainer.words.image] * 64, *trainer.words.suffix]
            prompt += trainer.words.encode(f"{asked.text} ASSISTANT:")
            answer = [*trainer.words.encode(f" {asked.answer}"), trainer.words.eos]
            embeds = trainer.model.get_input_embeddings()(torch.tensor([prompt + answer]))
            start = len(trainer.words.prefix)
            embeds[:, start : start + 64] = visual
            stock = trainer.model.model.language_model
            stock.config._attn_implementation = "sdpa"
            logits = trainer.model.lm_head(stock(inputs_embeds=embeds).last_hidden_state)[0, -len(answer) - 1 : -1]
            stock.config._attn_implementation = "testbed_training"
            alone += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
            count += len(answer)
    assert packed.item() == pytest.approx(alone / count, rel=1e-5)


def test_patches_that_are_not_shown_leave_their_places_empty(tmp_path):
    trainer = Trainer(tmp_path, "tune", minutes=1)
    scene = make("train", 5, 8, 8, Difficulty(objects=(3, 4), distractors=(0, 1), sign=0.0))
    kept = torch.tensor([[3, 10, 11, 40, 63]])
    whole = pack([scene], trainer.words, random.Random(0))
    part = pack([scene], trainer.words, random.Random(0), kept=kept)
    before, after = len(trainer.words.prefix), len(trainer.words.prefix) + 64
    assert part.positions[0, before : before + 5].tolist() == [before + p for p in kept[0].tolist()]
    assert torch.equal(part.ids[0, before + 5 :], whole.ids[0, after:])
    assert torch.equal(part.positions[0, before + 5 :], whole.positions[0, after:])
    for whole_marks, part_marks in zip(whole.bearing[0], part.bearing[0], strict=True):
        bears = {p for p in kept[0].tolist() if whole_marks[before + p]}
        assert {kept[0, i].item() for i in range(5) if part_marks[before + i]} == bears
        assert part_marks[0] == (not bears)


def test_tokens_are_told_where_to_look():
    words = Words(make_tokenizer())
    scene = make("train", 2, difficulty=Difficulty(objects=(6, 6), alike=0.0, sign=1.0))
    shows = patch_labels(scene)

    def looked_at(type_, seed):
        asked = next(q for i in range(200) if (q := ask(scene, type_, random.Random(f"{seed}/{i}"))))
        tokens, about = words.tokens(f"{asked.text} ASSISTANT:", asked.nouns)
        answer, bears = words.tokens(f" {asked.answer}", asked.spans, 1)
        spoken = words.tokenizer.convert_ids_to_tokens([*tokens, *answer])
        return asked, [(spoken[at].removeprefix("Ġ"), at - len(tokens), p) for at, p in looks(asked, about, bears)]

    asked, found = looked_at("relation", 0)  # each noun at its own thing
    for (word, _, patches), thing in zip(found, [asked.text.split()[2], asked.text.split()[-1][:-1]], strict=True):
        assert word == thing
        assert {scene.things[i].shape for i in shows.thing.flatten()[list(patches)]} == {thing}
    asked, found = looked_at(
        "count", 0
    )  # the digit's turn: at each counted thing once, and six times at the first token
    assert {at for _, at, _ in found} == {0}
    assert sorted(len(patches) for *_, patches in found) == [0] * 6 + [1] * int(asked.answer)
    assert len({shows.center.flatten()[p] for *_, patches in found for p in patches} - {-1}) == int(asked.answer)
    asked, found = looked_at("read", 0)  # each character at its own glyph
    assert [at for _, at, _ in found] == [i - 1 for i in range(len(asked.answer) + 1)]
    assert "".join(CHARS[shows.char.flatten()[patches[0]]] for *_, patches in found[1:]) == asked.answer
    asked, found = looked_at("color", 0)
    assert [(at, patches) for _, at, patches in found] == [(-1, asked.patches)]


def test_windows_at_full_size_equal_the_stock_tower(tmp_path):
    trainer = Trainer(tmp_path, "tower", minutes=1)
    images = pixels([make("train", 1)])
    with torch.no_grad():
        stock = trainer.model.model.vision_tower(images, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(encode(trainer.model, images), stock)


def test_pixels_equal_the_processors(tmp_path):
    from PIL import Image

    from sparsezip.testbed.drawing import draw
    from sparsezip.testbed.model import make_processor

    scene = make("train", 2)
    processed = make_processor().image_processor(Image.fromarray(draw(scene)), return_tensors="pt").pixel_values
    torch.testing.assert_close(processed, pixels([scene]), atol=1e-5, rtol=1e-5)


@pytest.fixture
def one_thread():
    """Gradients of embeddings are summed in any order by several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stage", ["tower", "oracle"])
def test_a_resumed_stage_equals_an_unbroken_one(tmp_path, stage, one_thread):
    unbroken = Trainer(tmp_path / "one", stage, minutes=1e12)
    list(unbroken.run(max_steps=4))
    list(Trainer(tmp_path / "two", stage, minutes=1e12).run(max_steps=2))
    resumed = Trainer(tmp_path / "two", stage, minutes=1e12)
    assert resumed.step == 2
    list(resumed.run(max_steps=4))
    for name, parameter in unbroken.trained.items():
        assert torch.equal(parameter, resumed.trained[name]), name


def test_a_smoke_training_learns_and_exports_a_stock_checkpoint(tmp_path):
    lines = []
    folder = train(tmp_path, minutes=1.0, threads=torch.get_num_threads(), report=lines.append, report_every=10)
    assert {line.split(":")[0] for line in lines} >= {"tower"}
    loss = [float(line.split("loss ")[1].split()[0]) for line in lines if line.startswith("tower: step")]
    assert loss[-1] < 0.9 * loss[0]
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    assert model.config.image_seq_length == 576
    assert (tmp_path / "tune" / "state.safetensors").exists()
    assert set(STAGES) == {p.name for p in tmp_path.iterdir() if p.is_dir() and "checkpoint" not in p.name}
    assert (tmp_path / "curves.svg").read_text().startswith("<svg")
    before = LlavaForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-before-last-phase")
    changed = [not torch.equal(one, other) for one, other in zip(before.parameters(), model.parameters(), strict=True)]
    assert any(changed)
    assert not all(changed)  # the last phase trains the language model, not the tower


def test_an_export_that_a_kill_broke_off_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    trainer, folder = Trainer(tmp_path, "tune", minutes=1), tmp_path / "checkpoint"

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.processor, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.export(folder)
        assert not folder.exists()
    for _ in range(2):  # again: over what the first attempt left, and over a whole one
        trainer.export(folder)
        assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
        assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_the_same_command_goes_on_and_stages_that_are_done_stay(tmp_path, one_thread):
    lines = []
    for _ in range(2):  # the time is up after the first step
        folder = train(tmp_path, minutes=1e-6, stages=["tower"], threads=1, report=lines.append)
    assert folder == tmp_path / "tower"
    assert lines == [
        "tower: 0.0 minutes, saved every minute, figures every 50 steps.",
        "tower: is finished (1 steps, 0.0 minutes).",
    ]
    assert (tmp_path / "curves.svg").exists()
    with pytest.raises(UsageError, match=r"Stage tower in .* was begun with --minutes 1e-06\. Go on with that"):
        train(tmp_path, minutes=1, stages=["tower"])


@pytest.mark.parametrize(("stage", "lacks"), [("align", "tower and oracle"), ("tune", "tower and oracle and align")])
def test_a_stage_without_those_before_it_is_refused(tmp_path, stage, lacks):
    with pytest.raises(UsageError, match=f"Stage {stage} begins with what {lacks} learnt.*--stages tower,oracle"):
        train(tmp_path / "run", minutes=1, stages=[stage])
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_not_finished_is_as_good_as_none(tmp_path, one_thread):
    list(Trainer(tmp_path, "tower", minutes=1).run(max_steps=1))
    train(tmp_path, minutes=1e-6, stages=["oracle"], threads=1, report=lambda line: None)
    with pytest.raises(UsageError, match="with what tower learnt, which is not finished"):
        train(tmp_path, minutes=1, stages=["align"])


@pytest.mark.parametrize("there", ["mine.txt", "checkpoint/mine.txt"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, there):
    file = tmp_path / "run" / there
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    for taken in (tmp_path / "run", file):
        with pytest.raises(UsageError, match="something else than a training run"):
            train(taken, minutes=1e-6)
    assert file.read_text() == "precious"


def test_the_shipped_checkpoint_is_a_small_stock_llava():
    folder = TESTBED
    assert sum(p.stat().st_size for p in folder.iterdir()) < 40e6
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "LlavaProcessor"
    vision = model.config.vision_config
    assert (vision.model_type, vision.image_size, vision.patch_size) == ("clip_vision_model", 336, 14)


def test_the_shipped_checkpoint_sees():
    figures = {row["type"]: row for row in score(per_type=60, seed=99, only=("color", "shape", "exist"))["types"]}
    for type_ in ("color", "shape", "exist"):  # the card has the real figures; 60 questions have an error of .04
        assert figures[type_]["score"] > 0.75
        assert figures[type_]["blind"] < figures[type_]["chance"] + 0.2
    assert figures["exist"]["yes_recall"] > 0.7
    assert figures["exist"]["no_recall"] > 0.7


def test_words_name_single_tokens(tmp_path):
    words = Words(AutoProcessor.from_pretrained(TESTBED).tokenizer)
    assert len(set(words.what.tolist())) == len(words.what)
    assert len(set(words.color.tolist())) == len(words.color)
