"""Whether the metrics of a study can be measured on its data: asked before any of its runs is started."""

from collections.abc import Iterable
from typing import Any

from dinoswap.config.facts import build_source
from dinoswap.config.measured import needs_labels
from dinoswap.config.schema import ConfigError
from dinoswap.run.notices import no_accuracy


def require_measurable(config: dict[str, Any], metrics: Iterable[str]) -> None:
    """Raises ConfigError for an accuracy on data without labelled test images.

    Data that cannot be opened here passes: it may exist where the runs are, and where it does not the runs report it.
    """
    accuracies = [name for name in metrics if needs_labels(name)]
    if not accuracies:
        return
    try:
        source = build_source(config)
        why = no_accuracy(source.train(), source.test())
    except (ValueError, OSError):
        return
    if why:
        raise ConfigError(
            f"{accuracies[0]}: cannot be measured: {why}; choose eval/rankme, or data with labelled test images"
        )
