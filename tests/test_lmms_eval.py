"""The plug-in for lmms-eval, against a stand-in of the few names it takes from there.

`make lmms-eval-test` runs it inside lmms-eval itself.
"""

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

import sparsezip
from sparsezip.errors import SettingError, UnsupportedCallError


@pytest.fixture(scope="module")
def plugin():
    """The module with the model's class."""
    cached = []

    class Lmms:
        rank = 0

        def __init__(self):
            self.cache_hook = SimpleNamespace(add_partial=lambda *said: cached.append(said))

    names = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"Instance": SimpleNamespace},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": SimpleNamespace},
        "loguru": {"logger": SimpleNamespace(info=lambda _: None)},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in names.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        room, _, name = project["entry-points"]["lmms_eval.models"]["sparsezip"].partition(":")
        manifest = getattr(importlib.import_module(room), name)()
        room, _, name = manifest.simple_class_path.rpartition(".")
        module = importlib.import_module(room)
        assert manifest.model_id == "sparsezip"
        assert getattr(module, name) is module.Sparsezip
        yield module
    sys.modules.pop(room)


@pytest.fixture(scope="module")
def model(plugin):
    made = plugin.Sparsezip(pretrained="testbed", method="visionzip", dominant=24, contextual=8, batch_size="2")
    scene = Image.open(Path(__file__).parents[1] / "examples" / "scene.png")
    made.task_dict = {"pope": {"test": [scene, scene.rotate(180), [scene, scene.rotate(90)], None]}}
    return made


def visual(document):
    return document if isinstance(document, list) or document is None else [document]


def request(question, document, **settings):
    return SimpleNamespace(args=(question, {"max_new_tokens": 8, **settings}, visual, document, "pope", "test"))


QUESTIONS = ["what shape is the purple object?", "is there a blue star in the image?", "what color is the star?"]


def test_answers_come_in_the_order_of_the_requests_and_are_those_of_the_model_itself(model):
    requests = [request(question, place % 2) for place, question in enumerate(QUESTIONS)]
    vlm, images = (
        sparsezip.load("testbed"),
        [visual(model.task_dict["pope"]["test"][place % 2])[0] for place in range(3)],
    )
    method = sparsezip.method("visionzip", dominant=24, contextual=8)
    own = [vlm.ask(image, question, method, 8).text for image, question in zip(images, QUESTIONS, strict=True)]
    assert len(set(own)) > 1
    assert model.generate_until(requests) == own


def test_a_stop_string_ends_an_answer_and_an_empty_one_is_none(model):
    (whole,) = model.generate_until([request(QUESTIONS[0], 0, until=[""])])
    (short,) = model.generate_until([request(QUESTIONS[0], 0, until=[whole[2:], "zzz"])])
    assert len(whole) > 2
    assert short == whole[:2]


def test_requests_with_other_settings_are_not_answered_together(plugin):
    made = [request("q", 0, max_new_tokens=tokens) for tokens in (4, 4, 4, 8)]
    batches = [(settings["max_new_tokens"], len(batch)) for settings, batch in plugin._batches(made, 2)]
    assert batches == [(4, 2), (4, 1), (8, 1)]


def test_sampling_is_passed_on_and_greedy_is_not_given_a_temperature(plugin):
    assert plugin._generation({"temperature": 0, "top_p": 1.0}) == ([], {"max_new_tokens": 1024, "num_beams": 1})
    stops, generation = plugin._generation({"temperature": 0.5, "top_p": 0.9, "until": "\n", "max_new_tokens": 3})
    assert stops == ["\n"]
    assert generation == {"max_new_tokens": 3, "num_beams": 1, "do_sample": True, "temperature": 0.5, "top_p": 0.9}


@pytest.mark.parametrize(("document", "said"), [(2, "PngImageFile, Image"), (3, "no image")])
def test_a_task_that_does_not_show_one_image_is_refused(model, document, said):
    with pytest.raises(UnsupportedCallError, match=rf"document {document} comes with .*{said}.* one image"):
        model.generate_until([request("q", document)])


def test_what_is_no_generation_is_refused(model):
    with pytest.raises(UnsupportedCallError, match="multiple_choice"):
        model.loglikelihood([])
    with pytest.raises(UnsupportedCallError, match="several rounds"):
        model.generate_until_multi_round([])


def test_a_setting_that_the_method_does_not_have_is_refused(plugin):
    with pytest.raises((SettingError, KeyError), match="dominat"):
        plugin.Sparsezip(pretrained="testbed", method="visionzip", dominat=3)
