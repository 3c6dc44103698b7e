"""Peak arithmetic of accelerators, the denominator of model FLOPs utilisation (MFU).

FLOP/s of matrix products of one jax device, without structured sparsity, by the
vendors' data sheets. NVIDIA prints figures with sparsity, twice these, since the H100.

float32 products take the fast path that jax has by default: TF32 on NVIDIA GPUs from
Ampere on, one bfloat16 pass on TPUs (`jax.lax.Precision.DEFAULT`). A device or a number
format that is not in the table has no peak, hence no MFU: CPUs, slices of a GPU (MIG).
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class _Peak:
    """TFLOP/s of products of each number format; 0 = the device cannot."""

    float32: float
    bfloat16: float


def _tpu(bfloat16: float) -> _Peak:
    return _Peak(float32=bfloat16, bfloat16=bfloat16)


# "NVIDIA A100 Tensor Core GPU" data sheet: TF32 156, BF16 312, both form factors.
_A100 = _Peak(156, 312)
# "NVIDIA H100 Tensor Core GPU" data sheet, with sparsity: SXM TF32 989, BF16 1,979; NVL
# 835 and 1,671; its PCIe card (first edition): 756 and 1,513.
_H100_SXM = _Peak(494.5, 989.5)
_H100_NVL = _Peak(417.5, 835.5)
_H100_PCIE = _Peak(378, 756.5)
# "NVIDIA L4 Tensor Core GPU" data sheet, with sparsity: TF32 120, BF16 242.
_L4 = _Peak(60, 121)
# "NVIDIA A10G" data sheet (AWS): TF32 35, BF16 70. The A10's are higher.
_A10G = _Peak(35, 70)
# "NVIDIA T4" data sheet: FP32 8.1; Turing has neither TF32 nor bfloat16.
_T4 = _Peak(8.1, 0)
# Google Cloud's pages "TPU v4" … "TPU7x", peak compute per chip (bf16). A chip is one
# device, but two on TPU7x.
_V4, _V5E, _V5P, _V6E, _V7X = map(_tpu, (275, 197, 459, 918, 2307 / 2))

# By `jax.Device.device_kind`.
_PEAKS = {
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H200": _H100_SXM,  # "NVIDIA H200 Tensor Core GPU": as the H100
    "NVIDIA H200 NVL": _H100_NVL,
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


def peak_flops_per_second(device_kind: str, dtype: str) -> float | None:
    """Returns the peak of one device, None where no data sheet tells it.

    Args:
        device_kind: of a `jax.Device`.
        dtype: of the operands, "float32" or "bfloat16" (`model.compute_dtype`).
    """
    peak = _PEAKS.get(device_kind)
    tera = getattr(peak, dtype, 0)
    return tera * 1e12 or None
