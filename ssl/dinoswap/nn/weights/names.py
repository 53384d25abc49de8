"""Names of tensors: how those of two state dicts differ, and how some are told to a user."""

from collections.abc import Iterable, Mapping

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
