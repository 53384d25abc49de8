"""What people call a run: the preset, and what was typed that changes the result."""

import shlex
from collections.abc import Iterable, Mapping

from dinoswap.config.explain import presets
from dinoswap.config.identity import is_volatile
from dinoswap.config.typed_paths import key_of
from dinoswap.run.run_folder import NAMED_BY_TEXT


def title_of(choices: Mapping[str, str], overrides: Iterable[str]) -> str:
    """Returns a title such as "official masking=bernoulli", as a shell takes it: the preset among the options that were
    chosen for each group, and the overrides but for what the preset chooses anyway and what decides no result. Paths of
    images and weights stay, which stand for them."""
    preset = choices.get("preset", "")
    typed = {key_of(override): override for override in overrides}
    of_preset = presets().get(preset, {})
    words = [
        override
        for key, override in typed.items()
        if key != "preset"
        and (key in NAMED_BY_TEXT or not is_volatile(key.partition("@")[0]))
        and (key not in choices or choices[key] != of_preset.get(key))
    ]
    return shlex.join(filter(None, [preset, *words]))
