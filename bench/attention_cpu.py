"""Chorale's CPU attention against PyTorch's scaled_dot_product_attention: one process, the same data, interleaved.

    python bench/attention_cpu.py LIBRARY [--threads N] [--seconds S] [--dtypes A,B] [--quick [--length N] [--heads N]]
                                  [--processor-time]

LIBRARY is build/release/bench/libchorale_bench.so; `make bench` passes it. For each shape: the median time of each side,
the spread (interquartile range over median), the ratio PyTorch / Chorale, and what fraction of the peak Chorale reaches.
The peak takes turns with both: a loop of the same instruction that does as many operations, operands in registers; for a
decode, reading as many bytes of memory that no cache holds. So all three have the same processor at the same moments.
Without PyTorch the peer's columns are left out, and the program says so. --processor-time counts the process's own time
in place of the clock's, for a machine that others use: with --threads 1 only.
"""

import argparse
import ctypes
import itertools
import platform
import statistics
import time

import numpy

try:
    import torch
    import torch.nn.functional as functional
except ImportError:
    torch = None

from chorale_c import Chorale, request
from machine import processor


def aligned(values):
    """A copy that starts with a cache line, as PyTorch's tensors and the KV cache's pages do; NumPy's arrays do not."""
    memory = numpy.empty(values.nbytes + 64, numpy.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start:start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array


class Data:
    """Random tensors in memory that both sides read. bfloat16 lies as uint16 where PyTorch is absent."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.random = numpy.random.default_rng(0)

    def tensor(self, *shape):
        tensor = self.zeros(*shape)
        flat, part = tensor.reshape(-1), 1 << 24  # in parts: the random numbers of a large cache are larger than itself
        for start in range(0, flat.size, part):
            values = self.random.standard_normal(min(part, flat.size - start), dtype=numpy.float32)
            if self.dtype == "bfloat16":
                bits = values.view(numpy.uint32)
                values = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            flat[start:start + part] = values
        return tensor

    def zeros(self, *shape):
        type_ = {"bfloat16": numpy.uint16, "float16": numpy.float16, "float32": numpy.float32}[self.dtype]
        return aligned(numpy.broadcast_to(type_(0), shape))

    def torch(self, array):
        tensor = torch.from_numpy(array.view(numpy.int16) if self.dtype == "bfloat16" else array)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor


def free_memory():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


clock = time.perf_counter


def interleave(sides, seconds):
    """Runs the callables in turn for about `seconds`; their times in seconds."""
    times = [[] for _ in sides]
    for side in sides:
        side()
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 200):
        for side, samples in zip(sides, times):
            start = clock()
            side()
            samples.append(clock() - start)
    return times


def spread(samples):
    if len(samples) < 4:
        return max(samples) / min(samples) - 1
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / statistics.median(samples)


class Table:
    def __init__(self):
        print(f"{'work':<44} {'Chorale':>10} {'spread':>7} {'rate':>13} {'peak':>8} {'of it':>7} {'PyTorch':>10} {'ratio':>6}")

    def row(self, name, amount, unit, times, peak_times, peer_times=None):
        """The peak's times are of as much as the work: `amount`."""
        ours, peak = statistics.median(times), statistics.median(peak_times)
        line = f"{name:<44} {ours * 1e3:>8.2f}ms {spread(times):>6.0%} {amount / ours / 1e9:>8.1f} {unit} {amount / peak / 1e9:>8.1f} {peak / ours:>6.0%}"
        if peer_times:
            peer = statistics.median(peer_times)
            line += f" {peer * 1e3:>8.2f}ms {peer / ours:>5.2f}x"
        print(line, flush=True)


class Bench:
    def __init__(self, arguments):
        self.chorale = Chorale(arguments.library)
        self.threads = arguments.threads
        self.seconds = arguments.seconds
        self.quick = arguments.quick
        self.length, self.heads = arguments.length, arguments.heads
        self.table = None
        if torch:
            torch.set_num_threads(self.threads)

    def case(self, heads, kv_heads, dim, dtype, mask, q_lens, kv_lens, threads, documents=None, pages=None):
        return self.chorale.case(request("flash_attention_2", "cpu", heads, kv_heads, dim, dtype, mask, q_lens, kv_lens,
                                         threads=threads, documents=documents, pages=pages))

    def multiply(self, dtype, operations):
        return lambda: self.chorale.c.chorale_multiply(dtype.encode(), ctypes.c_double(operations), self.threads)

    def packed(self, dtype, batch, length, heads, kv_heads, mask="causal", dense_mask=None, documents=None, visible=None,
               backward=True, dim=128):
        c, data = self.chorale.c, Data(dtype)
        total = batch * length
        q, k, v = data.tensor(total, heads, dim), data.tensor(total, kv_heads, dim), data.tensor(total, kv_heads, dim)
        out, lse, grad_out = data.zeros(total, heads, dim), numpy.zeros((total, heads), numpy.float32), data.tensor(total, heads, dim)
        grads = data.zeros(total, heads, dim), data.zeros(total, kv_heads, dim), data.zeros(total, kv_heads, dim)
        case = self.case(heads, kv_heads, dim, dtype, mask, [length] * batch, [length] * batch, self.threads, documents)
        pairs = visible if visible is not None else batch * length * (length + 1) / 2
        operations = 4 * heads * dim * pairs
        forward = lambda: self.chorale.check(c.chorale_forward(case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse), None))
        forward_sides = [forward, self.multiply(dtype, operations)]
        if torch:
            shape = lambda x, h: data.torch(x).view(batch, length, h, dim).transpose(1, 2).detach().requires_grad_(backward)
            tq, tk, tv = shape(q, heads), shape(k, kv_heads), shape(v, kv_heads)
            options = dict(attn_mask=dense_mask) if dense_mask is not None else dict(is_causal=mask == "causal")
            attend = lambda: functional.scaled_dot_product_attention(tq, tk, tv, enable_gqa=heads != kv_heads, **options)

            def peer_forward():
                with torch.no_grad():
                    attend()

            forward_sides.append(peer_forward)
            forward()
            with torch.no_grad():
                difference = (attend().transpose(1, 2).reshape(total, heads, dim).float() - data.torch(out).float()).abs().max().item()
            if not difference < ({"bfloat16": 0.06, "float16": 0.01, "float32": 1e-4}[dtype]):
                raise SystemExit(f"bench: outputs differ by {difference} for {dtype} {batch}x{length} {mask}")
        name = f"{dtype} {batch}x{length} {heads}/{kv_heads} {'causal' if mask == 'causal' else mask[:22]}"
        self.table.row(name + " fwd", operations, "GFLOP/s", *interleave(forward_sides, self.seconds))
        if backward:
            step = lambda: self.chorale.check(c.chorale_backward(
                case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse), pointer(grad_out), *map(pointer, grads)))
            sides = [step, self.multiply(dtype, 2.5 * operations)]
            if torch:
                tgrad = data.torch(grad_out).view(batch, length, heads, dim).transpose(1, 2)
                kept = attend()
                sides.append(lambda: torch.autograd.grad(kept, (tq, tk, tv), tgrad, retain_graph=True))
            self.table.row(name + " bwd", 2.5 * operations, "GFLOP/s", *interleave(sides, self.seconds))
        c.chorale_case_free(case)

    def decode(self, dtype, batch, context, heads=32, kv_heads=8, dim=128, page=16):
        c, data = self.chorale.c, Data(dtype)
        name = f"{dtype} decode batch {batch}, {context} keys, page {page}"
        size = 2 * batch * context * kv_heads * dim * (4 if dtype == "float32" else 2)
        # PyTorch may repeat the keys for each query head of a group.
        needed = size * (1 + (heads // kv_heads if torch else 0))
        if needed > free_memory():
            print(f"{name}: left out, needs up to {needed / 1e9:.0f} GB of memory: {free_memory() / 1e9:.0f} GB are free", flush=True)
            return
        per_sequence = context // page
        count = batch * per_sequence
        table = numpy.random.default_rng(1).permutation(count).reshape(batch, per_sequence)
        q, out, lse = data.tensor(batch, heads, dim), data.zeros(batch, heads, dim), numpy.zeros((batch, heads), numpy.float32)
        k, v = data.tensor(count, page, kv_heads, dim), data.tensor(count, page, kv_heads, dim)
        case = self.case(heads, kv_heads, dim, dtype, "causal", [1] * batch, [context] * batch, self.threads,
                                 pages=dict(size=page, count=count, table=table))
        forward = lambda c_case: lambda: self.chorale.check(
            c.chorale_forward(c_case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse), None))
        # What limits a decode: reading the same pages with nothing else to do, and computing on pages that the
        # second-level cache holds.
        pages = numpy.ascontiguousarray(table.reshape(-1), dtype=numpy.int32)
        page_floats = k[0].nbytes // 4
        read = lambda: c.chorale_read_pages(pointer(k), pointer(v), ctypes.c_int64(page_floats), pointer(pages), ctypes.c_int64(count), self.threads)
        cached = self.case(heads, kv_heads, dim, dtype, "causal", [1] * batch, [context] * batch, self.threads,
                           pages=dict(size=page, count=count, table=table % 4))
        memory = lambda: c.chorale_read_memory(ctypes.c_int64(size), self.threads)
        sides = [forward(case), memory, read, forward(cached)]
        if torch:  # the peer reads dense keys: PyTorch has no paged attention on the CPU
            tq = data.torch(q).view(batch, 1, heads, dim).transpose(1, 2)
            dense = lambda x: data.torch(x).view(batch, context, kv_heads, dim).transpose(1, 2)
            tk, tv = dense(k), dense(v)

            def peer():
                with torch.no_grad():
                    functional.scaled_dot_product_attention(tq, tk, tv, enable_gqa=True)

            sides.append(peer)
        ours, peak, alone, in_cache, *peer = interleave(sides, self.seconds)
        self.table.row(name, size, "GB/s   ", ours, peak, *peer)
        print(f"  reading those pages alone {size / statistics.median(alone) / 1e9:.1f} GB/s, computing on pages in the cache {size / statistics.median(in_cache) / 1e9:.1f} GB/s", flush=True)
        for each in (case, cached):
            c.chorale_case_free(each)

    def masks(self, dtype, length=8192, heads=16, window=512):
        """A window and documents: against PyTorch with the dense mask, and the cost of a visible tile against causal's."""
        position = numpy.arange(length)
        causal = position[:, None] >= position[None, :]
        in_window = causal & (position[:, None] - position[None, :] < window)
        ends = numpy.sort(numpy.random.default_rng(2).choice(length, 7, replace=False))
        ids = numpy.searchsorted(ends, position, side="right").astype(numpy.int32)
        same = causal & (ids[:, None] == ids[None, :])
        for mask, dense, documents in ((f"causal and window({window})", in_window, None), ("causal and document[q] == document[k]", same, ids)):
            peer = torch.from_numpy(dense) if torch else None
            self.packed(dtype, 1, length, heads, heads, mask, peer, documents, int(dense.sum()), backward=False)
            self.tile_cost(dtype, length, heads, mask, documents, dense, causal)

    def tile_cost(self, dtype, length, heads, mask, documents, dense, causal, dim=128):
        rows, keys = self.tile[dtype]
        tiles = lambda shown: int(shown.reshape(length // rows, rows, length // keys, keys).any(axis=(1, 3)).sum())
        data = Data(dtype)
        q, k, v = (data.tensor(length, heads, dim) for _ in range(3))
        out, lse = data.zeros(length, heads, dim), numpy.zeros((length, heads), numpy.float32)
        cases = [self.case(heads, heads, dim, dtype, text, [length], [length], self.threads, ids) for text, ids in ((mask, documents), ("causal", None))]
        forward = lambda case: lambda: self.chorale.check(self.chorale.c.chorale_forward(case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse), None))
        ours, whole = (statistics.median(times) for times in interleave([forward(case) for case in cases], self.seconds))
        cost = ours / tiles(dense) / (whole / tiles(causal))
        print(f"  a visible tile ({rows} rows x {keys} keys) of {tiles(dense)} costs {cost:.2f} of one of causal's {tiles(causal)}", flush=True)
        for case in cases:
            self.chorale.c.chorale_case_free(case)

    def threads_row(self, dtype, length=4096, heads=16, dim=128):
        """One thread against all, interleaved: forward and backward."""
        c, data = self.chorale.c, Data(dtype)
        q, k, v, grad_out = (data.tensor(length, heads, dim) for _ in range(4))
        out, lse = data.zeros(length, heads, dim), numpy.zeros((length, heads), numpy.float32)
        grads = [data.zeros(length, heads, dim) for _ in range(3)]
        cases = [self.case(heads, heads, dim, dtype, "causal", [length], [length], threads) for threads in (1, self.threads)]
        forward = lambda case: lambda: self.chorale.check(c.chorale_forward(case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse), None))
        backward = lambda case: lambda: self.chorale.check(c.chorale_backward(
            case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse), pointer(grad_out), *map(pointer, grads)))
        for name, step in (("fwd", forward), ("bwd", backward)):
            one, all_threads = (statistics.median(times) for times in interleave([step(case) for case in cases], self.seconds))
            print(f"{dtype} 1x{length} {heads}/{heads} causal {name}: 1 thread {one * 1e3:.2f}ms, {self.threads} threads {all_threads * 1e3:.2f}ms, {one / all_threads:.2f}x", flush=True)
        for case in cases:
            c.chorale_case_free(case)

    def run(self, dtypes):
        c = self.chorale.c
        print(f"machine: {platform.processor() or platform.machine()}, {processor()}, {self.threads} threads")
        print(f"peer: {'PyTorch ' + torch.__version__ + ' scaled_dot_product_attention' if torch else 'none (PyTorch is not installed: make extras)'}")
        self.tile = {}
        for dtype in dtypes:
            case = self.case(16, 16, 128, dtype, "causal", [1], [1], self.threads)
            fingerprint = c.chorale_fingerprint(case).decode()
            self.tile[dtype] = (32, 32) if "/T32/" in fingerprint else (128, 64)
            print(f"{dtype}: {fingerprint}")
            c.chorale_case_free(case)
        print("peak: as many operations of the product instruction, or a decode's bytes of memory, in turns with the work")
        self.table = Table()
        shapes = ((1, self.length), (4, 1024), (16, 256))
        for dtype in dtypes:
            for batch, length in shapes[:1] if self.quick else shapes:
                for heads, kv_heads in ((self.heads, self.heads),) if self.quick else ((32, 8), (16, 16)):
                    self.packed(dtype, batch, length, heads, kv_heads)
            if self.threads > 1:
                self.threads_row(dtype, self.length, self.heads)
            self.masks(dtype, 2 * self.length, self.heads)
            for batch, context in ((1, 8192), (16, 8192)) if self.quick else itertools.product((1, 16, 64), (1024, 8192, 32768)):
                self.decode(dtype, batch, context)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row of the table")
    parser.add_argument("--quick", action="store_true", help="one shape of each kind")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of bfloat16, float16, float32")
    parser.add_argument("--length", type=int, default=4096, help="of the longest sequence; masks take twice that")
    parser.add_argument("--heads", type=int, default=16, help="with --quick")
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine; with --threads 1")
    arguments = parser.parse_args()
    if arguments.processor_time:
        if arguments.threads != 1:
            parser.error("--processor-time: only with --threads 1, since it adds up the time of all threads")
        global clock
        clock = time.process_time
    Bench(arguments).run(arguments.dtypes.split(","))


if __name__ == "__main__":
    main()
