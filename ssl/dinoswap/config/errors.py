"""The one error of a user's configuration, which every command tells in a line."""


class ConfigError(ValueError):
    """Raised for a configuration that the user has to change; the message gives the key, the value and the remedy."""
