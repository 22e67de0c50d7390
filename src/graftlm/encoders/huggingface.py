"""Any vision network of transformers that reads pixels: CLIP, SigLIP, DINOv2, ViT, ResNet, ConvNeXt, Swin and so on.

Pictures go through the model's own image processor in its Pillow version, so no torchvision is needed. Of a
checkpoint that holds a text model too (CLIP, SigLIP) only the vision model is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.data.media import black_image, load_image
from graftlm.data.sentence import Image, Part
from graftlm.encoders.base import Encoder, Features, require, weights_fingerprint
from graftlm.errors import BackboneError

# Class, distillation and register tokens that may stand before the patches.
_MOST_PREFIX_TOKENS = 16
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


class HuggingFaceEncoder(Encoder):
    """The grid of a vision network, and the vector the network itself pools.

    `tokens` are the last hidden states of the patches or cells, in reading order; class and register tokens that
    stand before them are left out unless `class_token`. `pooled` is the network's own pooled vector (for CLIP the
    class token after the last norm, as FROMAGe uses it, arXiv:2301.13823 §3.1); where the checkpoint has no trained
    pooler it is the class token, and without one the mean of the grid. `layer` counts back from the last: -2 is the
    penultimate layer that LLaVA reads (arXiv:2304.08485 §4.1).

    Shapes:
        inputs: (N, 3, H, W) as the image processor makes them
    """

    def __init__(
        self, model: nn.Module, processor: Any, *, class_token: bool = False, layer: int = -1, has_pooler: bool = True
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.processor = processor
        self.layer = layer
        self.has_pooler = has_pooler
        self.class_token = class_token
        sample = self._sample_input()
        self.prefix_tokens = self._count_prefix(sample)
        with torch.no_grad():
            found = self(sample)
        self.num_positions, self.dim = found.tokens.shape[1:]
        settings = {
            "config": _stable(self.model.config.to_dict()),  # type: ignore[union-attr, operator]
            "processor": _stable(processor.to_dict()),
            "outputs": [class_token, layer, has_pooler],
        }
        used = {name: weight for name, weight in model.state_dict().items() if has_pooler or "pooler" not in name}
        self.fingerprint = weights_fingerprint(used, settings)

    @classmethod
    def load(cls, name_or_path: str | Path, *, class_token: bool = False, layer: int = -1) -> HuggingFaceEncoder:
        """A network by hub id or local folder, in float32. Raises: BackboneError when it cannot be used."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        name = str(name_or_path)
        try:
            with quiet_loading():
                config = AutoConfig.from_pretrained(name)
                vision = getattr(config, "vision_config", None) or config
                processor = AutoImageProcessor.from_pretrained(name, backend="pil")  # type: ignore[no-untyped-call]
                model, info = AutoModel.from_pretrained(
                    name, config=vision, dtype=torch.float32, output_loading_info=True, use_safetensors=True
                )
        except _LOADING_ERRORS as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BackboneError(
                f"encoder '{name}': expected a hub id or folder of a vision model with its image processor ({first})"
            ) from None
        return cls(
            model,
            processor,
            class_token=class_token,
            layer=layer,
            has_pooler=_check_missing(name, info["missing_keys"]),
        )

    @classmethod
    def from_model(
        cls, model: nn.Module, processor: Any | int = 224, *, class_token: bool = False, layer: int = -1
    ) -> HuggingFaceEncoder:
        """A model in memory, with an image processor or the side in pixels its pictures are squashed to.

        Raises: BackboneError when the model does not read pictures of one size.
        """
        if isinstance(processor, int):
            from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

            processor = ViTImageProcessorPil(size={"height": processor, "width": processor})
        return cls(getattr(model, "vision_model", model), processor, class_token=class_token, layer=layer)

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Pictures as the model's own image processor makes them, (N, 3, H, W). Raises: BadSampleError."""
        pictures = [load_image(require(part, Image).source) for part in media]
        inputs: Tensor = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return inputs

    def forward(self, inputs: Tensor) -> Features:
        """Features of (N, 3, H, W); gradients flow."""
        deeper = self.layer != -1
        output = self.model(pixel_values=inputs, output_hidden_states=deeper)
        states = output.hidden_states[self.layer] if deeper else output.last_hidden_state
        tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states  # (N, S, Dv)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self.has_pooler and pooled.flatten(1).shape[1] == tokens.shape[2]:
            pooled = pooled.flatten(1)  # (N, Dv)
        else:
            pooled = tokens[:, 0] if self.prefix_tokens else tokens.mean(1)
        tokens = tokens if self.class_token else tokens[:, self.prefix_tokens :]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Features(tokens, mask, pooled)

    def _sample_input(self) -> Tensor:
        """A black picture as the network's input; tells that every picture comes out alike in size."""
        reads = getattr(self.model, "main_input_name", None)
        kind = type(self.model).__name__
        if reads != "pixel_values":
            raise BackboneError(
                f"{kind}: expected a vision model that reads pixel_values, found one that reads {reads}"
            )
        wide, high = (Image(black_image().resize(size)) for size in ((320, 200), (200, 320)))
        try:
            sizes = [tuple(self.preprocess([part]).shape) for part in (wide, high)]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BackboneError(f"{kind}: its image processor fails on a plain picture ({error})") from None
        if sizes[0] != sizes[1] or len(sizes[0]) != 4:
            raise BackboneError(
                f"{kind}: expected an image processor that makes (1, 3, H, W) of every picture, found "
                f"{sizes[0]} and {sizes[1]}; set its size to one height and width"
            )
        return self.preprocess([wide]).to(next(self.model.parameters()).device)

    def _count_prefix(self, sample: Tensor) -> int:
        try:
            with torch.no_grad():
                output = self.model(pixel_values=sample)
        except (ValueError, TypeError, RuntimeError) as error:
            raise BackboneError(f"{type(self.model).__name__} cannot read its own picture size ({error})") from None
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            raise BackboneError(
                f"{type(self.model).__name__}: expected a last_hidden_state, found none; use its base model"
            )
        patch = getattr(self.model.config, "patch_size", None)
        if states.ndim != 3 or patch is None:
            return 0
        height, width = (patch, patch) if isinstance(patch, int) else patch
        extra = states.shape[1] - (sample.shape[2] // height) * (sample.shape[3] // width)
        return extra if 0 < extra <= _MOST_PREFIX_TOKENS else 0


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No load report and no bar of transformers: what is missing or extra is judged and told here."""
    import transformers.utils.logging as transformers_logging

    logging: Any = transformers_logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _check_missing(name: str, missing: Sequence[str]) -> bool:
    """Whether the pooler's weights were found. Raises: BackboneError when others were not."""
    without_pooler = sorted(key for key in missing if "pooler" not in key)
    if without_pooler:
        raise BackboneError(
            f"encoder '{name}': {len(without_pooler)} weights are missing, '{without_pooler[0]}' first; "
            "it is another kind of checkpoint or not whole"
        )
    return not missing


def _stable(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _VOLATILE}
