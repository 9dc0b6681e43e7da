"""The shapes of bench/attention_gpu.py, the figures they are compared with, and what Chorale is asked for."""

import math

import numpy

from chorale_c import request

try:
    import torch
except ImportError:  # compiling the kernels needs none
    torch = None

DIM, TOKENS = 128, 16384
# batch, length, query heads, KV heads, causal: TFLOP/s of FlashAttention-3 on an H200 (docs/cuda_forward.md says whence).
FORWARD = {(32, 512, 16, 16, True): 335, (16, 1024, 16, 16, True): None, (8, 2048, 16, 16, True): 619,
           (4, 4096, 16, 16, True): 691, (2, 8192, 16, 16, True): None, (1, 16384, 16, 16, True): 758,
           (4, 4096, 32, 8, True): 707, (1, 16384, 32, 8, True): 766, (1, 16384, 16, 16, False): 757}
CHUNKS = [(8, 2048, 16, 16, True), (4, 4096, 16, 16, True), (1, 16384, 16, 16, True)]
NO_CHUNKS = 1 << 20  # keys of a chunk: more than any row has
# batch, keys: microseconds of FlashAttention-3 on an H200, page 16, automatic splits.
DECODE = {(1, 1024): 12.7, (16, 1024): 25.8, (256, 1024): 294, (1, 8192): 19.6, (16, 8192): 134, (64, 8192): 515,
          (1, 32768): 44.3, (16, 32768): 508, (1, 131072): 140}
H200_COPY = 4280  # GB/s, of the card that those are from
PAGES = (16, 64)
DECODE_HEADS, DECODE_KV_HEADS = 32, 8
WORK_FLOPS = 2e12  # of a sample at least: beside some 3 ms of work, events and an idle card's waking are a small share
ROTATE_BYTES = 800e6  # a graph's launches read other keys, so that no cache holds them
TILE = 128  # rows and keys of the forward kernel
WINDOW, PREFIX, DOCUMENT, MASK_HEADS = 1024, 4096, 1000, 16
WRONG = 0.03  # of a row: norm of the difference over norm


def documents():
    """Ids of documents with borders anywhere, 1000 long on average."""
    cuts = numpy.random.default_rng(2).choice(TOKENS, round(TOKENS / DOCUMENT) - 1, replace=False)
    return numpy.searchsorted(numpy.sort(cuts), numpy.arange(TOKENS), side="right").astype(numpy.int32)


def slopes():
    return numpy.exp2(-8 * (numpy.arange(MASK_HEADS) + 1) / MASK_HEADS).astype(numpy.float32)


class MaskRow:
    """A mask as Chorale's text and as flex_attention's function, and a score likewise."""

    def __init__(self, name, text, mask_mod, score="", score_mod=None):
        self.name, self.text, self.mask_mod, self.score, self.score_mod = name, text, mask_mod, score, score_mod


def causal_mod(b, h, q, k):
    return k <= q


def mask_rows(device):
    """`device`: where flex_attention's tables lie; None for Chorale's part only."""
    ids = torch.from_numpy(documents()).to(device) if device else None
    slope = torch.from_numpy(slopes()).to(device) if device else None
    return [MaskRow("causal", "causal", causal_mod),
            MaskRow(f"causal, window {WINDOW}", f"causal and window({WINDOW})", lambda b, h, q, k: (k <= q) & (q - k < WINDOW)),
            MaskRow(f"causal, documents of {DOCUMENT}", "causal and document(document)", lambda b, h, q, k: (k <= q) & (ids[q] == ids[k])),
            MaskRow(f"prefix-LM, {PREFIX}", f"prefix_lm({PREFIX})", lambda b, h, q, k: (k < PREFIX) | (k <= q)),
            MaskRow("causal, ALiBi", "causal", causal_mod, "alibi(slopes)", lambda score, b, h, q, k: score - slope[h] * (q - k).abs()),
            MaskRow("causal, softcap 50", "causal", causal_mod, "softcap(50)", lambda score, b, h, q, k: 50 * torch.tanh(score / 50))]


def forward_request(batch, length, heads, kv_heads, causal, chunk=0):
    lengths = [length] * batch
    return request("flash_attention_3", "cuda", heads, kv_heads, DIM, "bfloat16", "causal" if causal else "all", lengths, lengths, chunk=chunk)


def mask_request(row):
    return request("flash_attention_3", "cuda", MASK_HEADS, MASK_HEADS, DIM, "bfloat16", row.text, [TOKENS], [TOKENS], score=row.score,
                   documents=documents() if "document" in row.text else None, slopes=slopes() if "slopes" in row.score else None)


def page_table(lengths, page):
    """Pages of all sequences in random order."""
    most = -(-max(lengths) // page)
    return numpy.random.default_rng(1).permutation(len(lengths) * most).reshape(len(lengths), most).astype(numpy.int32)


def decode_request(lengths, page):
    table = page_table(lengths, page)
    return request("flash_attention_3", "cuda", DECODE_HEADS, DECODE_KV_HEADS, DIM, "bfloat16", "causal", [1] * len(lengths), lengths,
                   pages=dict(size=page, count=table.size, table=table))


def plan_lengths():
    """256 sequences of a rollout."""
    return numpy.random.default_rng(3).integers(1, 4096, 256).tolist()


def all_requests(rows):
    kinds = {"forward": [forward_request(*shape) for shape in FORWARD],
             "chunks": [forward_request(*shape, chunk) for shape in CHUNKS for chunk in (0, NO_CHUNKS)],
             "decode": [decode_request([keys] * batch, page) for batch, keys in DECODE for page in PAGES],
             "masks": [mask_request(row) for row in mask_rows(None)],
             "plan": [decode_request(plan_lengths(), page) for page in PAGES]}
    return [made for kind in rows for made in kinds.get(kind, [])]


def launches_of(megaflops):
    """So many launches of a forward are a sample."""
    return max(3, math.ceil(WORK_FLOPS / 1e6 / megaflops))
