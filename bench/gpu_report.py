"""What bench/attention_gpu.py writes, and what it says of the machine."""

import sys


class Report:
    """Markdown, to the terminal and to a file, as it comes."""

    def __init__(self, path, progress):
        self.progress = progress
        self.file = open(path, "w" if progress.is_first else "a", encoding="utf-8") if path else None

    def line(self, text=""):
        for file in (sys.stdout, self.file):
            if file:
                print(text, file=file, flush=True)

    def row(self, cells):
        self.line("| " + " | ".join(str(cell) for cell in cells) + " |")

    def table(self, name, title, header):
        if not self.progress.is_new(name):
            return
        self.line(f"\n## {title}\n")
        self.row(header)
        self.row(["---"] * len(header))


def card_state():
    """Driver, clocks, power, as NVML tells them."""
    try:
        import pynvml
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        clock = lambda kind: f"{pynvml.nvmlDeviceGetClockInfo(card, kind)} of {pynvml.nvmlDeviceGetMaxClockInfo(card, kind)} MHz"
        return (f"driver {pynvml.nvmlSystemGetDriverVersion()}, SM {clock(pynvml.NVML_CLOCK_SM)}, memory {clock(pynvml.NVML_CLOCK_MEM)}, "
                f"{pynvml.nvmlDeviceGetPowerUsage(card) / 1e3:.0f} of {pynvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1e3:.0f} W, "
                f"{pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU)} °C")
    except Exception as error:  # a card that does not tell, or no pynvml
        return f"clocks unknown ({error})"


def sm_clock():
    """Right after a row."""
    try:
        import pynvml
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetClockInfo(pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.NVML_CLOCK_SM)
    except Exception:
        return "–"
