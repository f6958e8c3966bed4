"""Run folders as a sweep leaves them, made without training."""

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

LAYERS = ("q_net.q_net.0", "q_net.q_net.2")
KEYS = (
    *("rollout/ep_rew_mean", "time/fps", "dormancy/fraction", "dormancy/q_net", "dormancy/overlap"),
    *("dormancy/gradient_step", *(f"dormancy_layers/{layer}" for layer in LAYERS)),
    *("dormancy_thresholds/0.0", "dormancy_thresholds/0.1", "redo/recycled", "redo/recycled_total"),
)


def write_events(path, points, purge_step=None, began=0.0):
    """An event file with points (step, key, value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    events = [Event(wall_time=began, file_version="brain.Event:2")]
    if purge_step is not None:
        start = SessionLog(status=SessionLog.START)
        events.append(Event(wall_time=began, step=purge_step, session_log=start))
    for step, key, value in points:
        summary = Summary(value=[Summary.Value(tag=key, simple_value=value)])
        events.append(Event(wall_time=began + 1, step=step, summary=summary))
    path.write_bytes(b"".join(record(event.SerializeToString()) for event in events))


def record(contents):
    length = struct.pack("<Q", len(contents))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, contents))
    return length + next(checksums) + contents + next(checksums)


def points_of(condition, seed, measurements=20, period=100, environment="CartPole-v1", keys=KEYS):
    """Columns step, gradient_step, key, value of a run that logs every ``period`` steps; nothing random."""
    ratio = float(condition.get("replay_ratio", 1))
    redo = condition.get("callback") == "redo"
    step = np.arange(1, measurements + 1) * period
    part = step / step[-1]
    width = float(condition.get("width", 1))
    fraction = (0.05 if redo else 0.4) * part * ratio**0.5 * (1 + 0.1 * width) + 0.01 * seed
    high = 1000.0 if "NoFrameskip" in environment else 200.0
    values = {
        "rollout/ep_rew_mean": high * part * (1.5 if redo else 1.0) / (0.5 + ratio) * (0.8 + 0.2 * width) + 10 * seed,
        "time/fps": np.full(len(step), 500.0 / (1 + ratio) + seed),
        "dormancy/overlap": 0.4 + 0.3 * part / width - 0.1 * redo,
        "dormancy/gradient_step": step * ratio,
        "redo/recycled": np.full(len(step), 3.0),
        "redo/recycled_total": 3.0 * np.arange(1, measurements + 1),
    }
    keys = [key for key in keys if redo or not key.startswith("redo/")]
    columns = [values.get(key, fraction * (1 + 0.5 * (number % 3 - 1))) for number, key in enumerate(keys)]
    count = len(keys)
    return {
        "step": np.repeat(step, count),
        "gradient_step": np.repeat((step * ratio).astype(np.int64), count),
        "key": np.tile(np.arange(count, dtype=np.int32), len(step)),
        "value": np.stack(columns, axis=1).ravel(),
        "keys": keys,
    }


def write_sweep(folder, axes, environments=("CartPole-v1",), seeds=(0, 1), n_timesteps=2000, algorithm="dqn"):
    """``sweep.json``; returns (environment, condition, seed, folder) of every planned run."""
    conditions = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    label = lambda condition: ",".join(f"{k}={v}" for k, v in condition.items()) or "default"  # noqa: E731
    plan = [(e, c, s, f"{e}/{label(c)}/seed={s}") for e in environments for c in conditions for s in seeds]
    about = {"name": folder.name, "algorithm": algorithm, "axes": axes, "environments": list(environments)}
    about |= {"seeds": list(seeds), "n_timesteps": n_timesteps, "runs": [name for *_, name in plan]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(about))
    return [(e, c, s, folder / name) for e, c, s, name in plan]


def write_run(environment, condition, seed, folder, *, finished=True, parquet=False, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    about = {"run": str(folder), "environment": environment, "algorithm": "dqn", "condition": condition, "seed": seed}
    (folder / "run.json").write_text(json.dumps(about | {"settings": {}, "versions": {}, "command": []}))
    points = points_of(condition, seed, environment=environment, **settings)
    if parquet:
        write_points_file(folder, points)
    else:
        names = [points["keys"][code] for code in points["key"]]
        rows = zip(points["step"].tolist(), names, points["value"].tolist(), strict=True)
        write_events(folder / "events.out.tfevents.1.host.1.0", list(rows))
    if finished:
        write_result(folder, points)


def write_result(folder, points):
    frame = pd.DataFrame({name: points[name] for name in ("step", "gradient_step", "value")})
    last = frame.assign(key=np.array(points["keys"])[points["key"]]).groupby("key")["value"].last()
    steps = int(frame["step"].max())
    result = {"num_timesteps": steps, "gradient_steps": int(frame["gradient_step"].max()), "seconds": steps / 400}
    result |= {"steps_per_second": 400.0, "final_return": last.get("rollout/ep_rew_mean")}
    result |= {
        "final_dormant_fraction": last.get("dormancy/fraction"),
        "recycled_total": last.get("redo/recycled_total"),
    }
    (folder / "result.json").write_text(json.dumps(result))


def write_points_file(folder: Path, points):
    keys = pa.DictionaryArray.from_arrays(pa.array(points["key"]), pa.array(points["keys"]))
    columns = {"step": points["step"], "gradient_step": points["gradient_step"], "key": keys, "value": points["value"]}
    pq.write_table(pa.table(columns), folder / "points.parquet")
