"""Which crop sizes a step has. One module per option of the `resolution` group."""
