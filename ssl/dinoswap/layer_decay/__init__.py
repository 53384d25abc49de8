"""The lr multiplier of each backbone parameter by its depth. One module per option of the `layer_decay` group."""
