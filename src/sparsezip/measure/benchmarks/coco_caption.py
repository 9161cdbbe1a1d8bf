"""COCO captions: describe a photograph in a sentence, five people's captions each. val2014; Karpathy's test: 5,000.

Source: https://cocodataset.org/#download (Chen et al. 2015), annotations_trainval2014.zip and val2014.zip; Karpathy's
splits: dataset_coco.json in https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip (2015).
Licence: CC BY 4.0 (annotations); images under the terms of Flickr.
Official scorer: tylin/coco-caption, packaged as pycocoevalcap (BLEU, METEOR, ROUGE-L, CIDEr; it needs Java).
Hub: lmms-lab-encoder/COCO-Caption (until July 2026 lmms-lab/COCO-Caption), all of val2014 without Karpathy's splits.

Published scores are on Karpathy's test split, so with his file that is what is asked where no split is named; without
it every image of val2014 is. LLaVA-1.5 was not published on it: its preset is what it was trained on for captions, and
lmms-eval's words are the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError
from ..annotations import first_existing, id_of, image_of, listed, text_of, texts_of
from ..metrics import caption
from ..metrics.interval import Estimate
from ..records import Row
from .base import Benchmark, Entry, Hub, chosen, prompts

CAPTIONS, KARPATHY = "captions_val2014.json", "dataset_coco.json"
EXAMPLE = {
    f"annotations/{CAPTIONS}": """{"info": {"description": "This is 1.0 version of the 2014 MS COCO dataset."},
        "images": [
        {"license": 3, "file_name": "COCO_val2014_000000391895.jpg", "height": 360, "width": 640, "id": 391895,
         "coco_url": "http://mscoco.org/images/391895", "date_captured": "2013-11-14 11:18:45"},
        {"license": 5, "file_name": "COCO_val2014_000000203564.jpg", "height": 400, "width": 600, "id": 203564,
         "coco_url": "http://mscoco.org/images/203564", "date_captured": "2013-11-20 07:44:42"}],
        "licenses": [], "annotations": [
        {"image_id": 391895, "id": 770337, "caption": "A man with a red helmet on a small moped on a dirt road. "},
        {"image_id": 203564, "id": 37, "caption": "A bicycle replica with a clock as the front wheel."},
        {"image_id": 203564, "id": 181, "caption": "The bike has a clock as a tire."},
        {"image_id": 391895, "id": 771687, "caption": "Man riding a motor bike on a dirt road."}]}""",
    KARPATHY: """{"images": [
        {"filepath": "val2014", "sentids": [770337, 771687], "filename": "COCO_val2014_000000391895.jpg", "imgid": 0,
         "split": "test", "cocoid": 391895, "sentences": [
         {"tokens": ["a", "man"], "raw": "A man with a red helmet on a small moped on a dirt road. ", "imgid": 0,
          "sentid": 770337}]},
        {"filepath": "val2014", "sentids": [37, 181], "filename": "COCO_val2014_000000203564.jpg", "imgid": 1,
         "split": "test", "cocoid": 203564, "sentences": [
         {"tokens": ["a", "bicycle"], "raw": "A bicycle replica with a clock as the front wheel.", "imgid": 1,
          "sentid": 37}]}], "dataset": "coco"}""",
    "val2014/COCO_val2014_000000391895.jpg": None,
    "val2014/COCO_val2014_000000203564.jpg": None,
}
SPLITS = ("test", "val")  # Karpathy's, each 5,000 images of val2014
WHOLE = "val2014"
ASK = "Provide a one-sentence caption for the provided image."


class CocoCaption(Benchmark):
    """Captions of photographs."""

    name = "coco_caption"
    title = "COCO caption"
    example: ClassVar = EXAMPLE
    group_noun = "split"
    groups = (*SPLITS, WHOLE)
    columns: ClassVar = {  # in percent, as papers print them; CIDEr goes up to 1,000
        "cider": "CIDEr %",
        "bleu_4": "BLEU-4 %",
        "meteor": "METEOR %",
        "rouge_l": "ROUGE-L %",
        "bleu_1": "BLEU-1 %",
    }
    headline = "cider"
    prompts: ClassVar = prompts(ASK, bare="Describe the image.", lmms_eval=64, small=96)
    hub = Hub("lmms-lab-encoder/COCO-Caption", "val")
    image_folders = ("val2014", "images", "")

    def ready(self) -> None:
        """Raises UsageError where pycocoevalcap or Java is missing."""
        caption.check()

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """Karpathy's test split, or those that `only` names; without his file every image of val2014."""
        places = [root / folder for root in roots for folder in ("", "annotations")]
        path = first_existing((place / CAPTIONS for place in places), f"COCO: {CAPTIONS}")
        captions: dict[str, list[str]] = {}
        for place, row in listed(path, "annotations"):
            captions.setdefault(id_of(row, "image_id", place), []).append(text_of(row, "caption", place))
        splits = next((place / KARPATHY for place in places if (place / KARPATHY).exists()), None)
        if splits is None:
            wanted = chosen([WHOLE], only, f"split of COCO without {KARPATHY}")
            rows = [(place, row, "id", "file_name", WHOLE) for place, row in listed(path, "images")]
        else:
            wanted = chosen(SPLITS, only or ["test"], "split of COCO captions")
            rows = [(place, row, "cocoid", "filename", _split(row, place)) for place, row in listed(splits, "images")]
        return [
            self._entry(row, place, number, file, captions.get(id_of(row, number, place)), split)
            for place, row, number, file, split in rows
            if split in wanted
        ]

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of lmms-lab-encoder/COCO-Caption; its "question" is no part of the benchmark."""
        texts = [text.strip() for text in texts_of(row, "answer", place)]
        return self._entry(row, place, "id", "file_name", texts, WHOLE)

    def _entry(
        self, row: Mapping[str, Any], place: str, number: str, file: str, captions: list[str] | None, split: str
    ) -> Entry:
        if not captions:
            raise DataError(f"{place} names an image that {CAPTIONS} has no caption of.")
        image = image_of(row, file, place)
        return Entry(id=id_of(row, number, place), image=image, question="", references=captions, group=split)

    def remark(self, groups: Sequence[str]) -> str | None:
        """Which images were described."""
        if set(groups) <= {"test"}:
            return None
        which = f"images of val2014 ({KARPATHY} is not there)" if WHOLE in groups else f"the splits {', '.join(groups)}"
        return f"COCO caption: {which}; published scores are on the 5,000 images of Karpathy's test split."

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """CIDEr, BLEU, METEOR and ROUGE-L of the official scorer, as it gives them (papers print a hundredfold)."""
        said = [{"image_id": row.image, "caption": row.answer or "", "references": row.references} for row in rows]
        return caption.measures(said)


def _split(row: Mapping[str, Any], place: str) -> str:
    split = text_of(row, "split", place)
    if split not in (*SPLITS, "train", "restval"):
        raise DataError(f"{place} has the split {split!r:.60}; Karpathy's are train, restval, val and test.")
    return split
