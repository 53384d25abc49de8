"""dinoswap: one trainer for DINO / iBOT / DINOv2 / DINOv3 pre-training whose differences are config groups."""

__version__ = "0.1.0"
