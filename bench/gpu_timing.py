"""How bench/attention_gpu.py times: CUDA graphs, in turns, with the same idle gap before each."""

import statistics
import time

import torch


class Samples:
    """Microseconds of one launch, one number for each replay."""

    def __init__(self):
        self.us = []

    @property
    def median(self):
        return statistics.median(self.us)

    @property
    def spread(self):
        low, _, high = statistics.quantiles(self.us, n=4)
        return (high - low) / self.median


def sentence(error):
    """The first cause: ending a capture that failed raises another error."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or repr(error)).splitlines()[0]


class Captured:
    """`launches` calls of step(i) in a graph; `out` is what the last of them gave."""

    def __init__(self, stream, step, launches):
        self.stream, self.launches = stream, launches
        with torch.cuda.stream(stream):
            for i in range(min(launches, 3)):  # plans go to the GPU, libraries make their handles, torch.compile compiles
                step(i)
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                for i in range(launches):
                    self.out = step(i)

    def launch(self):
        self.graph.replay()

    def replay(self):
        with torch.cuda.stream(self.stream):
            self.launch()
        self.stream.synchronize()

    def microseconds(self):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            start.record()
            self.launch()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / self.launches


class Called(Captured):
    """The same without a graph, whose copies of memory are slower than those of a stream."""

    def __init__(self, stream, step, launches):
        self.stream, self.step, self.launches = stream, step, launches

    def launch(self):
        for i in range(self.launches):
            self.out = self.step(i)


class Race:
    """Sides take turns, and so does who begins; before each replay the card is idle for `gap` seconds."""
    least_rounds = 7

    def __init__(self, seconds, gap):
        self.seconds, self.gap = seconds, gap
        self.stream = torch.cuda.Stream()

    def capture(self, steps, launches, refused):
        """{name: Captured}. A side that cannot is left out, and refused(name, why) is called."""
        captured = {}
        for name, step in steps.items():
            try:
                captured[name] = Captured(self.stream, step, launches)
            except (Exception, SystemExit) as error:  # whatever a peer raises
                refused(name, sentence(error))
        return captured

    def run(self, captured):
        """{name: Samples}."""
        samples = {name: Samples() for name in captured}
        names = list(captured)
        for name in names:
            captured[name].replay()
        end, rounds = time.perf_counter() + self.seconds, 0
        while names and (rounds < self.least_rounds or time.perf_counter() < end):
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(self.gap)
                samples[name].us.append(captured[name].microseconds())
            rounds += 1
        return samples
