"""Data: sources of images, their order, and the batch of a step as a function of its number.

A source (one module per option of the config group `data`) is built from the config and gives `Images` by
`split("train")` and `split("test")`. `Order` says which image stands at which position, `StepDataset` makes the
batch of a micro-step, `loader` runs it in worker processes, `CorruptLog` keeps the list of undecodable images.

Nothing is imported here: a run is named by the fingerprint of its images, and whoever only needs that name (a study's
plan, the driver of a multirun) opens a source without waiting for torch.
"""
