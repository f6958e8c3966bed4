"""A sweep on a Ray cluster of four nodes, which Ray simulates on this machine."""

import json

import pytest
import torch

from sb3_redo.sweeps.files import is_busy, is_finished
from tests.helpers.sweeps import CONFIG, SWEEP, names, start, sweep, wait_for, weights, write_sweep

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
NAMES = names(0, 1)


@pytest.fixture
def folder(tmp_path):
    write_sweep(tmp_path)
    (tmp_path / "sweep.yml").write_text(SWEEP.replace("[0]", "[0, 1]"))
    return tmp_path


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args=NODE)
    for _ in range(3):
        nodes.add_node(**NODE)
    yield nodes
    nodes.shutdown()


@pytest.mark.slow
def test_a_cluster_gives_the_same_results_per_run(folder, cluster):
    code, said, complained = sweep(folder, "--address", cluster.address, out="cluster")
    assert code == 0, complained
    assert "4 runs finished, 0 failed" in said
    assert sweep(folder, "--workers", "2", out="here")[0] == 0
    for name in NAMES:
        far, near = weights(folder / "cluster" / name), weights(folder / "here" / name)
        assert far.keys() == near.keys()
        assert all(torch.equal(far[key], near[key]) for key in far), name


@pytest.mark.slow
def test_killing_a_node_loses_no_run(folder, cluster):
    (folder / "config.yml").write_text(CONFIG.replace("400", "10000"))
    process = start(folder, "--address", cluster.address)
    runs = [folder / "out" / name for name in NAMES]
    wait_for(lambda: all((run / "checkpoint.json").exists() for run in runs), seconds=300)
    doomed = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    cluster.remove_node(doomed, allow_graceful=False)
    # The training dies with its node, and lets go of its folder.
    wait_for(lambda: sum(is_busy(run) or is_finished(run) for run in runs) < 4)
    said, complained = process.communicate(timeout=500)
    assert process.returncode == 0, complained
    assert "4 runs finished, 0 failed" in said
    trainings = [len(list(run.glob("events.out.tfevents.*"))) for run in runs]
    assert sorted(trainings) == [1, 1, 1, 2]
    for run in runs:
        assert json.loads((run / "result.json").read_text())["num_timesteps"] == 10000
