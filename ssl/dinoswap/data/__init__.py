"""Reads images: sources, the order of the images, and the batch of a step as a function of its number.

A source (one module per option of the config group `data`) is built from the config and returns `Images` from
`split("train")` and `split("test")`. `Order` maps positions to images, `StepDataset` makes the batch of a micro-step,
`loader` runs it in worker processes, and `CorruptLog` keeps the list of undecodable images.

This module imports nothing: a run is named by the fingerprint of its images, and code that only needs that name (a
study's plan, the driver of a multirun) opens a source without waiting for torch.
"""
