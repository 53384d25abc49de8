"""Write tests/golden/configs: the resolved config of every preset with some recipes, a line per key.

    python tools/renew_golden.py

The difference in git then shows what a change of configs/ does to each preset.
"""

from pathlib import Path

import yaml

from dinoswap.command_line import compose_config
from dinoswap.configuration import config_dir, flatten

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "configs"
RECIPES = ("smoke", "vits16")


def golden_configs() -> dict[str, str]:
    """File name -> YAML."""
    presets = sorted(path.stem for path in (config_dir() / "preset").glob("*.yaml"))
    return {
        f"{preset}-{recipe}.yaml": yaml.safe_dump(
            flatten(compose_config([f"preset={preset}", f"recipe={recipe}"])), default_flow_style=None, sort_keys=False
        )
        for preset in presets
        for recipe in RECIPES
    }


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    configs = golden_configs()
    for outdated in (path for path in GOLDEN.iterdir() if path.name not in configs):
        outdated.unlink()
    for name, text in configs.items():
        (GOLDEN / name).write_text(text)
        print(GOLDEN / name)


if __name__ == "__main__":
    main()
