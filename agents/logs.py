"""What a run logs: the same scalars under the same names for every method, in a table and for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import HParam, KVWriter, Logger, TensorBoardOutputFormat, filter_excluded_keys
from torch.utils.tensorboard import SummaryWriter

from backbone.checkpoint import write_atomically

TABLE = "progress.csv"

SCALARS = (
    "train/accuracy",
    "train/cost",
    "train/reward",
    "train/entropy",
    "train/multiplier",
    "train/loss",
    "validation/accuracy",
    "validation/cost",
    "validation/total_cost",
    "validation/loss",
    "time/images",
    "time/images_per_second",
)
"""What every method that learns logs. Scalars of training are means since the last validation:

- accuracy: share of correct predictions on the routes taken in training;
- cost: mean block cost of these routes, a fraction of full execution;
- reward: what the method maximises, for an image: the return of an episode, or minus the loss. It is the sum of its
  components, `train/reward_NAME`;
- entropy: of the distribution over actions, in nats for a decision; with activation gating, of the share of gates that
  are on;
- multiplier: the current cost coefficient in the reward, fixed or found by dual ascent; 0 if cost is not charged;
- loss: what was minimised; with Stable-Baselines3, its own name and its own last value;
- validation: the evaluation of the policy at that time; its loss is the mean cross-entropy in nats.

Only TensorBoard also gets the share of each bitwidth at each block of the validated policy, as `blocks/NN/bits_B`."""


class Table(KVWriter):
    """All rows so far, in a CSV file with columns in alphabetical order, which is rewritten with each row."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a row."""
        self.rows.append(filter_excluded_keys(key_values, key_excluded, "csv"))
        text = io.StringIO()
        columns = sorted({name for row in self.rows for name in row})
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.file, text.getvalue())

    def close(self) -> None:
        """Nothing is open."""


class Board(TensorBoardOutputFormat):
    """TensorBoard's event file. Events after step `begin` in an earlier file of the folder are dropped."""

    def __init__(self, folder: Path, begin: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=begin + 1 if begin else None)
        self._is_closed = False

    def summarise(self, settings: Mapping[str, Any], scalars: Mapping[str, float], step: int) -> None:
        """Log settings and final scalars to TensorBoard's table of hyper-parameters."""
        kinds = (bool, str, float, int)
        shown = {name: value if isinstance(value, kinds) else json.dumps(value) for name, value in settings.items()}
        values = {**scalars, "hparams": HParam(shown, scalars)}
        self.write(values, dict.fromkeys(values, ()), step)


def make_logger(folder: Path, begin: int) -> Logger:
    """A logger to a `Table` and a `Board` in `folder`, for a run that begins, or resumes, after `begin` images."""
    folder.mkdir(parents=True, exist_ok=True)
    return Logger(str(folder), [Table(folder / TABLE), Board(folder, begin)])
