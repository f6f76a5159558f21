"""Where a step's time goes: torch's profiler on a few steps of a run, which trains on as if it were not there."""

import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from lib.errors import InputError
from lib.files import make_folder, write_whole

WARM_UP, COUNT = 50, 5  # steps; after 32 the Gaussian head's rows are found anew, and compilers may work once more
FEWEST = 3  # steps of a run that can be profiled: one each to warm up, for the clock and for the profiler
LARGEST = 10  # rows of the table
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")


class StepProfiler:
    """Measures `count` steps by the clock, then as many with the profiler, after a warm-up: at most COUNT each, fewer in a short run.

    A step is all that happens from its end to the next one's: waiting for data, the step itself, what is shown and saved. Leaves
    `<folder>/<stage>_profile.txt`, the table, and `<stage>_profile.json.gz`, a trace for ui.perfetto.dev or chrome://tracing.
    """

    def __init__(self, folder: Path, stage: str, device: torch.device, start: int, stop: int) -> None:
        """Of a run of the steps from `start` to before `stop`."""
        self.table, self.trace = folder / f"{stage}_profile.txt", folder / f"{stage}_profile.json.gz"
        self.device = device
        self.count = min(COUNT, (stop - start) // FEWEST)
        self.first = start + min(WARM_UP, stop - start - self.count)
        self._began = self._step_ms = 0.0
        self._profile: torch.profiler.profile | None = None

    def after(self, done: int) -> str | None:
        """To be called when `done` steps are done: a line for the log after the last measured one. Raises InputError where nothing can be written."""
        if self.count == 0 or done not in (self.first - self.count, self.first, self.first + self.count):
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if done == self.first - self.count:
            self._began = time.perf_counter()
        elif done == self.first:
            self._step_ms = self._milliseconds()
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.start()
            self._began = time.perf_counter()
        elif self._profile is not None:
            profile, profiled_ms = self._profile, self._milliseconds()
            self.close()
            return self._write(profile, profiled_ms)
        return None

    def close(self) -> None:
        """Ends profiling, also of a run that ends early: then nothing is written."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _milliseconds(self) -> float:
        """Of a step, since the measurement began."""
        return 1e3 * (time.perf_counter() - self._began) / self.count

    def _write(self, profile: torch.profiler.profile, profiled_ms: float) -> str:
        averages = profile.key_averages()
        cuda = self.device.type == "cuda"
        here = DeviceType.CUDA if cuda else DeviceType.CPU
        rows = [(one.self_device_time_total if cuda else one.self_cpu_time_total, one.count, one.key)
                for one in averages if one.device_type == here and not one.is_user_annotation]
        busy = sum(row[0] for row in rows)  # microseconds
        calls = sum(row[1] for row in rows) / self.count
        name = torch.cuda.get_device_name(self.device) if cuda else "CPU"
        measured = f"step {self._step_ms:.4g} ms ({profiled_ms:.4g} ms while profiled), "
        if cuda:
            waits = sum(one.count for one in averages if one.key in WAITS) / self.count
            measured += f"{calls:.4g} kernels and copies that take {busy / 1e3 / self.count:.4g} ms, the host waits {waits:.3g} times for the device"
        else:
            measured += f"{calls:.4g} operations"
        lines = [f"steps {self.first + 1} to {self.first + self.count} on {name}, torch {torch.__version__}; per step:", measured, "",
                 f"{'ms':>9}  {'share':>6}  {'calls':>7}  {'kernel' if cuda else 'operation (time of its own)'}"]
        for spent, count, key in sorted(rows, key=lambda row: -row[0])[:LARGEST]:
            lines.append(f"{spent / 1e3 / self.count:9.3f}  {spent / max(busy, 1e-9):6.1%}  {count / self.count:7.5g}  {key}")
        write_whole(self.table, "\n".join(lines) + "\n")
        make_folder(self.trace.parent)
        try:
            profile.export_chrome_trace(str(self.trace))
        except OSError as error:
            raise InputError(f"{self.trace}: cannot be written ({error.strerror}); free space or correct the permissions") from error
        return f"profile: {measured}; {self.table}, {self.trace}"
