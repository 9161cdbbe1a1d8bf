"""Compressed models inside lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, 0.7 and newer), with its tasks.

    lmms-eval eval --model sparsezip --tasks pope,mme --batch_size 8 \
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=sparsezip,budget=64

Installed beside it, this package is found through the entry point `lmms_eval.models`. Model arguments: `pretrained` as
`sparsezip.load` takes it, `method` by name (visionzip|fastv is a pair), `dtype`, `attn_implementation`, `clip`; every
other one is a setting of the method. How many visual tokens entered the LLM's layers is logged behind the answers.
"""

from typing import Any


def manifest() -> Any:
    """What lmms-eval's registry asks for: where the model's class is. Imported only when it is asked for by name."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="sparsezip", simple_class_path=f"{__name__}.model.Sparsezip")
