"""Chorale's attention on a GPU against its peers: one process, the same data, interleaved, with the same idle gaps.

    python bench/attention_gpu.py LIBRARY [--rows limits,plan,decode,forward,chunks,masks] [--seconds S] [--gap MS]
                                  [--output FILE.md] [--compile]

LIBRARY is build/release/bench/libchorale_bench.so; `make bench-gpu` passes it. Chorale runs as any program would run it:
Attention, Plan, the caller's device memory and stream. Peers: PyTorch's scaled_dot_product_attention with cuDNN and with
FlashAttention-2, flex_attention compiled (in the table of masks; compiling takes a minute or more), FlashAttention-3 and
FlashInfer where they can be imported. --compile only puts the kernels into the cache (CHORALE_KERNEL_CACHE), which needs no
GPU. Exit status: 0; 1 where a result was wrong or missing; 2 where nothing could be measured.
"""

import argparse
import concurrent.futures
import ctypes
import datetime
import faulthandler
import multiprocessing
import os
import platform
import statistics
import sys
import time

import numpy

from chorale_c import Chorale, Failure
from gpu_cases import (CHUNKS, DECODE, DECODE_HEADS, DECODE_KV_HEADS, DIM, FORWARD, H200_COPY, MASK_HEADS, NO_CHUNKS, PAGES,
                       ROTATE_BYTES, TILE, TOKENS, WRONG, all_requests, decode_request, forward_request, mask_request, mask_rows,
                       page_table, plan_lengths)
from gpu_report import Report, card_state, sm_clock
from machine import processor

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers takes longer to start than they to compile
try:
    import torch
    import gpu_peers
    import gpu_timing
except ImportError:  # compiling the kernels needs none
    torch = None

PATIENCE = 120  # seconds for a row, compiling included
COMPILE_PATIENCE = 120  # seconds for all of flex_attention's kernels


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
    print(f"kernels: {sum(s > 0 for s in seconds)} compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return failures


def compile_flex(which):
    """In a process of its own: what torch.compile makes stays in its cache on disk. Gives the seconds that it took."""
    start = time.perf_counter()
    torch.set_grad_enabled(False)
    row = mask_rows("cuda")[which]
    q, k, v = (gpu_peers.by_heads(torch.zeros(TOKENS, MASK_HEADS, DIM, dtype=torch.bfloat16, device="cuda"), 1) for _ in range(3))
    gpu_peers.flex(q, k, v, gpu_peers.block_mask(row.mask_mod, TOKENS), row.score_mod)
    return time.perf_counter() - start


def compile_peers():
    """flex_attention's kernels, a process each: one after another they take minutes. The rows compile what is missing."""
    jobs, start, seconds = range(len(mask_rows(None))), time.perf_counter(), []
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count())) as pool:  # its end ends the processes
        for result in [pool.apply_async(compile_flex, (job,)) for job in jobs]:
            try:
                seconds.append(f"{result.get(max(1, COMPILE_PATIENCE - (time.perf_counter() - start))):.0f}")
            except Exception as error:  # the row will tell
                seconds.append(type(error).__name__)
    print(f"flex_attention: compiled in {time.perf_counter() - start:.0f} s: {', '.join(seconds)}", file=sys.stderr, flush=True)


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


class Bench:
    def __init__(self, chorale, arguments):
        self.peers, self.chorale = gpu_peers, chorale
        self.report = Report(arguments.output)
        self.gap = arguments.gap / 1e3
        self.race = gpu_timing.Race(arguments.seconds, self.gap)
        self.installed = gpu_peers.installed()
        self.notes, self.failed = [], False
        self.copy_gbs = None
        torch.manual_seed(0)

    # ---- Sides

    def random(self, *shape):
        return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")

    def step(self, case, q, k, v, out, lse=None):
        """Chorale's; k and v: functions of the launch's number."""
        def run(i):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self.chorale.check(self.chorale.c.chorale_forward(case, pointer(q), pointer(k(i)), pointer(v(i)), pointer(out), pointer(lse), stream))
            return out
        return run

    def peer_names(self, *names):
        return [name for name in names if self.installed.get(name) is None]

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            print(text, file=sys.stderr, flush=True)

    def capture(self, steps, launches, where):
        faulthandler.dump_traceback_later(PATIENCE, exit=True)  # a kernel that never ends cannot be stopped otherwise
        def refused(name, why):
            self.note(f"{where}: {name}: {why}")
            self.failed |= name.startswith("Chorale")
        return self.race.capture(steps, launches, refused)

    def difference(self, ours, theirs, where):
        """The largest element's; and the largest row's, relative to the row, decides whether it is wrong."""
        ours, theirs = ours.float(), theirs.float()
        difference = ours - theirs
        relative = (difference.norm(dim=-1) / theirs.norm(dim=-1)).max().item()
        largest = difference.abs().max().item()
        if not relative < WRONG:
            self.failed = True
            self.note(f"{where}: WRONG: a row differs by {relative:.3g} of itself")
            return f"**WRONG** {largest:.2g}"
        return f"{largest:.2g}"

    # ---- Cells

    @staticmethod
    def rate(samples, name, amount):
        """amount per launch, in 1e6 units: "515 (2%)" of 1e12 units a second."""
        return f"{amount / samples[name].median:.0f} ({samples[name].spread:.0%})" if name in samples else "–"

    @staticmethod
    def ratio(samples, ours, name):
        return f"{samples[name].median / samples[ours].median:.2f}" if name in samples and ours in samples else "–"

    @staticmethod
    def us(samples, name):
        if name not in samples:
            return "–"
        return f"{samples[name].median:.{1 if samples[name].median < 1000 else 0}f} ({samples[name].spread:.0%})"

    # ---- Rows

    def limits(self):
        source = torch.randn(1 << 30, dtype=torch.bfloat16, device="cuda")
        copied = torch.empty_like(source)
        a, b = (self.random(8192, 8192) for _ in range(2))
        product = torch.empty_like(a)
        steps = {"copy": lambda i: copied.copy_(source), "product": lambda i: torch.mm(a, b, out=product)}
        samples = self.race.run({name: gpu_timing.Called(self.race.stream, step, 3) for name, step in steps.items()})
        self.copy_gbs = 2 * source.nbytes / samples["copy"].median / 1e3
        self.report.line(f"\nLimits in this run: device-to-device copy {self.copy_gbs:.0f} GB/s (bytes read and written); "
                         f"8192³ bfloat16 product {2 * 8192**3 / samples['product'].median / 1e6:.0f} TFLOP/s.")

    def forward(self):
        peers = self.peer_names(self.peers.CUDNN, self.peers.FLASH_2, self.peers.FLASH_3)
        columns = [cell for peer in peers for cell in (peer, "×")]
        self.report.table("Forward, bfloat16, head_dim 128: TFLOP/s (spread)",
                          ["batch × length, heads", "Chorale", *columns, "FA3 on an H200", "of it", "µs", "SM MHz", "max difference"])
        for shape, anchor in FORWARD.items():
            batch, length, heads, kv_heads, causal = shape
            name = f"{batch} × {length}, {heads}/{kv_heads}{'' if causal else ', not causal'}"
            q, k, v = (self.random(batch * length, h, DIM) for h in (heads, kv_heads, kv_heads))
            steps = self.forward_steps(shape, peers, q, k, v)
            captured = self.capture(steps, 3, name)
            samples = self.race.run(captured)
            flops = 4 * batch * heads * length**2 * DIM / (2 if causal else 1) / 1e6
            clock = sm_clock()
            cells = [cell for peer in peers for cell in (self.rate(samples, peer, flops), self.ratio(samples, "Chorale", peer))]
            of_it = f"{flops / samples['Chorale'].median / anchor:.2f}" if anchor and "Chorale" in samples else "–"
            self.report.row([name, self.rate(samples, "Chorale", flops), *cells, anchor or "–", of_it, self.us(samples, "Chorale"), clock,
                             self.compare(captured, self.peers.CUDNN, self.peers.FLASH_2, name, batch)])

    def forward_steps(self, shape, peers, q, k, v):
        batch, length, heads, kv_heads, causal = shape
        p = self.peers
        tq, tk, tv = (p.by_heads(x, batch) for x in (q, k, v))
        steps = self.chorale_forward(forward_request(*shape), q, k, v)
        for peer in peers:
            if peer in p.BACKENDS:
                steps[peer] = lambda i, peer=peer: p.sdpa(peer, tq, tk, tv, causal)
            elif peer == p.FLASH_3:
                steps[peer] = lambda i: p.flash_3_forward(q, k, v, batch, causal)
        return steps

    def chorale_forward(self, made, q, k, v, name="Chorale"):
        try:
            case = self.chorale.case(made)  # kept to the end: graphs hold addresses of its plan
        except Failure as failure:
            self.failed = True
            self.note(str(failure))
            return {}
        out = torch.full_like(q, float("nan"))
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device="cuda")
        return {name: self.step(case, q, lambda i: k, lambda i: v, out, lse)}

    def compare(self, captured, first, second, where, batch):
        """Chorale's result with the first of two peers that is there, as the replayed graphs left them."""
        peer = first if first in captured else second
        if "Chorale" not in captured or peer not in captured:
            return "–"
        captured["Chorale"].out.fill_(float("nan"))
        for side in ("Chorale", peer):
            captured[side].replay()
        return self.difference(captured["Chorale"].out, self.peers.rows(captured[peer].out), where)

    def chunks(self):
        self.report.table("What the order costs: the same kernel without chunks, causal: TFLOP/s (spread)",
                          ["batch × length, heads", "as it is", "one chunk", "costs"])
        for shape in CHUNKS:
            batch, length, heads, kv_heads, causal = shape
            name = f"{batch} × {length}, {heads}/{kv_heads}"
            q, k, v = (self.random(batch * length, h, DIM) for h in (heads, kv_heads, kv_heads))
            steps = {**self.chorale_forward(forward_request(*shape), q, k, v),
                     **self.chorale_forward(forward_request(*shape, NO_CHUNKS), q, k, v, "Chorale, one chunk")}
            captured = self.capture(steps, 3, name)
            samples = self.race.run(captured)
            flops = 4 * batch * heads * length**2 * DIM / 2 / 1e6
            cost = samples["Chorale"].median / samples["Chorale, one chunk"].median - 1 if len(samples) == 2 else None
            self.report.row([name, self.rate(samples, "Chorale", flops), self.rate(samples, "Chorale, one chunk", flops),
                             "–" if cost is None else f"{cost:+.1%}"])

    def decode(self):
        p = self.peers
        peers = self.peer_names(p.FLASH_3, p.FLASHINFER)
        self.report.table(
            f"Decode, {DECODE_HEADS}/{DECODE_KV_HEADS} heads, head_dim 128, bfloat16, pages in random order: µs (spread)",
            ["batch, keys", *[cell for page in PAGES for cell in (f"page {page}", "GB/s", "of copy")], "cuDNN, dense", "×", "FA2, dense", "×",
             *[f"{peer}, page 16" for peer in peers], "FA3 on an H200", "for this card", *[f"page {page}: of that" for page in PAGES], "SM MHz", "max difference"])
        most = max(max(ROTATE_BYTES, self.kv_bytes(*shape)) + self.kv_bytes(*shape) for shape in DECODE)
        pool = [self.random(int(most) // 4 // (DECODE_KV_HEADS * DIM), DECODE_KV_HEADS, DIM) for _ in range(2)]
        for shape in DECODE:
            self.decode_row(shape, pool, peers)

    @staticmethod
    def kv_bytes(batch, keys):
        return 2 * 2 * batch * keys * DECODE_KV_HEADS * DIM

    def decode_row(self, shape, pool, peers):
        batch, keys = shape
        p, name = self.peers, f"decode {batch}, {keys}"
        sets = max(1, -(-int(ROTATE_BYTES) // self.kv_bytes(*shape)))
        launches = max(10, sets)
        part = lambda x: lambda i: x[i % sets * batch * keys:(i % sets + 1) * batch * keys]
        k, v = (part(x) for x in pool)
        q = self.random(batch, DECODE_HEADS, DIM)
        steps = {}
        for page in PAGES:
            side = f"Chorale {page}"
            try:
                steps[side] = self.step(self.chorale.case(decode_request([keys] * batch, page)), q, k, v, torch.full_like(q, float("nan")))
            except Failure as failure:
                self.failed = True
                self.note(f"{name}: {failure}")
        # The peers of PyTorch have no pages: they read the same memory as it lies.
        one = p.by_heads(q, batch)
        for peer in p.BACKENDS:
            steps[peer] = lambda i, peer=peer: p.sdpa(peer, one, p.by_heads(k(i), batch), p.by_heads(v(i), batch), False)
        steps.update(self.paged_peers(peers, batch, keys, q, k, v))
        captured = self.capture(steps, launches, name)
        samples = self.race.run(captured)
        clock, size, anchor = sm_clock(), self.kv_bytes(*shape), DECODE[shape]
        bound = anchor * H200_COPY / self.copy_gbs if self.copy_gbs and size / anchor / 1e3 > H200_COPY / 2 else anchor
        cells = []
        for page in PAGES:
            side = f"Chorale {page}"
            speed = size / samples[side].median / 1e3 if side in samples else None
            cells += [self.us(samples, side), f"{speed:.0f}" if speed else "–", f"{speed / self.copy_gbs:.0%}" if speed and self.copy_gbs else "–"]
        for peer in p.BACKENDS:
            cells += [self.us(samples, peer), self.ratio(samples, "Chorale 16", peer)]
        cells += [self.us(samples, peer) for peer in peers] + [anchor, f"{bound:.1f}"]
        cells += [f"{samples[side].median / bound:.2f}" if side in samples else "–" for side in (f"Chorale {page}" for page in PAGES)]
        self.report.row([f"{batch}, {keys}", *cells, clock, self.compare_decode(captured, shape, q, k(launches - 1), v(launches - 1), name)])

    def paged_peers(self, peers, batch, keys, q, k, v, page=16):
        p, steps = self.peers, {}
        table = torch.from_numpy(page_table([keys] * batch, page)).cuda()
        lengths = torch.full((batch,), keys, dtype=torch.int32, device="cuda")
        paged = lambda x: x.view(-1, page, DECODE_KV_HEADS, DIM)
        if p.FLASH_3 in peers:
            steps[p.FLASH_3] = lambda i: p.flash_3_decode(q, paged(k(i)), paged(v(i)), lengths, table)
        if p.FLASHINFER in peers:
            wrapper = p.flashinfer_decode(table, lengths, page, DECODE_HEADS, DECODE_KV_HEADS, DIM)
            steps[p.FLASHINFER] = lambda i: wrapper.run(q, (paged(k(i)), paged(v(i))))
        return steps

    def compare_decode(self, captured, shape, q, k, v, where):
        """With FlashAttention-2 on the last launch's keys, gathered from their pages."""
        batch, keys = shape
        worst = []
        for page in PAGES:
            if f"Chorale {page}" not in captured:
                continue
            side = captured[f"Chorale {page}"]
            side.out.fill_(float("nan"))
            side.replay()
            order = torch.from_numpy(page_table([keys] * batch, page)).cuda().long().flatten()
            dense = lambda x: self.peers.by_heads(x.view(-1, page, DECODE_KV_HEADS, DIM)[order].flatten(0, 1), batch)
            peer = self.peers.sdpa(self.peers.FLASH_2, self.peers.by_heads(q, batch), dense(k), dense(v), False)
            worst.append(self.difference(side.out, self.peers.rows(peer), f"{where}, page {page}"))
        return ", ".join(worst) or "–"

    def masks(self):
        p = self.peers
        faulthandler.cancel_dump_traceback_later()
        compile_peers()  # here, so that it costs no other table its time
        self.report.table(
            f"Masks and scores, 1 × {TOKENS}, {MASK_HEADS}/{MASK_HEADS}: TFLOP/s of the visible pairs (spread)",
            ["mask", "Chorale", "flex_attention", "×", "flex builds its mask, ms", "× with that", f"tiles of {TILE}² seen", "a tile costs, of causal's", "µs", "max difference"])
        q, k, v = (self.random(TOKENS, MASK_HEADS, DIM) for _ in range(3))
        tq, tk, tv = (p.by_heads(x, 1) for x in (q, k, v))
        rows = mask_rows("cuda")
        causal_tiles, built = None, {}
        for row in rows:
            pairs, tiles = self.visible(row)
            causal_tiles = causal_tiles or tiles
            steps = self.chorale_forward(mask_request(row), q, k, v)
            steps.update(self.chorale_forward(mask_request(rows[0]), q, k, v, "Chorale causal"))
            if row.score_mod is None:
                built[row.text] = self.build_mask(row)
            mask, build_ms = built.get(row.text, (None, None))
            if mask is not None:
                steps[p.FLEX] = lambda i: p.flex(tq, tk, tv, mask, row.score_mod)
            captured = self.capture(steps, 3, row.name)
            samples = self.race.run(captured)
            flops = 4 * MASK_HEADS * DIM * pairs / 1e6
            both = "Chorale" in samples and p.FLEX in samples
            cost = "–"
            if "Chorale" in samples and "Chorale causal" in samples:
                cost = f"{samples['Chorale'].median / tiles / (samples['Chorale causal'].median / causal_tiles):.2f}"
            self.report.row([row.name, self.rate(samples, "Chorale", flops), self.rate(samples, p.FLEX, flops), self.ratio(samples, "Chorale", p.FLEX),
                             f"{build_ms:.2f}" if build_ms and not row.score_mod else "–",
                             f"{(samples[p.FLEX].median + build_ms * 1e3) / samples['Chorale'].median:.2f}" if both and not row.score_mod else "–",
                             tiles, cost, self.us(samples, "Chorale"), self.compare(captured, p.FLEX, p.FLEX, row.name, 1)])

    @staticmethod
    def visible(row):
        """Visible pairs, and tiles that have any."""
        position = torch.arange(TOKENS, device="cuda")
        seen = row.mask_mod(0, 0, position[:, None], position[None, :])
        return seen.sum().item(), seen.view(TOKENS // TILE, TILE, TOKENS // TILE, TILE).any(3).any(1).sum().item()

    def build_mask(self, row):
        """The block mask and the milliseconds of building it, host and device, compiled before."""
        try:
            mask, times = self.peers.block_mask(row.mask_mod, TOKENS), []
            for _ in range(10):
                torch.cuda.synchronize()
                time.sleep(self.gap)
                start = time.perf_counter()
                mask = self.peers.block_mask(row.mask_mod, TOKENS)
                torch.cuda.synchronize()
                times.append((time.perf_counter() - start) * 1e3)
            return mask, statistics.median(times)
        except Exception as error:  # whatever compiling raises
            self.note(f"{row.name}: create_block_mask: {str(error).splitlines()[0]}")
            return None, None

    def plan(self, runs=200):
        self.report.table("Host time of a step's plan, 256 sequences that decode, 1 to 4096 keys: µs, median (least to most)",
                          ["page", "plan", "its first forward (copies it to the GPU)", "a later forward"])
        lengths = plan_lengths()
        for page in PAGES:
            made = decode_request(lengths, page)
            q = self.random(len(lengths), DECODE_HEADS, DIM)
            k, v = (self.random(made.pages * page, DECODE_KV_HEADS, DIM) for _ in range(2))
            times = [numpy.zeros(runs) for _ in range(3)]
            stream = ctypes.c_void_p(self.race.stream.cuda_stream)
            try:
                self.chorale.check(self.chorale.c.chorale_plan_seconds(
                    ctypes.byref(made), *map(pointer, (q, k, v, torch.empty_like(q))), stream, runs, *(ctypes.c_void_p(t.ctypes.data) for t in times)))
            except Failure as failure:
                self.failed = True
                self.note(str(failure))
                continue
            torch.cuda.synchronize()
            self.report.row([page, *(f"{numpy.median(t) * 1e6:.1f} ({t.min() * 1e6:.1f} to {t.max() * 1e6:.0f})" for t in times)])

    # ---- All of it

    def head(self):
        line = self.report.line
        line(f"# {datetime.date.today()}, {torch.cuda.get_device_name()}\n")
        line(f"    {' '.join(['python', *sys.argv])}\n")
        line(f"- {self.chorale.text('device', b'cuda')}; {card_state()}")
        line(f"- {processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, "
             f"cuDNN {torch.backends.cudnn.version()}; NVRTC {self.chorale.text('nvrtc')}")
        line(f"- FlashAttention-3 and FlashInfer: {'; '.join(f'{peer}: ' + (why or 'there') for peer, why in self.installed.items())}")
        line(f"- Every side's step is captured in a CUDA graph (3 launches; decode: at least 10, each on other keys, of {ROTATE_BYTES / 1e6:.0f} MB or more). "
             f"A sample is one replay between two events, after {self.gap * 1e3:.0f} ms of idle, over its launches. Sides take turns. Median; "
             "the spread is the interquartile range over the median. × is the peer's time over Chorale's.")
        line("- Chorale writes the log-sum-exp too in forward and masks. PyTorch's decode reads dense keys: it has no pages. Keys and values count in GB/s. "
             "“For this card”: FlashAttention-3's time on an H200 (docs/cuda_decode.md), where bandwidth bounds it times 4280 GB/s over this run's copy.")

    def run(self, rows):
        start = time.perf_counter()
        self.head()
        for kind in rows:
            getattr(self, kind)()
            torch.cuda.empty_cache()
            print(f"{kind}: {time.perf_counter() - start:.0f} s so far", file=sys.stderr, flush=True)
        faulthandler.cancel_dump_traceback_later()
        self.report.line(f"\nAfterwards: {card_state()}; {time.perf_counter() - start:.0f} s in all.")
        for note in self.notes:
            self.report.line(f"- {note}")
        return 1 if self.failed else 0


ROWS = ("limits", "plan", "decode", "forward", "chunks", "masks")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--rows", default=",".join(ROWS), help="which tables, in this order")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row; never less than 7 rounds")
    parser.add_argument("--gap", type=float, default=20, help="idle milliseconds before each sample")
    parser.add_argument("--output", help="a Markdown file for the results, beside the terminal")
    parser.add_argument("--compile", action="store_true", help="only compile the kernels")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"--rows {unknown[0]}: must be among {', '.join(ROWS)}")
    chorale = Chorale(arguments.library)
    failures = compile_kernels(chorale, rows)
    for failure in sorted(failures):
        print(failure, file=sys.stderr)
    if arguments.compile:
        sys.exit(1 if failures else 0)
    if torch is None or not torch.cuda.is_available():
        print("bench: needs a GPU and a PyTorch that can use it" if torch else "bench: PyTorch is not installed", file=sys.stderr)
        sys.exit(2)
    torch.set_grad_enabled(False)
    sys.exit(Bench(chorale, arguments).run(rows))


if __name__ == "__main__":
    main()
