"""What accelerators can do at most: arithmetic, memory, and links between them.

Of one jax device, by the vendors' data sheets. Arithmetic is FLOP/s of matrix products
without structured sparsity, the denominator of model FLOPs utilisation (MFU); NVIDIA
prints figures with sparsity, twice these, since the H100.

float32 products take the fast path that jax has by default: TF32 on NVIDIA GPUs from
Ampere on, one bfloat16 pass on TPUs (`jax.lax.Precision.DEFAULT`). A device or a number
format that is not in the table has no peak, hence no MFU and no forecast: CPUs, slices
of a GPU (MIG).
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Peaks of one jax device; 0 = it cannot, or no data sheet says.

    Attributes:
        float32: TFLOP/s of products.
        bfloat16: likewise.
        memory_bytes: that a program can have.
        memory_rate: bytes per second between memory and chip.
        link_rate: bytes per second that it can send to others nearby: over all links of
            the slice, or to the GPUs of one machine.
        network_rate: bytes per second that it can send to other machines; 0 = as
            `link_rate`.
        num_neighbours: devices that `link_rate` reaches; 0 = all.
    """

    float32: float
    bfloat16: float
    memory_bytes: float
    memory_rate: float
    link_rate: float = 0.0
    network_rate: float = 0.0
    num_neighbours: int = 0

    def flops_per_second(self, dtype: str) -> float | None:
        """Returns the peak of products of "float32" or "bfloat16"; None = unknown."""
        return getattr(self, dtype, 0) * 1e12 or None


def _tpu(
    bfloat16: float, *, memory: float, rate: float, links: float, devices: int = 1
) -> Peaks:
    """A chip's TFLOP/s, GB/s of memory and of links both ways; GiB of a device."""
    return Peaks(
        float32=bfloat16 / devices,
        bfloat16=bfloat16 / devices,
        memory_bytes=memory * GIB,
        memory_rate=rate * 1e9 / devices,
        link_rate=links * 1e9 / 2 / devices,  # one way
    )


def _gpu(
    float32: float,
    bfloat16: float,
    *,
    memory: float,
    rate: float,
    links: float,
    network: float = 0.0,
    neighbours: int = 8,
) -> Peaks:
    """TFLOP/s; GB; GB/s of memory and of links both ways, Gbit/s of the network."""
    return Peaks(
        float32=float32,
        bfloat16=bfloat16,
        memory_bytes=memory * 1e9,
        memory_rate=rate * 1e9,
        link_rate=links * 1e9 / 2,
        network_rate=network * 1e9 / 8,
        num_neighbours=neighbours,
    )


# "NVIDIA A100 Tensor Core GPU" data sheet: TF32 156, BF16 312, all form factors; 1,555
# GB/s with 40 GB, 2,039 with 80 GB (1,935 PCIe); NVLink 600 GB/s. "DGX A100": a network
# card of 200 Gbit/s per GPU.
_A100 = _gpu(156, 312, memory=80, rate=2039, links=600, network=200)
_A100_40GB = _gpu(156, 312, memory=40, rate=1555, links=600, network=200)
_A100_PCIE = _gpu(156, 312, memory=80, rate=1935, links=64, network=200)
_A100_PCIE_40GB = _gpu(156, 312, memory=40, rate=1555, links=64, network=200)
# "NVIDIA H100 Tensor Core GPU" data sheet, with sparsity: SXM TF32 989, BF16 1,979; NVL
# 835 and 1,671; its PCIe card (first edition): 756 and 1,513. SXM 80 GB, 3,350 GB/s,
# NVLink 900; NVL 94 GB, 3,900, 600; PCIe 80 GB, 2,000, 600 by bridge in pairs, else
# PCIe 128. "DGX H100": a network card of 400 Gbit/s per GPU.
_H100_SXM = _gpu(494.5, 989.5, memory=80, rate=3350, links=900, network=400)
_H100_NVL = _gpu(417.5, 835.5, memory=94, rate=3900, links=128, network=400)
_H100_PCIE = _gpu(378, 756.5, memory=80, rate=2000, links=128, network=400)
# "NVIDIA H200 Tensor Core GPU": arithmetic as the H100; 141 GB, 4,800 GB/s, NVLink 900.
_H200 = _gpu(494.5, 989.5, memory=141, rate=4800, links=900, network=400)
_H200_NVL = _gpu(417.5, 835.5, memory=141, rate=4800, links=128, network=400)
# "NVIDIA HGX B200" and "DGX B200" data sheets, of eight GPUs, with sparsity: TF32 18,
# BF16 36 PFLOP/s; 1,440 GB, 64 TB/s, NVLink 14.4 TB/s; eight network cards of 400 Gb/s.
_B200 = _gpu(1125, 2250, memory=180, rate=8000, links=1800, network=400)
# "NVIDIA L4 Tensor Core GPU" data sheet, with sparsity: TF32 120, BF16 242; 24 GB, 300
# GB/s, PCIe 64 GB/s.
_L4 = _gpu(60, 121, memory=24, rate=300, links=64)
# "NVIDIA A10G" data sheet (AWS): TF32 35, BF16 70 (the A10's are higher); 24 GB, 600
# GB/s, PCIe 64 GB/s.
_A10G = _gpu(35, 70, memory=24, rate=600, links=64)
# "NVIDIA T4" data sheet: FP32 8.1; Turing has neither TF32 nor bfloat16; 16 GB, 320
# GB/s, PCIe 32 GB/s.
_T4 = _gpu(8.1, 0, memory=16, rate=320, links=32)
# Google Cloud's pages "TPU v4" … "TPU7x": peak compute per chip (bf16), HBM bandwidth,
# bidirectional ICI bandwidth. A chip is one device, but two on TPU7x. The v4's links
# follow from its all-reduce bandwidth, 1.1 PB/s by 4,096 chips one way. The memory is
# what libtpu 0.0.42 lets a program have ("exceeds available HBM (15.75G)"); the v4's
# that of the page, 32 GiB.
_V4 = _tpu(275, memory=32, rate=1200, links=2 * 1.1e6 / 4096)
_V5E = _tpu(197, memory=15.75, rate=819, links=400)
_V5P = _tpu(459, memory=95.74, rate=2765, links=1200)
_V6E = _tpu(918, memory=31.25, rate=1638, links=800)
_V7X = _tpu(2307, memory=94.75, rate=7380, links=1200, devices=2)

# By `jax.Device.device_kind`.
_PEAKS = {
    "NVIDIA A100-PCIE-40GB": _A100_PCIE_40GB,
    "NVIDIA A100-SXM4-40GB": _A100_40GB,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100_PCIE,
    "NVIDIA B200": _B200,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H200": _H200,
    "NVIDIA H200 NVL": _H200_NVL,
    "NVIDIA L4": _L4,
    "NVIDIA A10G": _A10G,
    "Tesla T4": _T4,
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _V7X,
    "TPU v7x": _V7X,
}


def peaks(device_kind: str) -> Peaks | None:
    """Returns the peaks of one device, None where no data sheet tells them.

    Args:
        device_kind: of a `jax.Device`.
    """
    return _PEAKS.get(device_kind)


def peak_flops_per_second(device_kind: str, dtype: str) -> float | None:
    """Returns the peak of one device, None where no data sheet tells it.

    Args:
        device_kind: of a `jax.Device`.
        dtype: of the operands, "float32" or "bfloat16" (`model.compute_dtype`).
    """
    found = peaks(device_kind)
    return found.flops_per_second(dtype) if found else None
