"""FlashAttention-3 as a peer, from whichever of these is there: its own package (flash_attn_interface), vLLM's build of it
(vllm.vllm_flash_attn, which packs the heads of a group in the forward too), its forward alone (bench/cuda/flash_3.sh).
Tensors are as Chorale's: q [tokens, heads, dim], k and v [tokens or pages, ...]."""

import ctypes
import importlib

import torch


def batched(x, batch):
    return x.view(batch, -1, *x.shape[1:])


def first(out):
    """Some versions give the log-sum-exp too."""
    return out[0] if isinstance(out, (tuple, list)) else out


class Package:
    name = "flash_attn_interface"

    def __init__(self):
        self.functions = importlib.import_module("flash_attn_interface")

    def forward(self, q, k, v, batch, causal):
        return first(self.functions.flash_attn_func(*(batched(x, batch) for x in (q, k, v)), causal=causal)).flatten(0, 1)

    def decode(self, q, k, v, lengths, keys, table):
        return first(self.functions.flash_attn_with_kvcache(q.unsqueeze(1), k, v, cache_seqlens=lengths, page_table=table, causal=True)).squeeze(1)


class Vllm:
    name = "vLLM's build"

    def __init__(self):
        importlib.import_module("vllm.vllm_flash_attn._vllm_fa3_C")
        self.run = torch.ops._vllm_fa3_C.fwd

    def call(self, q, k, v, causal, lengths=None, keys=None, table=None):
        # q, k, v, new k and v, q_v, out, starts of q, k and new k, lengths of q, k, longest q, k, page table, ...
        return first(self.run(q, k, v, None, None, None, None, None, None, None, None, lengths, None, keys, table, None, None, None, None, None,
                              None, None, None, q.shape[-1] ** -0.5, causal, -1, -1, 0.0, True, None, 0, None, 0, None, 1, 0, None))

    def forward(self, q, k, v, batch, causal):
        return self.call(*(batched(x, batch) for x in (q, k, v)), causal).flatten(0, 1)

    def decode(self, q, k, v, lengths, keys, table):
        return self.call(q.unsqueeze(1), k, v, True, lengths, keys, table).squeeze(1)


class Built:
    name = "bench/cuda/flash_3.sh"

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.semaphore = torch.zeros(1, dtype=torch.int32, device="cuda")

    def forward(self, q, k, v, batch, causal):
        out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device="cuda")
        failed = self.library.flash_3_forward(
            *(ctypes.c_void_p(x.data_ptr()) for x in (q, k, v, out, lse, self.semaphore)), batch, q.shape[0] // batch, q.shape[1], k.shape[1],
            int(causal), torch.cuda.get_device_properties(0).multi_processor_count, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
        if failed:
            raise RuntimeError(f"flash_3_forward: CUDA error {failed}")
        return out


def find(built):
    """{"forward": side, "decode": side}; `built`: FILE.so or None. Raises where there is none."""
    found, why = {}, []
    for make in (*([lambda: Built(built)] if built else []), Package, Vllm):
        try:
            side = make()
        except Exception as error:  # whatever a package does when it is imported
            why.append(str(error).splitlines()[0])
            continue
        for what in ("forward", "decode"):
            if hasattr(side, what):
                found.setdefault(what, side)
    if not found:
        raise ImportError("; ".join(why))
    return found
