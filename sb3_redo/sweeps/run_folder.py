"""Makes an ordinary training resumable: after a kill at any time, the same command continues it."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, KVWriter, TensorBoardOutputFormat
from stable_baselines3.common.utils import safe_mean
from torch.utils.tensorboard import SummaryWriter

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.monitoring import MonitoringCallback
from sb3_redo.callbacks.redo import ReDoCallback
from sb3_redo.sb3.memory import Memory
from sb3_redo.sb3.model import gradient_steps_of
from sb3_redo.sweeps.checkpoint import restore_checkpoint, save_checkpoint
from sb3_redo.sweeps.files import OUTCOME, PROGRESS, RUN, is_finished, locked, write_json
from sb3_redo.sweeps.run import describe_run, machine
from sb3_redo.validation import listed, non_negative_number, one_of

FINAL_RETURN = "sweep/final_return"
FINAL_FRACTION = "sweep/final_dormant_fraction"

_SECONDS_BETWEEN_PROGRESS = 2.0


class RunFolder(BaseCallback):
    """Keeps a training's points, checkpoints and outcome in one folder, and resumes the training from there.

    Put it first in the list, so that later callbacks see the restored model. Until it is stopped, training equals
    training without this callback bit for bit. After resuming, a new episode begins.

    :param folder: for this run alone; created if needed
    :param condition: name to value of each difference to other runs, for TensorBoard's HParams tab
    :param checkpoint_minutes: minutes between saves of the training's state, with its replay buffer
    :param axes: names in ``condition`` by which reports distinguish runs; by default all but environment and algorithm
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range
    """

    def __init__(
        self,
        folder: str,
        condition: dict[str, Any] | None = None,
        checkpoint_minutes: float = 10.0,
        axes: Sequence[str] | None = None,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        self.folder = Path(folder)
        self.condition = dict(condition or {})
        self.axes = [name for name in self.condition if name not in ("environment", "algorithm")]
        if axes is not None:
            self.axes = [one_of("axes", name, tuple(self.condition)) for name in listed("axes", axes)]
        self.checkpoint_minutes = non_negative_number("checkpoint_minutes", checkpoint_minutes)
        self._held = ExitStack()
        self._output: TensorBoardOutputFormat | None = None
        self._stopped_early = False

    def _on_training_start(self) -> None:
        self._held.enter_context(locked(self.folder))
        if is_finished(self.folder):
            self._held.close()
            raise RuntimeError(f"{self.folder} holds a finished run: remove it to train again")
        (self.folder / OUTCOME).unlink(missing_ok=True)  # left by a shorter training
        if not (self.folder / RUN).exists():
            self._describe()
        notes = restore_checkpoint(self.folder, self.model)
        if notes is None:
            # Left by a training that was killed before its first save.
            for file in self.folder.glob("events.out.tfevents.*"):
                file.unlink()
        notes = notes or {}
        self._started: float = time.monotonic() - notes.get("seconds", 0.0)
        self._fraction: float | None = notes.get("dormant_fraction")
        self._saved_at = self._told_at = time.monotonic()
        self._open_tensorboard(self.model.num_timesteps + 1 if notes else None)
        self._tell()

    def _describe(self) -> None:
        """Describe a training that was typed by hand. A sweep describes its own runs."""
        from rl_zoo3.utils import ALGOS

        name = next((name for name, kind in ALGOS.items() if type(self.model) is kind), type(self.model).__name__)
        describe_run(
            self.folder,
            environment=self.condition.get("environment") or self._environment_id(),
            algorithm=self.condition.get("algorithm", name),
            condition={axis: self.condition[axis] for axis in self.axes},
            seed=self.model.seed or 0,
        )

    def _environment_id(self) -> str:
        try:
            (spec,) = self.training_env.get_attr("spec", indices=0)
        except AttributeError:  # custom environments may have none
            spec = None
        return str(spec.id) if spec else "unknown"

    def _open_tensorboard(self, purge_step: int | None) -> None:
        """Also write all points into the folder.

        :param purge_step: points from this step on are discarded: a killed training wrote them
        """
        self._output = TensorBoardOutputFormat.__new__(TensorBoardOutputFormat)
        self._output.writer = SummaryWriter(str(self.folder), purge_step=purge_step)
        self._output._is_closed = False
        self.logger.output_formats.append(self._output)
        self._write({"hparams": self._hyper_parameters()})

    def _hyper_parameters(self) -> HParam:
        plain = (bool, int, float, str)
        values = {name: value if isinstance(value, plain) else str(value) for name, value in self.condition.items()}
        # TensorBoard shows metrics only if scalars with the same tags exist. _finish() writes them.
        return HParam({**values, "seed": self.model.seed or 0}, {FINAL_RETURN: 0.0, FINAL_FRACTION: 0.0})

    def _write(self, values: dict[str, Any]) -> None:
        assert isinstance(self._output, KVWriter)
        self._output.write(values, dict.fromkeys(values, ("",)), self.model.num_timesteps)

    def _on_rollout_start(self) -> None:
        # At this point all collected transitions are stored, and all due gradient steps are made.
        now = time.monotonic()
        if now - self._saved_at >= 60 * self.checkpoint_minutes:
            self._save()
        if now - self._told_at >= _SECONDS_BETWEEN_PROGRESS:
            self._tell()

    def _on_step(self) -> bool:
        return True

    def _save(self, buffer: bool = True) -> None:
        notes = {"seconds": self._seconds, "dormant_fraction": self._latest_fraction()}
        save_checkpoint(self.folder, self.model, notes, buffer=buffer)
        self._saved_at = time.monotonic()

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _tell(self) -> None:
        steps, total = self.model.num_timesteps, self.model._total_timesteps
        write_json(self.folder / PROGRESS, {"num_timesteps": steps, "of": total, "seconds": self._seconds})
        self._told_at = time.monotonic()

    def _on_training_end(self) -> None:
        if self._output is None:
            return
        if self.model.num_timesteps < self.model._total_timesteps and not self._stopped_early:
            # The zoo always calls this once more. A single call means Ctrl-C or an exception within a rollout or a
            # gradient step: the run resumes from the last checkpoint. Two calls mean that a callback ended it.
            self._stopped_early = True
            return
        self._finish()

    def _finish(self) -> None:
        outcome = self._outcome()
        finals = {FINAL_RETURN: outcome["final_return"], FINAL_FRACTION: outcome["final_dormant_fraction"]}
        self._write({key: value for key, value in finals.items() if value is not None})
        assert self._output is not None
        self._output.close()
        self.logger.output_formats.remove(self._output)
        self._output = None
        self._tell()
        # Saved in case the zoo fails to save the agent.
        self._save(buffer=False)
        write_json(self.folder / OUTCOME, outcome)
        self._held.close()

    def _ours(self) -> list[MonitoringCallback]:
        return [found for found in callbacks_in(self.locals.get("callback")) if isinstance(found, MonitoringCallback)]

    def _latest_fraction(self) -> float | None:
        """Return the dormant fraction of the last measurement, also from before the run was stopped."""
        report = next((callback.report for callback in self._ours() if callback.report is not None), None)
        return self._fraction if report is None else report.dormant_fraction

    def _outcome(self) -> dict[str, Any]:
        recycles = any(isinstance(callback, ReDoCallback) for callback in self._ours())
        episodes = self.model.ep_info_buffer
        return {
            "num_timesteps": self.model.num_timesteps,
            "gradient_steps": gradient_steps_of(self.model),
            "seconds": self._seconds,
            "steps_per_second": self.model.num_timesteps / self._seconds,
            "final_return": safe_mean([episode["r"] for episode in episodes]) if episodes else None,
            "final_dormant_fraction": self._latest_fraction(),
            "recycled_total": Memory.recycled_total_of(self.model) if recycles else None,
            "machine": machine(),
        }
