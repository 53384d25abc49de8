"""How a backbone knows where a patch is. One module per option of the `position` group."""
