"""What bench/attention_gpu.py compiles before it times anything: Chorale's kernels and flex_attention's."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import sys
import time

from chorale_c import Failure
from gpu_cases import DIM, MASK_HEADS, TOKENS, all_requests, mask_rows

PATIENCE = 200  # seconds for all of flex_attention's kernels


def say(text):
    print(text, file=sys.stderr, flush=True)


def compile_kernels(chorale, rows):
    """Puts all kernels into the cache, on all cores. Gives the sentences of those that failed."""
    failures = set()

    def compile_one(made):
        try:
            return chorale.compile(made)
        except Failure as failure:
            failures.add(str(failure))
            return 0

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        seconds = list(pool.map(compile_one, all_requests(rows)))
    say(f"kernels: {sum(s > 0 for s in seconds)} compiled in {time.perf_counter() - start:.0f} s")
    return failures


def compile_flex(which, asked):
    """In a process of its own: what torch.compile makes stays in its cache on disk. Gives what took how many seconds."""
    laps = [asked]
    import torch
    import gpu_peers
    torch.set_grad_enabled(False)
    row = mask_rows("cuda")[which]
    q, k, v = (gpu_peers.by_heads(torch.zeros(TOKENS, MASK_HEADS, DIM, dtype=torch.bfloat16, device="cuda"), 1) for _ in range(3))
    laps.append(time.time())
    mask = gpu_peers.block_mask(row.mask_mod, TOKENS)
    torch.cuda.synchronize()
    laps.append(time.time())
    gpu_peers.flex(q, k, v, mask, row.score_mod)
    torch.cuda.synchronize()
    laps.append(time.time())
    return "start {:.0f}, mask {:.0f}, attention {:.0f}".format(*(end - begin for begin, end in zip(laps, laps[1:])))


def compiled_mark():
    """A file in torch.compile's cache that says that these kernels lie there."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    import torch
    return pathlib.Path(cache_dir(), f"chorale_flex_{torch.cuda.get_device_name().replace(' ', '_')}")


def compile_peers():
    """flex_attention's kernels, a process each: one after another they take minutes. The rows compile what is missing."""
    mark = compiled_mark()
    if mark.exists():
        return
    jobs, start, whole = range(len(mask_rows(None))), time.perf_counter(), True
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count())) as pool:  # its end ends the processes
        for job, result in [(job, pool.apply_async(compile_flex, (job, time.time()))) for job in jobs]:
            try:
                say(f"flex_attention, mask {job}: seconds: {result.get(max(1, PATIENCE - (time.perf_counter() - start)))}")
            except Exception as error:  # the row will tell
                whole = False
                say(f"flex_attention, mask {job}: {type(error).__name__}: {error}")
    say(f"flex_attention: compiled in {time.perf_counter() - start:.0f} s")
    if whole:
        mark.touch()
