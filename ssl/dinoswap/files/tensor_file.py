"""Makes the content of a safetensors file piece by piece, from the memory that the tensors are in.

The library would assemble the file in memory first. The format: the length of the header, the header in JSON, then the
numbers of all tensors without a gap, little-endian, those of the widest types first so that each begins at a multiple
of its width. Where in the whole tensor a part begins is noted as torch.distributed.checkpoint does, which reads it.
"""

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dinoswap.distributed.sharding import Part

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The types that can be stored, with their names in the format."""
ALIGNED = 8
"""The numbers begin at a multiple of this many bytes: the width of the widest type."""
PIECE = 2**22
"""The largest number of bytes of a piece, which is still in the processor's cache when it is used a second time."""


def tensor_file(parts: Mapping[str, Part]) -> Iterator[bytes | memoryview]:
    """Yields the content of the file that holds these parts of tensors, which are contiguous and on the CPU."""
    by_width = sorted(parts.items(), key=lambda named: -named[1].tensor.itemsize)
    entries, end = {}, 0
    for name, (tensor, _) in by_width:
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    places = {name: {"saved_offsets": list(part.begin)} for name, part in by_width}
    metadata = {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % ALIGNED)
    yield len(header).to_bytes(8, "little") + header
    for _, part in by_width:
        content = _bytes_of(part.tensor)
        for begin in range(0, len(content), PIECE):
            yield content[begin : begin + PIECE]


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
