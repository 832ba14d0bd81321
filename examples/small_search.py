"""Search for plans of the pipeline that ships, in a few seconds, and take one from the front.

A real search wants about 100 prompts and far more candidates; this one only shows the calls.

Usage: python examples/small_search.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from festina.metrics.reward import JudgeReward
from festina.search import Job, SearchSettings, learn
from festina.zoo import call_arguments, load, shipped_judge
from festina.zoo.grammar import sample_scenes


def main(out: Path | None = None, population: int = 6, generations: int = 2, prompts: int = 4, steps: int = 8) -> None:
    """Search in `out`, or in a temporary folder, and print the front and one plan of it."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder), population, generations, prompts, steps)
        return
    pipe, reward = load("scenes"), JudgeReward(shipped_judge())
    captions = list(dict.fromkeys(scene.caption() for scene in sample_scenes(4 * prompts, seed=1)))
    job = Job(
        prompts=tuple(captions[:prompts]),
        held_out=tuple(captions[prompts : 2 * prompts]),
        steps=steps,
        settings=SearchSettings(population=population, generations=generations),
        call=call_arguments(pipe),
    )
    front = learn(pipe, job, reward, out)

    uncached = front.uncached
    for point in (*front.points, uncached):
        low, high = point.interval
        fewer = uncached.macs / point.macs
        print(f"{fewer:6.2f} times fewer MACs  reward {point.reward:.3f} ({low:.3f} to {high:.3f})")
    best = front.best(max_macs=uncached.macs // 2)
    best.plan.save(out / "best.json")
    print(f"best plan with at most half the MACs: computes in steps {best.plan.computed_steps()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
