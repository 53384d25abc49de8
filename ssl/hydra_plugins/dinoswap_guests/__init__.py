"""The configs of installed packages that bring options (dinoswap.config.guests), on Hydra's search path."""
