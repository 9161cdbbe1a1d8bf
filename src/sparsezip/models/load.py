"""Open a checkpoint: the shipped testbed, a folder, or an id of the Hugging Face Hub.

transformers does the loading; this file asks the questions before it: is it a family we serve (answered from
config.json, before any weight is fetched), is it in transformers' format, which weights exactly are these. `load_tower`
reads the vision tower alone, with the projector and the word embeddings where a question is asked, and leaves the
language model's weights where they are.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    CLIPConfig,
    CLIPModel,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_accelerate_available, is_bitsandbytes_available

from ..errors import UnknownNameError, UnsupportedCallError, UnsupportedModelError
from ..registry import nearest
from . import registry
from .base import Adapter
from .clip import ClipText

TESTBED = Path(__file__).parents[1] / "testbed" / "checkpoint"

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WHERE = ("revision", "token", "cache_dir", "local_files_only")  # options that say where on the Hub to look
_TWINS = {
    "liuhaotian/llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "liuhaotian/llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "liuhaotian/llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "liuhaotian/llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "liuhaotian/llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
}


@dataclass
class Checkpoint:
    """An opened checkpoint, or the part of one that was asked for."""

    name: str  # as asked for
    folder: Path  # where its files lie
    model: Any
    processor: Any
    adapter: Adapter

    @cached_property
    def revision(self) -> str:
        """Which weights these are: the Hub's commit, or "sha256:" and a hash of the safetensors files of a folder."""
        if self.folder.parent.name == "snapshots":
            return self.folder.name
        digest = hashlib.sha256()
        for file in sorted(self.folder.glob("*.safetensors")):
            with file.open("rb") as weights:
                digest.update(hashlib.file_digest(weights, "sha256").digest())
        return f"sha256:{digest.hexdigest()[:16]}"

    def prompt(self, question: str) -> str:
        """The prompt that asks `question` about one image: the processor's chat template, or the family's own form."""
        if getattr(self.processor, "chat_template", None) is None:
            return self.adapter.prompt.replace("{question}", question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    @property
    def device(self) -> torch.device:
        """Where a call's inputs go: the model's device, or one that computes where its weights are offloaded."""
        device = self.model.device
        return torch.device(_default_device()) if device.type == "meta" else device

    def pixels(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Images as the tower reads them: the image arguments of a call, on the model's device."""
        made = self.processor.image_processor(images, return_tensors="pt").to(self.device, self.model.dtype)
        return {name: made[name] for name in made.keys() & self.adapter.image_arguments}


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of the family `model` belongs to. Raises UnsupportedModelError naming the supported ones."""
    tower = getattr(getattr(model.config, "vision_config", None), "model_type", None)
    return _family(tower, *(kind.__name__ for kind in type(model).__mro__))(model)


def patches(name_or_path: str | Path, **where: Any) -> int | None:
    """Patches of every image for that checkpoint, from its config.json alone, so that a method can be checked at once.

    None where the config does not tell. Raises as `load` does.
    """
    files = _Files.of(name_or_path, where)
    return files.family.patches(files.config)


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    clip: ClipText | str | Path | None = None,
    **options: Any,
) -> Checkpoint:
    """Open "testbed", a folder or a Hub id, with weights from safetensors files only.

    `device`: None takes CUDA if there is one. `dtype`: None keeps the checkpoint's. `quantization`: "4bit" (NF4) or
    "8bit" (LLM.int8) has bitsandbytes, on CUDA or a CPU, quantize the language model's layers; tower and projector, on
    whose features methods work, stay as they are. Other options (revision, token, quantization_config, device_map,
    offload_folder, ...) go to transformers' from_pretrained. `clip`: the CLIP that the vision tower was taken from, or
    what `load_clip` is to open, for methods that compare patches with text in CLIP's space.

    Raises UnknownNameError when there is nothing of that name, UnsupportedModelError for a family that is not served
    and for checkpoints in the original LLaVA format (naming their twin in transformers' format), UnsupportedCallError
    for options that contradict each other or need a package that is not installed.
    """
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise UnsupportedCallError(f"device={str(device)!r}, but PyTorch finds no CUDA device here. Leave it out.")
    files = _Files.of(name_or_path, options)
    _ = files.family
    _check_placing(device, quantization, files, options)
    if quantization is not None:
        options["quantization_config"] = _quantizer(quantization, dtype, files, trust_remote_code=trust_remote_code)
    if options.get("quantization_config") and not options.get("device_map") and is_accelerate_available():
        options["device_map"] = {"": device or _default_device()}  # quantized where it is to stay
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            files.source,
            dtype=dtype or "auto",
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    except OSError as error:  # no safetensors file, or a shard of it missing
        raise UnsupportedModelError(f"{name_or_path} cannot be opened: {str(error).splitlines()[0]}") from error
    except ImportError as error:  # an attention or a quantizer
        raise UnsupportedCallError(
            f"{name_or_path} cannot be opened as asked: {str(error).splitlines()[0]} Install it, or ask for another."
        ) from error
    if not options.get("device_map"):  # which has placed it already
        model.to(device or _default_device())
    processor = _processor(files, trust_remote_code=trust_remote_code)
    adapter = adapter_for(model)
    adapter.lend(_clip(clip, model, options))
    return Checkpoint(str(name_or_path), files.folder, model.eval(), processor, adapter)


def load_tower(
    name_or_path: str | Path,
    *,
    question: bool = False,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    clip: ClipText | str | Path | None = None,
    **where: Any,
) -> Checkpoint:
    """Open the vision tower alone and, for a `question`, the projector and the word embeddings.

    Only these weights are read (of a sharded checkpoint, only the shards that hold them are fetched), and no layer of
    the language model is made. For `compress_images`; such a checkpoint cannot generate. `clip` and what is raised: as
    for `load`.
    """
    files = _Files.of(name_or_path, where)
    family = files.family
    wanted = family.tower_weights + (family.question_weights if question else ())
    config = AutoConfig.from_pretrained(files.source, **files.where)
    config.text_config.num_hidden_layers = 0
    if not question:  # a vocabulary of one, so that no word embeddings are made
        config.text_config.vocab_size, config.text_config.pad_token_id = 1, None
    with torch.device("meta"):
        kind: Any = type(AutoModel.from_config(config))
    with _no_load_report():  # it would list the parts that were left out
        model = kind.from_pretrained(
            None,
            config=config,
            state_dict=files.tensors(wanted),
            dtype=dtype or "auto",
            attn_implementation="sdpa",
        )
    adapter = family(model.to(device or _default_device()).eval())
    if not question:
        adapter.offers = family.offers - {"question"}
    adapter.lend(_clip(clip, model, where))
    return Checkpoint(str(name_or_path), files.folder, model, _processor(files), adapter)


def load_clip(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **where: Any,
) -> ClipText:
    """Open a CLIP by folder or Hub id, from safetensors files only, without the layers of its vision tower.

    Raises UnknownNameError when there is nothing of that name, UnsupportedModelError for what is no CLIP or has no
    safetensors file.
    """
    files = _Files.of(name_or_path, where)
    if files.config.get("model_type") != "clip":
        raise UnsupportedModelError(
            f"{name_or_path} is no CLIP: its config.json says model_type={files.config.get('model_type')!r}. Give the "
            "CLIP that the model's vision tower was taken from, such as openai/clip-vit-large-patch14-336."
        )
    config: Any = CLIPConfig.from_pretrained(files.source, **files.where)
    config.vision_config.num_hidden_layers = 0
    try:
        with _no_load_report():
            model: Any = CLIPModel.from_pretrained(
                files.source, config=config, dtype=dtype or "auto", use_safetensors=True, **files.where
            )
    except OSError as error:
        raise UnsupportedModelError(f"{name_or_path} cannot be opened: {str(error).splitlines()[0]}") from error
    return ClipText(
        model.to(device or _default_device()).eval(), AutoTokenizer.from_pretrained(files.source, **files.where)
    )


def _clip(clip: ClipText | str | Path | None, model: Any, options: dict[str, Any]) -> ClipText | None:
    """The CLIP to lend to `model`; where its name is given, opened as the model was, but for the revision."""
    if clip is None or isinstance(clip, ClipText):
        return clip
    same = {key: options[key] for key in _WHERE if key in options and key != "revision"}
    device = None if model.device.type == "meta" else model.device
    return load_clip(clip, device=device, dtype=model.dtype, **same)


def _check_placing(device: Any, quantization: str | None, files: "_Files", options: dict[str, Any]) -> None:
    """Raise UnsupportedCallError for options of `load` that contradict each other or lack a package."""
    device_map = options.get("device_map")
    if device and device_map:
        raise UnsupportedCallError(
            f"device={str(device)!r} and device_map={device_map!r} both say where the model is to be. Give one of them."
        )
    asked, needs = "device_map=", {"accelerate": is_accelerate_available()} if device_map else {}
    if quantization is not None:
        asked = f"quantization={quantization!r}"
        if quantization not in ("4bit", "8bit"):
            raise UnsupportedCallError(
                f'There is no {asked}. Give "4bit" or "8bit", or as quantization_config= another of transformers\' '
                "quantizers."
            )
        if options.get("quantization_config"):
            raise UnsupportedCallError(f"{asked} and quantization_config= both say how to quantize. Give one of them.")
        if files.config.get("quantization_config"):
            raise UnsupportedCallError(f"{asked} was asked for, but {files.source} is quantized already. Leave it out.")
        needs = {"accelerate": is_accelerate_available(), "bitsandbytes": is_bitsandbytes_available()}
    lacking = [package for package, there in needs.items() if not there]
    if lacking:
        raise UnsupportedCallError(
            f"{asked} needs {' and '.join(lacking)}, which this environment lacks or has too old. Install it: "
            f"pip install -U {' '.join(lacking)}."
        )


def _quantizer(bits: str, dtype: Any, files: "_Files", *, trust_remote_code: bool) -> BitsAndBytesConfig:
    """What tells transformers to have bitsandbytes quantize the layers of the language model and no others."""
    config = AutoConfig.from_pretrained(files.source, trust_remote_code=trust_remote_code, **files.where)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    decoder = adapter_for(model).decoder
    getLogger("bitsandbytes.autograd._functions").setLevel("ERROR")  # says at every layer of every call what it casts
    inside = next(name for name, module in model.named_modules() if module is decoder)
    return BitsAndBytesConfig(
        load_in_4bit=bits == "4bit",
        load_in_8bit=bits == "8bit",
        llm_int8_skip_modules=[rf"(?!{re.escape(inside)}\.).*"],  # a pattern of names; for 4 bits as well
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=config.dtype if dtype in (None, "auto") else dtype,
    )


@dataclass
class _Files:
    """The files of a checkpoint, in a folder or on the Hub."""

    source: str | Path  # what transformers is to be given
    folder: Path
    where: dict[str, Any] = field(default_factory=dict)  # options for the Hub; empty for a folder

    @classmethod
    def of(cls, name_or_path: str | Path, options: dict[str, Any]) -> "_Files":
        name, where = str(name_or_path), {key: options[key] for key in _WHERE if key in options}
        if name in _TWINS or name.startswith("liuhaotian/"):
            raise UnsupportedModelError(_original_format(name, _TWINS.get(name)))
        folder = TESTBED if name == "testbed" else Path(name)
        if (folder / "config.json").is_file():
            return cls(folder, folder)
        if name == "testbed":
            raise UnknownNameError(f"This installation lacks the testbed's checkpoint ({TESTBED}). Install it anew.")
        if folder.exists() or folder.is_absolute() or name.count("/") != 1:
            hint = nearest(name, ["testbed"]) or " Give testbed, a folder with config.json, or a Hub id (owner/name)."
            raise UnknownNameError(f'There is no model "{name}".{hint}')
        try:
            config = Path(cached_file(name, "config.json", **where) or "")
        except OSError as error:  # what transformers raises for everything that keeps it from a file
            raise UnknownNameError(f'There is no model "{name}" to be had: {str(error).splitlines()[0]}') from error
        return cls(name, config.parent, where)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as it stands."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    @property
    def family(self) -> type[Adapter]:
        """The family it is of. Raises UnsupportedModelError."""
        tower = self.config.get("vision_config") or {}
        return _family(tower.get("model_type"), *self.config.get("architectures") or [])

    def path(self, name: str) -> Path | None:
        """One file of the checkpoint, fetched if need be; None if there is none of that name."""
        if self.source == self.folder:
            return self.folder / name if (self.folder / name).is_file() else None
        file = cached_file(self.source, name, _raise_exceptions_for_missing_entries=False, **self.where)
        return Path(file) if file else None

    def tensors(self, wanted: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The tensors whose name contains one of `wanted`, read from the files that hold them and from no other."""
        index = self.path(_INDEX)
        if index is None:
            shards = [_WEIGHTS]
        else:
            shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted({shard for name, shard in shard_of.items() if any(part in name for part in wanted)})
        found = {}
        for shard in shards:
            file = self.path(shard)
            if file is None:
                raise UnsupportedModelError(f"{self.source} has no {shard}. Only safetensors checkpoints are read.")
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # a safetensors file is no dict
                    if any(part in name for part in wanted):
                        found[name] = tensors.get_tensor(name)
        return found


@cache
def _family(tower: str | None, *architectures: str) -> type[Adapter]:
    families = [registry.get(name) for name in registry.names()]
    fitting = [family for family in families if family.architectures & set(architectures)]
    if fitting:  # one for this tower, or one for all the others
        return next((family for family in fitting if family.vision == tower), fitting[0])
    asked = architectures[0] if architectures else "A model whose config.json names no architecture"
    if asked.startswith("LlavaLlama"):
        raise UnsupportedModelError(_original_format("This checkpoint", None))
    supported = (f"{family.name} ({', '.join(sorted(family.architectures))})" for family in families)
    raise UnsupportedModelError(f"{asked} is not supported. Supported families: {'; '.join(supported)}.")


def _original_format(name: str, twin: str | None) -> str:
    advice = f"Its twin in transformers' format is {twin}" if twin else "Take its twin from huggingface.co/llava-hf"
    return f"{name} is in the original LLaVA format, which transformers cannot read. {advice}."


def _processor(files: _Files, *, trust_remote_code: bool = False) -> Any:
    options = {"trust_remote_code": trust_remote_code, **files.where}
    try:
        # The image backends differ by up to one step of 255, so results are comparable with one backend only.
        try:
            processor = AutoProcessor.from_pretrained(files.source, backend="pil", **options)
        except (AttributeError, ImportError):  # a video processor has no such backend
            processor = AutoProcessor.from_pretrained(files.source, **options)
            processor.image_processor = AutoImageProcessor.from_pretrained(files.source, backend="pil", **options)
        if not hasattr(processor, "image_processor"):
            raise OSError("there is only a tokenizer")
    except (AttributeError, ImportError, OSError, ValueError) as error:
        why = " ".join(str(error).split()).split(". ")[0]
        hint = " Install torchvision, from where torch is from." if "orchvision" in str(error) or "ideo" in why else ""
        raise UnsupportedModelError(f"The processor of {files.source} cannot be opened: {why}.{hint}") from error
    return processor


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _no_load_report() -> Iterator[None]:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
