"""Patch-prototype clustering. One module per option of the `clustering` group: which student tokens learn."""
