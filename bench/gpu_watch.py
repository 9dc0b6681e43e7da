"""Runs bench/attention_gpu.py's rows in a process that is replaced when a row hangs or breaks the GPU's context."""

import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time

PATIENCE = 90  # seconds for a row
RESUME = 75  # a worker's exit status: a row failed, the rest is still to do


class Progress:
    """Where the worker is, in a file that outlives it: the row, and what is said at the end."""

    def __init__(self, path):
        self.path = path
        with open(path, encoding="utf-8") as file:
            self.state = json.load(file)
        self.resumed = tuple(self.state["row"])  # the row that the worker before did not finish; ("", -1) at first

    def save(self):
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.state, file)
        os.replace(self.path + ".new", self.path)

    @property
    def is_first(self):
        return self.resumed[1] < 0

    @property
    def seconds(self):
        return time.time() - self.state["start"]

    def note(self, text, failed=False):
        self.state["failed"] |= failed
        if text not in self.state["notes"]:
            self.state["notes"].append(text)
            print(text, file=sys.stderr, flush=True)
        self.save()

    def rows(self, table, items):
        """The items that are still to do. A row that takes too long ends the process."""
        done = self.resumed[1] if self.resumed[0] == table else -1
        for index, item in enumerate(items):
            if index <= done:
                continue
            if self.seconds > self.state["budget"]:
                self.note(f"{table}: the rows from number {index + 1} on were not run: time")
                break
            self.state["row"] = (table, index)
            self.save()
            faulthandler.dump_traceback_later(PATIENCE, exit=True)  # a kernel that never ends cannot be stopped otherwise
            yield item
            faulthandler.cancel_dump_traceback_later()

    def tables(self, names):
        """Those that are still to do."""
        first = names.index(self.resumed[0]) if self.resumed[0] in names else 0
        return names[first:]

    def is_new(self, table):
        return self.resumed[0] != table


def watch(command, budget):
    """Runs the worker again until it comes to its end. Gives its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "progress")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"row": ("", -1), "notes": [], "failed": False, "finished": False, "start": time.time(), "budget": budget}, file)
        while True:
            before = Progress(path).state["row"]
            status = subprocess.run([*command, "--progress", path], check=False).returncode
            progress = Progress(path)
            row = progress.state["row"]
            if progress.state["finished"] or row == before:  # a worker that came to no new row will not next time
                return status
            if status != RESUME:
                progress.note(f"{row[0]}, row {row[1] + 1}: the process ended with status {status}", failed=True)
