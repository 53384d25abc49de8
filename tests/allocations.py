"""How large the tensors are that an operation makes."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Within it `elements` grows by the number of elements of each new tensor; views and results in place are none."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and _memory(leaf) not in given]
        self.elements += [tensor.numel() for tensor in made]
        return result

    def of_at_least(self, elements: int) -> int:
        """How many."""
        return sum(count >= elements for count in self.elements)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
