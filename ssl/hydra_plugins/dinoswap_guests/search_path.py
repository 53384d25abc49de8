"""Puts the configs of guest packages on Hydra's search path, after those of this package."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from dinoswap.config.guests import guests


class GuestSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for guest in guests():
            search_path.append(guest.name, f"file://{guest.configs}")
