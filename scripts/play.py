"""Show the policy of a finished run deciding, image by image.

    dfs-env play runs/dfs-budget0.04-seed0-1a2b3c4d
    dfs-env play runs/dfs-budget0.04-seed0-1a2b3c4d --images 3 17 --output frames

On the terminal, every decision adds a line of text, such as

    label 0  [- 4 .]  cost 0.083, mean budget 0.05  prediction ?

The brackets hold one sign for each decision: the bitwidth, "-" for a skipped block, "." for none yet. At the accept
decisions of a cascade, "=" is an accepted prediction, and ">" enters the next stage. The prediction is followed by its
probability, and "?" stands for it before the end. With --output, every decision is a PNG, and every image a GIF.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from agents.evaluation import SelfMeasured, mdp_of
from agents.policies import Policy
from agents.runs.saved import load_run
from dfs_env.render import limit
from dfs_env.single_env import DFSEnv
from dfs_env.task import Task
from scripts.cli import clear_errors, keeping


@dataclass(frozen=True)
class Play:
    """What to show."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    images: tuple[int, ...] = (0, 1, 2, 3)
    """Which images of the split, by their indices."""
    split: str = "test"
    """"train", "validation" or "test"."""
    budget: float | None = None
    """The budget that the policy observes; by default the run's own."""
    output: Path | None = None
    """Folder for frames; by default, lines of text are printed."""
    milliseconds: int = 500
    """How long a GIF shows each decision."""
    data: str | None = None
    """Data folder; by default $DFS_DATA, else the user's cache folder."""
    device: str = "cpu"
    """Torch device."""
    trust_code: bool = False
    """Import what the run names from installed packages: only for runs that you made."""


def episodes(policy: Policy, env: DFSEnv, images: Sequence[int]) -> Iterator[tuple[int, list[Any], dict[str, Any]]]:
    """Each image, the frames before the first decision and after each, and the last info; decisions are
    deterministic."""
    memory: Any = None
    for index in images:
        observation, info = env.reset(options={"indices": index})
        frames, over = [env.render()], False
        while not over:
            starts = np.array([len(frames) == 1])
            action, memory = policy.predict(observation[None], memory, starts, deterministic=True)
            observation, _, over, _, info = env.step(int(action[0]))
            frames.append(env.render())
        yield index, frames, info


def write_frames(folder: Path, index: int, frames: Sequence[Any], milliseconds: int) -> None:
    """A PNG for each frame, and a GIF of all, which shows the last frame four times as long."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(frame) for frame in frames]
    for step, picture in enumerate(pictures):
        picture.save(folder / f"image-{index:05}-decision-{step:02}.png")
    durations = [milliseconds] * (len(pictures) - 1) + [4 * milliseconds]
    pictures[0].save(
        folder / f"image-{index:05}.gif", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )


def main(args: Play) -> None:
    """Load, play, print or write."""
    if args.milliseconds < 1:
        raise ValueError(f"milliseconds must be at least 1, got {args.milliseconds}")
    policy, task, result = load_run(args.folder, args.device, args.data, args.trust_code)
    if isinstance(policy, SelfMeasured):
        raise ValueError(f"{result['run']} does not decide block by block, so that there are no decisions to show")
    budget = result["budget"] if args.budget is None else args.budget
    mode = "ansi" if args.output is None else "rgb_array"
    hard = getattr(policy, "hard_budget", False)
    played = Task(mdp_of(policy, task), task.dataset)
    env = DFSEnv(played, budget=budget, hard_budget=hard, split=args.split, render_mode=mode)
    kept = f"the frames so far are kept in {args.output}" if args.output else "nothing is kept"
    with keeping(lambda: kept):
        for index, frames, info in episodes(policy, env, args.images):
            if args.output is None:
                print(f"image {index}", *frames, sep="\n")
            else:
                write_frames(args.output, index, frames, args.milliseconds)
            outcome = "correct" if info["correct"] else "wrong"
            print(f"image {index}: {outcome}, cost {info['spent']:.4f}, {limit(budget, hard)}", flush=True)
    if args.output:
        print(f"frames: {args.output}")


def start() -> None:
    """Run the command line."""
    with clear_errors():
        main(tyro.cli(Play, description=__doc__))


if __name__ == "__main__":
    start()
