"""Whether the fast path of stage 2 learns as well as float32: `python -m benchmarks.quality --config FILE [...] [key=value ...]` prints JSON.

Trains the configured head by both precisions with every seed, same steps, and measures what is held out; curves go to OUTPUT/quality.html.
Two seeds of one precision say how large a difference means nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.errors import InputError
from lib.evaluation.html import Line, chart, page
from lib.files import write_whole
from lib.training.runtime import run

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ("high", "highest")
MEASURES = ("psnr", "ssim")
LIMITS = {"psnr": 0.1, "ssim": 0.002}  # dB; how far means may lie apart
POINTS = 15  # of a curve


@dataclass(frozen=True)
class Run:
    """One training: means of what was held out, seconds of training, and curves over the steps."""

    precision: str
    seed: int
    means: dict[str, dict[str, float]]
    seconds: float
    curves: dict[str, tuple[float, ...]]


def train_and_measure(configs: list[str], overrides: list[str], precision: str, seed: int, steps: int, output: Path) -> Run:
    """By the scripts, in processes of their own. Raises InputError where one fails."""
    name = f"quality_{precision}_{seed}"
    if (output / name).exists():
        raise InputError(f"{output / name}: is there already, perhaps of other code or of other steps; remove it, or choose another --output")
    options = [*(f"--config={path}" for path in configs), *overrides, f"trainer.precision={precision}", f"trainer.seed={seed}",
               f"trainer.steps={steps}", f"trainer.validate_every={max(1, steps // POINTS)}", f"recorder.show_freq={max(1, steps // POINTS)}",
               f"recorder.name={name}", f"recorder.logdir={output / name / 'log'}", f"recorder.checkpoint_path={output}",
               f"recorder.result_path={output}", f"recorder.save_freq={steps}",
               *(f"load_{part}_checkpoint=null" for part in ("gaussianhead", "supres", "delta_poses"))]
    for script in ("train_gaussianhead.py", "evaluate.py"):
        result = subprocess.run([sys.executable, str(ROOT / script), *options], stdout=sys.stderr)
        if result.returncode:
            raise InputError(f"{script} with {precision}, seed {seed}, ended with {result.returncode}: what it says stands above")
    metrics = json.loads((output / name / "metrics.json").read_text())
    means = {split: {measure: metrics[split][measure] for measure in MEASURES} for split in metrics["protocol"]["splits"]}
    events = EventAccumulator(str(output / name / "log")).Reload()
    curves = {key: tuple(event.value for event in events.Scalars(f"gaussianhead/{key}")) for key in ("psnr", "total")}
    return Run(precision, seed, means, metrics["seconds"]["gaussianhead"], curves)


def verdict(runs: list[Run]) -> dict[str, Any]:
    """Per split and measure: means over the seeds, their difference, and how far seeds of one precision lie apart."""
    found: dict[str, Any] = {}
    for split in runs[0].means:
        for measure in MEASURES:
            values = {precision: [one.means[split][measure] for one in runs if one.precision == precision] for precision in PRECISIONS}
            fast, exact = (statistics.fmean(values[precision]) for precision in PRECISIONS)
            found[f"{split}_{measure}"] = {
                **values, "difference": fast - exact, "seed_spread": max(max(each) - min(each) for each in values.values()),
                "limit": LIMITS[measure], "within": abs(fast - exact) <= LIMITS[measure]}
    return found


def curves(runs: list[Run]) -> str:
    """The page."""
    parts = [chart(title, [Line(f"{one.precision}, seed {one.seed}", one.curves[key]) for one in runs])
             for key, title in (("psnr", "Held-out psnr while training (dB)"), ("total", "Loss of the batch"))]
    return page("Precision high against highest", "Same steps and seeds; from the first to the last step.", *parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True, help="of train_gaussianhead.py; a further one is laid over it")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("results/quality"), help="a folder for runs, pictures and curves")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    runs = []
    for seed in arguments.seeds:
        for precision in PRECISIONS:
            runs.append(train_and_measure(arguments.config, arguments.overrides, precision, seed, arguments.steps, arguments.output))
            write_whole(arguments.output / "quality.html", curves(runs))
    print(json.dumps({"steps": arguments.steps, "runs": [vars(one) for one in runs], "verdict": verdict(runs)}, indent=1))


if __name__ == "__main__":
    run(main)
