"""From one loss per masked token to a scalar. One module per option of the `reduction` group."""
