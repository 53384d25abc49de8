"""TensorBoard has every point once, the config as text, and hparams in the folder of the run itself."""

import os
from pathlib import Path

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tracked import HPARAMS, events_of, tracked_run

from dinoswap.tracker.tensorboard import TensorBoardTracker


def test_no_point_twice_after_a_resume(tmp_path: Path) -> None:
    for run, (first, last) in enumerate([(1, 8), (5, 10), (10, 12)]):
        board = TensorBoardTracker()
        board.start(tracked_run(tmp_path), first)
        for step in range(first, last):
            board.scalars(step, {"loss": 100.0 * run + step})
        board.close("preempted")
        (file,) = (path for path in (tmp_path / "tensorboard").iterdir() if ".run" not in path.name)
        if run == 0:
            os.truncate(file, file.stat().st_size - 5)  # killed while it wrote
        file.rename(file.with_name(f"{file.name}.run{run}"))  # started within one second here: keep their order
    expected = [(s, float(s)) for s in range(1, 5)]
    expected += [(s, 100.0 + s) for s in range(5, 10)] + [(10, 210.0), (11, 211.0)]
    assert [(event.step, event.value) for event in events_of(tmp_path).Scalars("loss")] == expected


def test_pictures_config_and_hparams(tmp_path: Path) -> None:
    board, run = TensorBoardTracker(), tracked_run(tmp_path)
    board.start(run, 1)
    board.picture(7, "crops", np.zeros((6, 4, 3), np.uint8))
    board.close("completed")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    events = events_of(tmp_path)
    (event,) = events.Images("crops")
    assert (event.step, event.height, event.width) == (7, 6, 4)
    (text,) = events.Tensors("config/text_summary")
    assert [line[4:] for line in text.tensor_proto.string_val[0].decode().splitlines()] == run.config.splitlines()
    (name,) = events.Tensors("run/text_summary")
    assert name.tensor_proto.string_val == [run.name.encode()]
    parts = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(parts).session_start_info.hparams
    assert hparams.keys() == HPARAMS.keys()
    assert hparams["masking"].string_value == "bernoulli"
    assert hparams["seed"].number_value == 3
    assert "_hparams_/session_end_info" in events.summary_metadata
