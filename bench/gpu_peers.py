"""What Chorale is raced against on a GPU. Each peer gives a step, or raises what it cannot do."""

import importlib

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import gpu_flash_3

CUDNN, FLASH_2, FLEX, FLASH_3, FLASHINFER = "cuDNN", "FlashAttention-2", "flex_attention", "FlashAttention-3", "FlashInfer"
BACKENDS = {CUDNN: SDPBackend.CUDNN_ATTENTION, FLASH_2: SDPBackend.FLASH_ATTENTION}

torch._dynamo.config.recompile_limit = 64  # every mask and shape is one


flash_3 = {}  # "forward", "decode": who does it


def installed(built_flash_3):
    """{peer: None where it is there, else why not}, of those that PyTorch does not bring along."""
    found = {}
    for peer, look in ((FLASH_3, lambda: flash_3.update(gpu_flash_3.find(built_flash_3))), (FLASHINFER, lambda: importlib.import_module("flashinfer"))):
        try:
            look()
            found[peer] = None
        except Exception as error:  # whatever a package does when it is imported
            found[peer] = str(error).splitlines()[0]
    return found


def by_heads(x, batch):
    """[batch * length, heads, dim] as PyTorch wants it, [batch, heads, length, dim], of the same memory."""
    return x.view(batch, -1, *x.shape[1:]).transpose(1, 2)


def rows(out):
    """[batch, heads, length, dim] as Chorale has it."""
    return out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3])


def sdpa(peer, q, k, v, causal):
    with sdpa_kernel(BACKENDS[peer]):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def compile_one_block_size():
    """create_block_mask sorts within a kernel of which torch.compile makes three to choose from, of other block sizes. The largest
    takes minutes to compile (seen with PyTorch 2.11); the smallest, of a quarter of one, is what is left here."""
    from torch._inductor.runtime import triton_heuristics
    several = getattr(triton_heuristics, "_persistent_reduction_configs", None)
    if several is not None:
        triton_heuristics._persistent_reduction_configs = lambda *arguments, **named: several(*arguments, **named)[:1]


compile_one_block_size()
compiled_flex = torch.compile(flex_attention, dynamic=False)
compiled_block_mask = torch.compile(create_block_mask, dynamic=False)


def block_mask(mask_mod, length):
    return compiled_block_mask(mask_mod, None, None, length, length, device="cuda")


def flex(q, k, v, mask, score_mod=None):
    return compiled_flex(q, k, v, score_mod=score_mod, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def flashinfer_decode(table, lengths, page, heads, kv_heads, dim):
    """A planned wrapper; its run(q, (k, v)) is the step."""
    import flashinfer
    batch, pages = table.shape
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device="cuda"), "NHD", use_tensor_cores=True)
    indptr = torch.arange(batch + 1, dtype=torch.int32) * pages
    last = (lengths.cpu() - 1) % page + 1
    wrapper.plan(indptr, table.flatten(), last.int(), heads, kv_heads, dim, page,
                 q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
    return wrapper
