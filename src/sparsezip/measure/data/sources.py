"""Where the official files of each benchmark lie, what they weigh, and who published their checksums.

COCO's own host has no certificate of its name, so its files come from the bucket behind it: the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GB = 1 << 30
MB = 1 << 20
TFDS = "TensorFlow Datasets lists (url_checksums/coco_captions.txt)"
PARLAI = "ParlAI lists (tasks/vqa_v2/build.py)"
POPE = "https://raw.githubusercontent.com/RUCAIBox/POPE/3df3ba1b110ecce25696989577fad583b67d4239/output/coco"
COCO = "https://s3.amazonaws.com/images.cocodataset.org"
VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa"
GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"


@dataclass(frozen=True)
class File:
    """A file at an official address.

    cap: the most bytes it may have. size, sha256: as `by` published them; None: nobody did, so that the first one that
    arrives is trusted. keep: what is taken out of an archive, None for a file that is none; strip: what the paths of
    its members lose in front. unpacked: the most bytes it may unpack to.
    """

    url: str
    cap: int
    size: int | None = None
    sha256: str | None = None
    by: str = ""
    keep: tuple[str, ...] | None = None
    strip: str = ""
    unpacked: int = 2 * GB

    @property
    def name(self) -> str:
        """The file's name, the last part of its address."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Part:
    """One folder of a benchmark: it appears when all of its files are there."""

    folder: str
    files: tuple[File, ...]


@dataclass(frozen=True)
class Source:
    """A benchmark's official files; none where they are not public, and `how` says how they are had then."""

    parts: tuple[Part, ...]
    questions: int
    how: str = ""


VAL2014 = Part(
    "val2014",
    (
        File(
            f"{COCO}/zips/val2014.zip", 7 * GB, 6645013297,
            "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0", TFDS,
            keep=("val2014/*.jpg",), strip="val2014/", unpacked=8 * GB,
        ),
    ),
)  # fmt: skip

OFFICIAL: Mapping[str, Source] = {
    "pope": Source(
        (
            Part(
                "pope",
                tuple(
                    File(f"{POPE}/coco_pope_{split}.json", MB, size, sha256, "its repository holds at that commit")
                    for split, size, sha256 in (
                        ("random", 368166, "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994"),
                        ("popular", 370190, "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753"),
                        ("adversarial", 370401, "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8"),
                    )
                ),
            ),
            VAL2014,
        ),
        9000,
    ),
    "coco_caption": Source(
        (
            Part(
                "coco_caption",
                (
                    File(
                        "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip", 64 * MB, 36745453,
                        "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817", TFDS,
                        keep=("dataset_coco.json",),
                    ),
                    File(
                        f"{COCO}/annotations/annotations_trainval2014.zip", 300 * MB, 252872794,
                        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009", TFDS,
                        keep=("annotations/captions_val2014.json",),
                    ),
                ),
            ),
            VAL2014,
        ),
        5000,
    ),
    "vqav2": Source(
        (
            Part(
                "vqav2",
                (
                    File(
                        f"{VQA}/v2_Questions_Val_mscoco.zip", 16 * MB,
                        sha256="e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a", by=PARLAI,
                        keep=("v2_OpenEnded_mscoco_val2014_questions.json",),
                    ),
                    File(
                        f"{VQA}/v2_Annotations_Val_mscoco.zip", 64 * MB,
                        sha256="0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e", by=PARLAI,
                        keep=("v2_mscoco_val2014_annotations.json",),
                    ),
                ),
            ),
            VAL2014,
        ),
        214354,
    ),
    "textvqa": Source(
        (
            Part(
                "textvqa",
                (
                    File(f"{TEXTVQA}/data/TextVQA_0.5.1_val.json", 16 * MB),
                    File(f"{TEXTVQA}/data/TextVQA_Rosetta_OCR_v0.2_val.json", 64 * MB),
                    File(
                        f"{TEXTVQA}/images/train_val_images.zip", 8 * GB,
                        keep=("train_images/*.jpg",), unpacked=10 * GB,
                    ),
                ),
            ),
        ),
        5000,
    ),
    "gqa": Source(
        (
            Part(
                "gqa",
                (
                    File(
                        f"{GQA}/questions1.2.zip", 3 * GB,
                        keep=("testdev_balanced_questions.json",), unpacked=64 * GB,
                    ),
                    File(f"{GQA}/images.zip", 24 * GB, keep=("images/*.jpg",), unpacked=32 * GB),
                ),
            ),
        ),
        12578,
        "Its official images weigh 20 GB, of which the questions need 398 images; --from hub brings those alone.",
    ),
    "mme": Source(
        (),
        2374,
        "MME is given on request: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch "
        "Evaluation. With its archive: sparsezip data get mme {data} --from MME_Benchmark_release_version.zip. "
        "Without: sparsezip data get mme {data} --from hub.",
    ),
    "docvqa": Source(
        (),
        5349,
        "DocVQA is given to registered users: make an account at https://rrc.cvc.uab.es, accept the terms of the "
        "challenge Document Visual Question Answering, and take spdocvqa_qas.zip and spdocvqa_images.tar.gz from its "
        "Downloads, Task 1. Then: sparsezip data get docvqa {data} --from spdocvqa_qas.zip --from "
        "spdocvqa_images.tar.gz. Without an account: sparsezip data get docvqa {data} --from hub.",
    ),
}  # fmt: skip
