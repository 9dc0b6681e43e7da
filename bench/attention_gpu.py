"""Chorale's attention on a GPU against its peers: one process, the same data, interleaved, with the same idle gaps.

    python bench/attention_gpu.py LIBRARY [--rows limits,plan,decode,forward,chunks,masks] [--seconds S] [--gap MS] [--budget S]
                                  [--output FILE.md] [--flash-3 FILE.so] [--compile] [--compile-peers]

LIBRARY is build/release/bench/libchorale_bench.so; `make bench-gpu` passes it. Chorale runs as any program would run it:
Attention, Plan, the caller's device memory and stream. Peers: PyTorch's scaled_dot_product_attention with cuDNN and with
FlashAttention-2, flex_attention compiled, FlashAttention-3 (bench/gpu_flash_3.py says which) and FlashInfer where they can be
imported. Rows run in a process of their own, which is replaced when one takes too long or breaks the GPU's context; what is
measured is written at once.

--compile only puts the kernels into the cache (CHORALE_KERNEL_CACHE), which needs no GPU. --compile-peers only puts
flex_attention's into torch.compile's (TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR), which takes minutes on a machine that has
not read PyTorch's compiler yet: run it beside something that is not timed. Exit status: 0; 1 where a result was wrong or
missing; 2 where nothing could be measured.
"""

import argparse
import ctypes
import datetime
import os
import platform
import statistics
import sys
import time

import numpy

from chorale_c import Chorale, Failure
from gpu_cases import (CHUNKS, DECODE, DECODE_HEADS, DECODE_KV_HEADS, DIM, FORWARD, H200_COPY, MASK_HEADS, NO_CHUNKS, PAGES,
                       ROTATE_BYTES, TILE, TOKENS, WORK_FLOPS, WRONG, decode_request, forward_request, launches_of, mask_request,
                       mask_rows, page_table, plan_lengths)
from gpu_compile import compile_kernels, compile_peers, say
from gpu_report import Report, card_state, sm_clock
from gpu_watch import RESUME, Progress, watch
from machine import processor

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers takes longer to start than they to compile
try:
    import torch
    import gpu_peers
    import gpu_timing
except ImportError:  # compiling the kernels needs none
    torch = None

def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


class Bench:
    def __init__(self, chorale, arguments):
        self.peers, self.chorale = gpu_peers, chorale
        self.progress = Progress(arguments.progress)
        self.report = Report(arguments.output, self.progress)
        self.gap = arguments.gap / 1e3
        self.race = gpu_timing.Race(arguments.seconds, self.gap)
        self.installed = gpu_peers.installed(arguments.flash_3)
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

    @property
    def copy_gbs(self):
        return self.progress.state.get("copy_gbs")

    def capture(self, steps, launches, where):
        def refused(name, why):
            self.progress.note(f"{where}: {name}: {why}", failed=name.startswith("Chorale"))
            torch.cuda.synchronize()  # raises where the context is broken: no other side could run
        return self.race.capture(steps, launches, refused)

    def difference(self, ours, theirs, where):
        """The largest element's; and the largest row's, relative to the row, decides whether it is wrong."""
        ours, theirs = ours.float(), theirs.float()
        difference = ours - theirs
        relative = (difference.norm(dim=-1) / theirs.norm(dim=-1)).max().item()
        largest = difference.abs().max().item()
        if not relative < WRONG:
            self.progress.note(f"{where}: WRONG: a row differs by {relative:.3g} of itself", failed=True)
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
        for _ in self.progress.rows("limits", [None]):
            source = torch.randn(1 << 30, dtype=torch.bfloat16, device="cuda")
            copied = torch.empty_like(source)
            a, b = (self.random(8192, 8192) for _ in range(2))
            product = torch.empty_like(a)
            steps = {"copy": lambda i: copied.copy_(source), "product": lambda i: torch.mm(a, b, out=product)}
            samples = self.race.run({name: gpu_timing.Called(self.race.stream, step, 3) for name, step in steps.items()})
            self.progress.state["copy_gbs"] = 2 * source.nbytes / samples["copy"].median / 1e3
            self.report.line(f"\nLimits in this run: device-to-device copy {self.copy_gbs:.0f} GB/s (bytes read and written); "
                             f"8192³ bfloat16 product {2 * 8192**3 / samples['product'].median / 1e6:.0f} TFLOP/s.")

    def forward(self):
        peers = self.peer_names(self.peers.CUDNN, self.peers.FLASH_2, self.peers.FLASH_3)
        columns = [cell for peer in peers for cell in (peer, "×")]
        self.report.table("forward", "Forward, bfloat16, head_dim 128: TFLOP/s (spread)",
                          ["batch × length, heads", "Chorale", *columns, "FA3 on an H200", "of it", "µs", "SM MHz", "max difference"])
        for shape, anchor in self.progress.rows("forward", FORWARD.items()):
            batch, length, heads, kv_heads, causal = shape
            name = f"{batch} × {length}, {heads}/{kv_heads}{'' if causal else ', not causal'}"
            q, k, v = (self.random(batch * length, h, DIM) for h in (heads, kv_heads, kv_heads))
            steps = self.forward_steps(shape, peers, q, k, v)
            flops = 4 * batch * heads * length**2 * DIM / (2 if causal else 1) / 1e6
            captured = self.capture(steps, launches_of(flops), name)
            samples = self.race.run(captured)
            clock = sm_clock()
            cells = [cell for peer in peers for cell in (self.rate(samples, peer, flops), self.ratio(samples, "Chorale", peer))]
            of_it = f"{flops / samples['Chorale'].median / anchor:.2f}" if anchor and "Chorale" in samples else "–"
            self.report.row([name, self.rate(samples, "Chorale", flops), *cells, anchor or "–", of_it, self.us(samples, "Chorale"), clock,
                             self.compare(captured, peers, name, batch)])

    def forward_steps(self, shape, peers, q, k, v):
        batch, length, heads, kv_heads, causal = shape
        p = self.peers
        tq, tk, tv = (p.by_heads(x, batch) for x in (q, k, v))
        steps = self.chorale_forward(forward_request(*shape), q, k, v)
        for peer in peers:
            if peer in p.BACKENDS:
                steps[peer] = lambda i, peer=peer: p.sdpa(peer, tq, tk, tv, causal)
            elif peer == p.FLASH_3 and "forward" in p.flash_3:
                steps[peer] = lambda i: p.flash_3["forward"].forward(q, k, v, batch, causal)
        return steps

    def chorale_forward(self, made, q, k, v, name="Chorale"):
        try:
            case = self.chorale.case(made)  # kept to the end: graphs hold addresses of its plan
        except Failure as failure:
            self.progress.note(str(failure), failed=True)
            return {}
        out = torch.full_like(q, float("nan"))
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device="cuda")
        return {name: self.step(case, q, lambda i: k, lambda i: v, out, lse)}

    def compare(self, captured, peers, where, batch):
        """Chorale's result with that of the first peer, and the others' with it too, as the replayed graphs left them."""
        there = [peer for peer in peers if peer in captured]
        if "Chorale" not in captured or not there:
            return "–"
        captured["Chorale"].out.fill_(float("nan"))
        for side in ("Chorale", *there):
            captured[side].replay()
        cells = []
        for peer in there:
            out = captured[peer].out
            cells.append(self.difference(captured["Chorale"].out, self.peers.rows(out) if out.dim() == 4 else out, f"{where}, {peer}"))
        return cells[0]

    def chunks(self):
        self.report.table("chunks", "What the order costs: the same kernel without chunks, causal: TFLOP/s (spread)",
                          ["batch × length, heads", "as it is", "one chunk", "costs"])
        for shape in self.progress.rows("chunks", CHUNKS):
            batch, length, heads, kv_heads, causal = shape
            name = f"{batch} × {length}, {heads}/{kv_heads}"
            q, k, v = (self.random(batch * length, h, DIM) for h in (heads, kv_heads, kv_heads))
            steps = {**self.chorale_forward(forward_request(*shape), q, k, v),
                     **self.chorale_forward(forward_request(*shape, NO_CHUNKS), q, k, v, "Chorale, one chunk")}
            flops = 4 * batch * heads * length**2 * DIM / 2 / 1e6
            captured = self.capture(steps, launches_of(flops), name)
            samples = self.race.run(captured)
            cost = samples["Chorale"].median / samples["Chorale, one chunk"].median - 1 if len(samples) == 2 else None
            self.report.row([name, self.rate(samples, "Chorale", flops), self.rate(samples, "Chorale, one chunk", flops),
                             "–" if cost is None else f"{cost:+.1%}"])

    def decode(self):
        p = self.peers
        peers = self.peer_names(p.FLASH_3, p.FLASHINFER)
        self.report.table(
            "decode", f"Decode, {DECODE_HEADS}/{DECODE_KV_HEADS} heads, head_dim 128, bfloat16, pages in random order: µs (spread)",
            ["batch, keys", *[cell for page in PAGES for cell in (f"page {page}", "GB/s", "of copy")], "cuDNN, dense", "×", "FA2, dense", "×",
             *[f"{peer}, page 16" for peer in peers], "FA3 on an H200", "for this card", *[f"page {page}: of that" for page in PAGES], "SM MHz", "max difference"])
        most = max(max(ROTATE_BYTES, self.kv_bytes(*shape)) + self.kv_bytes(*shape) for shape in DECODE)
        pool = [self.random(int(most) // 4 // (DECODE_KV_HEADS * DIM), DECODE_KV_HEADS, DIM) for _ in range(2)]
        for shape in self.progress.rows("decode", DECODE):
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
                self.progress.note(f"{name}: {failure}", failed=True)
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
        if p.FLASH_3 in peers and "decode" in p.flash_3:
            steps[p.FLASH_3] = lambda i: p.flash_3["decode"].decode(q, paged(k(i)), paged(v(i)), lengths, keys, table)
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
        compile_peers()  # here, so that it costs no other table its time
        self.report.table(
            "masks", f"Masks and scores, 1 × {TOKENS}, {MASK_HEADS}/{MASK_HEADS}: TFLOP/s of the visible pairs (spread)",
            ["mask", "Chorale", "flex_attention", "×", "flex builds its mask, ms", "× with that", f"tiles of {TILE}² seen", "a tile costs, of causal's", "µs", "max difference"])
        q, k, v = (self.random(TOKENS, MASK_HEADS, DIM) for _ in range(3))
        tq, tk, tv = (p.by_heads(x, 1) for x in (q, k, v))
        rows = mask_rows("cuda")
        causal_tiles, built = self.visible(rows[0])[1], {}
        for row in self.progress.rows("masks", rows):
            pairs, tiles = self.visible(row)
            steps = self.chorale_forward(mask_request(row), q, k, v)
            steps.update(self.chorale_forward(mask_request(rows[0]), q, k, v, "Chorale causal"))
            if row.text not in built:  # rows with a score have the mask of another
                built[row.text] = self.build_mask(row)
            mask, build_ms = built[row.text]
            if mask is not None:
                steps[p.FLEX] = lambda i: p.flex(tq, tk, tv, mask, row.score_mod)
            flops = 4 * MASK_HEADS * DIM * pairs / 1e6
            captured = self.capture(steps, launches_of(flops), row.name)
            samples = self.race.run(captured)
            both = "Chorale" in samples and p.FLEX in samples
            cost = "–"
            if "Chorale" in samples and "Chorale causal" in samples:
                cost = f"{samples['Chorale'].median / tiles / (samples['Chorale causal'].median / causal_tiles):.2f}"
            self.report.row([row.name, self.rate(samples, "Chorale", flops), self.rate(samples, p.FLEX, flops), self.ratio(samples, "Chorale", p.FLEX),
                             f"{build_ms:.2f}" if build_ms and not row.score_mod else "–",
                             f"{(samples[p.FLEX].median + build_ms * 1e3) / samples['Chorale'].median:.2f}" if both and not row.score_mod else "–",
                             tiles, cost, self.us(samples, "Chorale"), self.compare(captured, [p.FLEX], row.name, 1)])

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
            self.progress.note(f"{row.name}: create_block_mask: {gpu_timing.sentence(error)}")
            return None, None

    def plan(self, runs=200):
        self.report.table("plan", "Host time of a step's plan, 256 sequences that decode, 1 to 4096 keys: µs, median (least to most)",
                          ["page", "plan, pages as in the step before", "plan, every page another", "its first forward (copies it to the GPU)", "a later forward"])
        lengths = plan_lengths()
        for page in self.progress.rows("plan", PAGES):
            made = decode_request(lengths, page)
            q = self.random(len(lengths), DECODE_HEADS, DIM)
            k, v = (self.random(made.pages * page, DECODE_KV_HEADS, DIM) for _ in range(2))
            times = [numpy.zeros(runs) for _ in range(4)]
            stream = ctypes.c_void_p(self.race.stream.cuda_stream)
            try:
                self.chorale.check(self.chorale.c.chorale_plan_seconds(
                    ctypes.byref(made), *map(pointer, (q, k, v, torch.empty_like(q))), stream, runs, *(ctypes.c_void_p(t.ctypes.data) for t in times)))
            except Failure as failure:
                self.progress.note(str(failure), failed=True)
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
        line(f"- {'; '.join(f'{peer}: ' + (why or 'there') for peer, why in self.installed.items())}"
             f"{''.join(f'; {what} of FlashAttention-3: {side.name}' for what, side in self.peers.flash_3.items())}")
        line(f"- Every side's step is captured in a CUDA graph (forward, masks and chunks: {WORK_FLOPS / 1e12:.0f} TFLOP, at least 3 launches; decode: at least 10, each on other keys, of {ROTATE_BYTES / 1e6:.0f} MB or more). "
             f"A sample is one replay between two events, after {self.gap * 1e3:.0f} ms of idle, over its launches. Sides take turns. Median; "
             "the spread is the interquartile range over the median. × is the peer's time over Chorale's.")
        line("- Chorale writes the log-sum-exp too in forward and masks. PyTorch's decode reads dense keys: it has no pages. Keys and values count in GB/s. "
             "“For this card”: FlashAttention-3's time on an H200 (docs/cuda_decode.md), where bandwidth bounds it times 4280 GB/s over this run's copy.")

    def run(self, rows):
        """Gives the process's exit status."""
        if self.progress.is_first:
            self.head()
        for kind in self.progress.tables(rows):
            try:
                getattr(self, kind)()
                torch.cuda.empty_cache()
            except Exception as error:  # whatever broke, the rows after it run in another process
                self.progress.note(f"{kind}: {gpu_timing.sentence(error)}", failed=True)
                return RESUME
            say(f"{kind}: {self.progress.seconds:.0f} s so far")
        self.report.line(f"\nAfterwards: {card_state()}; {self.progress.seconds:.0f} s in all.")
        for note in self.progress.state["notes"]:
            self.report.line(f"- {note}")
        self.progress.state["finished"] = True
        self.progress.save()
        return 1 if self.progress.state["failed"] else 0


ROWS = ("limits", "plan", "decode", "forward", "chunks", "masks")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--rows", default=",".join(ROWS), help="which tables, in this order")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row; never less than 7 rounds")
    parser.add_argument("--gap", type=float, default=20, help="idle milliseconds before each sample")
    parser.add_argument("--budget", type=float, default=1800, help="seconds after which no row begins")
    parser.add_argument("--output", help="a Markdown file for the results, beside the terminal")
    parser.add_argument("--flash-3", help="FlashAttention-3's forward, as bench/cuda/flash_3.sh builds it")
    parser.add_argument("--compile", action="store_true", help="only compile the kernels")
    parser.add_argument("--compile-peers", action="store_true", help="only compile flex_attention's")
    parser.add_argument("--progress", help=argparse.SUPPRESS)  # of a worker
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"--rows {unknown[0]}: must be among {', '.join(ROWS)}")
    if not arguments.progress and not arguments.compile_peers:
        failures = compile_kernels(Chorale(arguments.library), rows)
        for failure in sorted(failures):
            say(failure)
        if arguments.compile:
            sys.exit(1 if failures else 0)
        sys.exit(watch([sys.executable, *sys.argv], arguments.budget))
    if torch is None or not torch.cuda.is_available():
        say("bench: needs a GPU and a PyTorch that can use it" if torch else "bench: PyTorch is not installed")
        sys.exit(2)
    torch.set_grad_enabled(False)
    sys.exit(compile_peers() if arguments.compile_peers else Bench(Chorale(arguments.library), arguments).run(rows))


if __name__ == "__main__":
    main()
