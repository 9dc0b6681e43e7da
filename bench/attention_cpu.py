"""Chorale's CPU attention against PyTorch's scaled_dot_product_attention: one process, the same data, interleaved.

    python bench/attention_cpu.py LIBRARY [--threads N] [--seconds S] [--quick]

LIBRARY is build/release/bench/libchorale_bench.so; `make bench` passes it. For each shape: the median time of each side,
the spread (interquartile range over median), the ratio PyTorch / Chorale, and what fraction of the peak Chorale reaches,
where the peak is measured in the same run by a loop of the same instruction (products) or by reading memory (decode).
Without PyTorch the peer's columns are left out, and the program says so.
"""

import argparse
import ctypes
import platform
import statistics
import time

import numpy

try:
    import torch
    import torch.nn.functional as functional
except ImportError:
    torch = None


class Chorale:
    """The C functions of bench/capi.cpp."""

    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        self.c.chorale_error.restype = ctypes.c_char_p
        self.c.chorale_case.restype = ctypes.c_void_p
        self.c.chorale_fingerprint.restype = ctypes.c_char_p
        self.c.chorale_peak_flops.restype = ctypes.c_double
        self.c.chorale_peak_bandwidth.restype = ctypes.c_double

    def check(self, ok):
        if not ok:
            raise SystemExit("bench: " + self.c.chorale_error().decode())
        return ok

    def case(self, heads, kv_heads, dim, dtype, mask, q_lens, kv_lens, threads, documents=None, pages=None):
        as_ints = lambda values: numpy.ascontiguousarray(values, dtype=numpy.int32)
        q, kv = as_ints(q_lens), as_ints(kv_lens)
        ids = as_ints(documents) if documents is not None else None
        table = as_ints(pages["table"]) if pages else None
        handle = self.c.chorale_case(
            heads, kv_heads, dim, dtype.encode(), mask.encode(),
            ctypes.c_void_p(ids.ctypes.data if ids is not None else None),
            ctypes.c_int64(0 if ids is None else ids.size), len(q),
            ctypes.c_void_p(q.ctypes.data), ctypes.c_void_p(kv.ctypes.data),
            pages["size"] if pages else 0, ctypes.c_int64(pages["count"] if pages else 0),
            ctypes.c_void_p(table.ctypes.data if pages else None), ctypes.c_int64(table.shape[1] if pages else 0), threads)
        return ctypes.c_void_p(self.check(handle))


class Data:
    """Random tensors in memory that both sides read. bfloat16 lies as uint16 where PyTorch is absent."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.random = numpy.random.default_rng(0)

    def tensor(self, *shape):
        values = self.random.standard_normal(shape, dtype=numpy.float32)
        if self.dtype == "bfloat16":
            bits = values.view(numpy.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)
        return values

    def zeros(self, *shape):
        return numpy.zeros(shape, dtype=numpy.uint16 if self.dtype == "bfloat16" else numpy.float32)

    def torch(self, array):
        tensor = torch.from_numpy(array.view(numpy.int16) if self.dtype == "bfloat16" else array)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def interleave(sides, seconds):
    """Runs the callables in turn for about `seconds`; their times in seconds."""
    times = [[] for _ in sides]
    for side in sides:
        side()
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 200):
        for side, samples in zip(sides, times):
            start = time.perf_counter()
            side()
            samples.append(time.perf_counter() - start)
    return times


def spread(samples):
    if len(samples) < 4:
        return max(samples) / min(samples) - 1
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / statistics.median(samples)


class Table:
    def __init__(self):
        print(f"{'work':<44} {'Chorale':>10} {'spread':>7} {'rate':>13} {'of peak':>8} {'PyTorch':>10} {'ratio':>6}")

    def row(self, name, times, amount, peak, unit):
        ours = statistics.median(times[0])
        rate = amount / ours
        line = f"{name:<44} {ours * 1e3:>8.2f}ms {spread(times[0]):>6.0%} {rate / 1e9:>8.1f} {unit} {rate / peak:>7.0%}"
        if len(times) > 1:
            peer = statistics.median(times[1])
            line += f" {peer * 1e3:>8.2f}ms {peer / ours:>5.2f}x"
        print(line, flush=True)


class Bench:
    def __init__(self, arguments):
        self.chorale = Chorale(arguments.library)
        self.threads = arguments.threads
        self.seconds = arguments.seconds
        self.quick = arguments.quick
        self.table = None
        if torch:
            torch.set_num_threads(self.threads)

    def peak(self, dtype):
        return self.chorale.c.chorale_peak_flops(dtype.encode(), self.threads)

    def packed(self, dtype, batch, length, heads, kv_heads, mask="causal", dense_mask=None, documents=None, visible=None,
               backward=True, dim=128):
        c, data = self.chorale.c, Data(dtype)
        total = batch * length
        q, k, v = data.tensor(total, heads, dim), data.tensor(total, kv_heads, dim), data.tensor(total, kv_heads, dim)
        out, lse, grad_out = data.zeros(total, heads, dim), numpy.zeros((total, heads), numpy.float32), data.tensor(total, heads, dim)
        grads = data.zeros(total, heads, dim), data.zeros(total, kv_heads, dim), data.zeros(total, kv_heads, dim)
        case = self.chorale.case(heads, kv_heads, dim, dtype, mask, [length] * batch, [length] * batch, self.threads, documents)
        pairs = visible if visible is not None else batch * length * (length + 1) / 2
        operations = 4 * heads * dim * pairs
        forward = lambda: self.chorale.check(c.chorale_forward(case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse)))
        forward_sides = [forward]
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
            if not difference < (0.06 if dtype == "bfloat16" else 1e-4):
                raise SystemExit(f"bench: outputs differ by {difference} for {dtype} {batch}x{length} {mask}")
        name = f"{dtype} {batch}x{length} {heads}/{kv_heads} {'causal' if mask == 'causal' else mask[:22]}"
        peak = self.peak(dtype)
        self.table.row(name + " fwd", interleave(forward_sides, self.seconds), operations, peak, "GFLOP/s")
        if backward:
            step = lambda: self.chorale.check(c.chorale_backward(
                case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse), pointer(grad_out), *map(pointer, grads)))
            sides = [step]
            if torch:
                tgrad = data.torch(grad_out).view(batch, length, heads, dim).transpose(1, 2)
                kept = attend()
                sides.append(lambda: torch.autograd.grad(kept, (tq, tk, tv), tgrad, retain_graph=True))
            self.table.row(name + " bwd", interleave(sides, self.seconds), 2.5 * operations, peak, "GFLOP/s")
        c.chorale_case_free(case)

    def decode(self, dtype, batch, context, bandwidth, heads=32, kv_heads=8, dim=128, page=16):
        c, data = self.chorale.c, Data(dtype)
        per_sequence = context // page
        count = batch * per_sequence
        table = numpy.random.default_rng(1).permutation(count).reshape(batch, per_sequence)
        q, out, lse = data.tensor(batch, heads, dim), data.zeros(batch, heads, dim), numpy.zeros((batch, heads), numpy.float32)
        k, v = data.tensor(count, page, kv_heads, dim), data.tensor(count, page, kv_heads, dim)
        case = self.chorale.case(heads, kv_heads, dim, dtype, "causal", [1] * batch, [context] * batch, self.threads,
                                 pages=dict(size=page, count=count, table=table))
        sides = [lambda: self.chorale.check(c.chorale_forward(case, pointer(q), pointer(k), pointer(v), pointer(out), pointer(lse)))]
        if torch:  # the peer reads dense keys: PyTorch has no paged attention on the CPU
            tq = data.torch(q).view(batch, 1, heads, dim).transpose(1, 2)
            dense = lambda x: data.torch(x).view(batch, context, kv_heads, dim).transpose(1, 2)
            tk, tv = dense(k), dense(v)

            def peer():
                with torch.no_grad():
                    functional.scaled_dot_product_attention(tq, tk, tv, enable_gqa=True)

            sides.append(peer)
        size = 2 * batch * context * kv_heads * dim * (2 if dtype == "bfloat16" else 4)
        self.table.row(f"{dtype} decode batch {batch}, {context} keys, page {page}", interleave(sides, self.seconds), size, bandwidth, "GB/s   ")
        c.chorale_case_free(case)

    def masks(self, dtype, length=8192, heads=16, window=512):
        """A window and documents against causal: time over visible pairs, and PyTorch with the dense mask."""
        position = numpy.arange(length)
        in_window = (position[:, None] >= position[None, :]) & (position[:, None] - position[None, :] < window)
        ends = numpy.sort(numpy.random.default_rng(2).choice(length, 7, replace=False))
        ids = numpy.searchsorted(ends, position, side="right").astype(numpy.int32)
        same = (ids[:, None] == ids[None, :]) & (position[:, None] >= position[None, :])
        for mask, dense, documents in ((f"causal and window({window})", in_window, None), ("causal and document[q] == document[k]", same, ids)):
            peer = torch.from_numpy(dense) if torch else None
            self.packed(dtype, 1, length, heads, heads, mask, peer, documents, int(dense.sum()), backward=False)

    def run(self):
        c = self.chorale.c
        bandwidth = c.chorale_peak_bandwidth(self.threads)
        print(f"machine: {platform.processor() or platform.machine()}, {processor()}, {self.threads} threads")
        print(f"peer: {'PyTorch ' + torch.__version__ + ' scaled_dot_product_attention' if torch else 'none (PyTorch is not installed: make extras)'}")
        for dtype in ("bfloat16", "float32"):
            case = self.chorale.case(16, 16, 128, dtype, "causal", [1], [1], self.threads)
            print(f"{dtype}: {c.chorale_fingerprint(case).decode()}, peak {self.peak(dtype) / 1e9:.0f} GFLOP/s")
        print(f"memory: {bandwidth / 1e9:.1f} GB/s")
        self.table = Table()
        shapes = ((1, 4096), (4, 1024), (16, 256))
        for dtype in ("bfloat16", "float32"):
            for batch, length in shapes[:1] if self.quick else shapes:
                for heads, kv_heads in ((16, 16),) if self.quick else ((32, 8), (16, 16)):
                    self.packed(dtype, batch, length, heads, kv_heads)
            self.masks(dtype)
            for batch, context in ((1, 8192),) if self.quick else ((1, 1024), (16, 1024), (64, 1024), (1, 8192), (16, 8192), (1, 32768)):
                self.decode(dtype, batch, context, bandwidth)


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row of the table")
    parser.add_argument("--quick", action="store_true", help="one shape of each kind")
    Bench(parser.parse_args()).run()


if __name__ == "__main__":
    main()
