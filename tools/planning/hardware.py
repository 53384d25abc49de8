"""What GPUs can do, by their data sheets."""

from dataclasses import dataclass

GIB = 2**30
NODE = 8  # GPUs that NVLink connects
HEADROOM = 0.1  # of a GPU's memory, for what is not counted


@dataclass(frozen=True)
class Gpu:
    """Peaks are dense, in FLOP/s of one GPU; bandwidths in bytes/s that a GPU can send in a ring: `nvlink` one way,
    `network` all cards of a node together, as rings of all GPUs of a node share them."""

    memory: float  # bytes; what data sheets call GB are 2^30, to 1 %
    half: float  # bf16 and fp16 with tensor cores
    tf32: float
    fp32: float  # without TF32
    nvlink: float
    network: float
    utilisation: float
    source: str

    def peak(self, precision: str) -> float:
        """Returns the FLOP/s of products in fp32, tf32, or a half precision."""
        return {"fp32": self.fp32, "tf32": self.tf32}.get(precision, self.half)


# NVIDIA's data sheets of the SXM modules, and of DGX for the network: 8 ports of 200 Gbit/s (A100), 400 Gbit/s (later).
GPUS = {
    "a100-40": Gpu(40 * GIB, 312e12, 156e12, 19.5e12, 300e9, 200e9, 0.34, "A100 data sheet (SXM4 40 GB), DGX A100"),
    "a100": Gpu(80 * GIB, 312e12, 156e12, 19.5e12, 300e9, 200e9, 0.34, "A100 data sheet (SXM4 80 GB), DGX A100"),
    "h100": Gpu(80 * GIB, 989e12, 495e12, 67e12, 450e9, 400e9, 0.18, "H100 data sheet (SXM5), DGX H100"),
    "h200": Gpu(141 * GIB, 989e12, 495e12, 67e12, 450e9, 400e9, 0.18, "H200 data sheet (SXM), DGX H200"),
    "b200": Gpu(180 * GIB, 2250e12, 1100e12, 75e12, 900e9, 400e9, 0.18, "HGX B200 data sheet, DGX B200"),
}
