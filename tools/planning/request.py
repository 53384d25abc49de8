"""What tools/plan.py is asked, looked at before anything is computed."""

from dinoswap.config.schema import ConfigError, nearest
from planning.hardware import GPUS
from planning.values import Request

SHARDINGS = ("none", "ddp", "fsdp2")


def checked_request(
    distributed: str,
    gpu: str,
    gpus: int,
    sharding: str | None,
    utilisation: float | None,
    runs: int,
    price: float | None,
    evaluated: tuple[int, int, int] | None = None,
) -> Request:
    """Returns the request with its defaults filled in. `distributed` is the chosen option of that group. Raises
    ConfigError for a value that no plan can have."""
    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu}: is not in the table.{nearest(gpu, GPUS)} Use one of {', '.join(GPUS)}")
    for name, value in (("gpus", gpus), ("runs", runs)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    if utilisation is not None and not 0 < utilisation <= 1:
        raise ConfigError(
            f"--utilisation {utilisation}: must lie above 0 and be at most 1; leave it out for "
            f"{GPUS[gpu].utilisation}, which published runs reached"
        )
    if price is not None and not price >= 0:
        raise ConfigError(f"--price {price}: must be 0 or more, for one GPU hour")
    if evaluated is not None and min(evaluated) < 1:
        raise ConfigError(f"--evaluated {' '.join(map(str, evaluated))}: three numbers, of at least 1 each, are needed")
    spread = chosen_sharding(distributed, gpus, sharding)
    return Request(gpu, gpus, spread, utilisation or GPUS[gpu].utilisation, runs, price, evaluated)


def chosen_sharding(distributed: str, gpus: int, requested: str | None) -> str:
    """Returns the sharding of --sharding, or else that of the group `distributed`. Raises ConfigError where the two
    disagree, and for several GPUs without any."""
    if requested is not None and requested not in SHARDINGS:
        raise ConfigError(f"--sharding {requested}: use one of {', '.join(SHARDINGS)}.{nearest(requested, SHARDINGS)}")
    if requested is not None and distributed not in ("none", requested):
        raise ConfigError(f"--sharding {requested}: distributed={distributed} says otherwise; leave one of them out")
    spread = requested or distributed
    if spread == "none" and gpus > 1:
        raise ConfigError(f"--gpus {gpus}: one process drives one GPU; add distributed=ddp or distributed=fsdp2")
    return spread
