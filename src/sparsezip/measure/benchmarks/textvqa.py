"""TextVQA: questions that ask to read text in photographs, ten people's answers each. val: 5,000 on 3,166 images.

Source: https://textvqa.org/dataset (Singh et al., CVPR 2019), TextVQA_0.5.1_val.json, train_val_images.zip (its images
lie in train_images) and, for the preset llava, TextVQA_Rosetta_OCR_v0.2_val.json.
Licence: CC BY 4.0 (annotations); images of Open Images, CC BY 2.0.
Official scorer: M4C's evaluator (facebookresearch/mmf), which LLaVA and lmms-eval use: soft accuracy over ten answers.
Hub: lmms-lab-encoder/textvqa (until July 2026 lmms-lab/textvqa), which holds the OCR tokens too.

LLaVA's scripts tell the model which words an OCR engine found in the image, and its published scores are with them;
lmms-eval does not tell. Never mix the two.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError
from ..annotations import first_existing, id_of, inside, listed, text_of, texts_of, without_image
from ..metrics import vqa
from ..metrics.interval import Estimate, mean
from ..records import Row
from .base import SHORT, Benchmark, Entry, Hub, Prompt, chosen, prompts

OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
EXAMPLE = {
    "TextVQA_0.5.1_val.json": """{"dataset_type": "val", "dataset_name": "textvqa", "data": [
        {"question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901", "image_classes": ["Camera"],
         "flickr_original_url": "https://c2.staticflickr.com/4/3153/2970773875_o.jpg", "image_width": 1024,
         "image_height": 664, "answers": ["nous les gosses", "dakota", "clos culombu", "dakota digital", "dakota",
         "dakota", "dakota", "dakota", "dakota", "dakota"], "question_tokens": ["what", "is", "the", "brand", "of",
         "this", "camera"], "question_id": 34602, "set_name": "val"}]}""",
    OCR: """{"data": [{"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL", "Single-Use"],
         "ocr_info": []}]}""",
    "train_images/003a8ae2ef43b901.jpg": None,
}
LLAVA = "{question}\nReference OCR token: {context}\nAnswer the question using a single word or phrase."


class TextVqa(Benchmark):
    """Reading text in photographs."""

    name = "textvqa"
    title = "TextVQA"
    example: ClassVar = EXAMPLE
    group_noun = "split"
    groups = ("val",)
    columns: ClassVar = {"accuracy": "acc %"}
    headline = "accuracy"
    # lmms-eval's task names no longest answer; its LLaVA models take 1,024 then.
    prompts: ClassVar = prompts() | {"llava": Prompt(LLAVA, 128), "lmms-eval": Prompt(SHORT, 1024)}
    hub = Hub("lmms-lab-encoder/textvqa", "validation")
    image_folders = ("train_images", "images", "")

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of the validation split, with the OCR tokens where their file is there."""
        chosen(["val"], only, "split of TextVQA")
        places = [root / folder for root in roots for folder in ("", "annotations")]
        rows = listed(first_existing((place / "TextVQA_0.5.1_val.json" for place in places), "TextVQA"), "data")
        tokens: dict[str, Sequence[str]] = {}
        for path in [place / OCR for place in places if (place / OCR).exists()][:1]:
            tokens = {id_of(row, "image_id", where): _tokens(row, where) for where, row in listed(path, "data")}
        return [self._entry(row, place, tokens.get(id_of(row, "image_id", place))) for place, row in rows]

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of lmms-lab-encoder/textvqa."""
        return self._entry(row, place, _tokens(row, place))

    def _entry(self, row: Mapping[str, Any], place: str, tokens: Sequence[str] | None) -> Entry:
        return Entry(
            id=id_of(row, "question_id", place),
            image=inside(f"{id_of(row, 'image_id', place)}.jpg", place),
            question=text_of(row, "question", place).capitalize(),  # as LLaVA's question file and lmms-eval have it
            references=texts_of(row, "answers", place),
            group="val",
            context=None if tokens is None else ", ".join(tokens),
        )

    def _asked(self, prompt: Prompt, entry: Entry) -> str:
        if "{context}" in prompt.text and entry.context is None:
            raise DataError(
                f"TextVQA: the prompt llava tells the text that OCR found in image {entry.image}, which {OCR} of "
                "https://textvqa.org/dataset would say. Get that file, or ask with --prompt lmms-eval."
            )
        return super()._asked(prompt, entry)

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """The soft accuracy over ten people's answers."""
        return {
            "accuracy": mean((row.image, vqa.accuracy(row.answer or "", row.references, "textvqa")) for row in rows)
        }


def _tokens(row: Mapping[str, Any], place: str) -> list[str]:
    """What OCR found, which may be nothing."""
    tokens = [] if row.get("ocr_tokens") == [] else texts_of(row, "ocr_tokens", place)
    return [without_image(token, place) for token in tokens]
