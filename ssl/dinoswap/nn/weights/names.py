"""Names of tensors: how those of two state dicts differ, how one becomes the other, and how some are told to a user."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Returns the differences that keep `state` from being loaded into a module with the state dict `expected`: missing
    and unexpected keys, and other shapes."""
    problems = [f"missing {key}" for key in expected.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in state.keys() - expected.keys()]
    for key in expected.keys() & state.keys():
        if expected[key].shape != state[key].shape:
            problems.append(f"{key} is {list(state[key].shape)}, not {list(expected[key].shape)}")
    return problems


def some(names: Iterable[str], limit: int = 8) -> str:
    """Returns the first `limit` names of a collection, sorted, as text, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def require(state: Mapping[str, Tensor], *keys: str) -> None:
    """Raises ValueError where `state` lacks one of `keys`."""
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"missing {', '.join(missing)}: not the weights of a backbone")


def joined(
    state: Mapping[str, Tensor], parts: Sequence[str], whole: str, absent_is_zero: bool = False
) -> dict[str, Tensor]:
    """Returns `state` with the tensors `<block><part>` of each block, one behind the other, as `<block><whole>`.

    With `absent_is_zero` a part that is missing counts as zeros like another part of its block. Otherwise raises
    ValueError where a block has some parts only.
    """
    state = dict(state)
    for block in dict.fromkeys(key.removesuffix(part) for part in parts for key in state if key.endswith(part)):
        tensors = [state.pop(f"{block}{part}", None) for part in parts]
        present = [tensor for tensor in tensors if tensor is not None]
        if len(present) < len(parts) and not absent_is_zero:
            missing = [f"{block}{part}" for part, tensor in zip(parts, tensors, strict=True) if tensor is None]
            raise ValueError(f"missing {', '.join(missing)}, beside what belongs to it")
        state[f"{block}{whole}"] = torch.cat(
            [torch.zeros_like(present[0]) if tensor is None else tensor for tensor in tensors]
        )
    return state


def cut(state: Mapping[str, Tensor], parts: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Returns `state` with each tensor whose name has a text of `parts` in equal parts, one behind the other, under the
    names with these texts instead: the inverse of `joined`. None shares memory with another."""
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        whole = next((whole for whole in parts if whole in key), None)
        names = [key] if whole is None else [key.replace(whole, part) for part in parts[whole]]
        out |= {name: chunk.clone() for name, chunk in zip(names, tensor.chunk(len(names)), strict=True)}
    return out


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns `state` with other names: in each, every text in `names` is replaced by what it stands for there."""
    out = {}
    for key, tensor in state.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        out[key] = tensor
    return out
