"""tools/aggregate.py and tools/example_analysis.py, as a user calls them."""

import io
from pathlib import Path

import pandas as pd
import pytest

from dinoswap.studies.csv_text import as_csv
from dinoswap.studies.runs import load_curves, load_runs
from fake_runs import write_run
from small_models import load_tool


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two arms of three seeds; `block` reaches 55 % at step 2, `bernoulli` at step 4 and not with seed 2."""
    for arm, (name, ahead) in enumerate({"block": 10, "bernoulli": 5}.items()):
        for seed in range(3):
            accuracies = [45 + ahead * step / 2 - (seed if name == "bernoulli" else 0) for step in range(5)]
            write_run(
                tmp_path / "runs" / "mine" / f"arm{arm}" / f"seed{seed}",
                lines=[*(f'{{"step": {step}, "eval/knn_top1": {a}}}' for step, a in enumerate(accuracies)), ""],
                run_id=f"arm{arm}", seed=seed, metrics={"eval/knn_top1": accuracies[-1]},
                overrides=["recipe=smoke", f"masking={name}", f"seed={seed}"],
            )  # fmt: skip
    (tmp_path / "runs" / "mine" / "arm2" / "seed0").mkdir(parents=True)
    return tmp_path / "runs"


def test_the_tables_are_the_frames(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_tool("aggregate").main([str(runs), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"6 runs in {runs}\n  mine: 2 configurations, 6 runs: 6 completed\npassed over: 1\n" in said
    assert f"{runs / 'mine' / 'arm2' / 'seed0'}: empty" in said
    for name, expected in (("runs", load_runs(runs)), ("curves", load_curves(runs))):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / f"{name}.parquet"), expected)
        csv = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        assert list(csv) == list(expected)
        assert len(csv) == len(expected)
        for column in csv.select_dtypes("float64").dropna(axis=1):
            assert csv[column].tolist() == expected[column].tolist()


TEXTS = [
    *(
        "12345678e9",
        "0012345678",
        "1.5",
        "null",
        "NA",
        "None",
        "nan",
        "true",
        "inf",
        "0x1F",
        "=cmd|' /C calc'!A1",
        "=1+1",
    ),
    *("@SUM(1)", "+1", "-1", "\t=1", "'quoted", "'", "plain", "a=b", "2024_05_01", 'a "b", c', "two\nlines"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_in_csv_is_text_again(text: str) -> None:
    """Read by pandas without being told types, alone in its column and beside others; no cell is a formula."""
    for rows in ([text], [text, "0012345678"], [text, None]):
        frame = pd.DataFrame({"run_id": pd.Series(rows, dtype="string"), "seed": range(len(rows)), "value": 0.5})
        written = as_csv(frame)
        again = pd.read_csv(io.StringIO(written))
        assert [value.removeprefix("'") for value in again["run_id"].dropna()] == [value for value in rows if value]
        assert again["seed"].tolist() == list(range(len(rows)))
        assert not any(line.lstrip('"')[:1] in "=+-@\t" for line in written.splitlines()[1:] if line)
    assert as_csv(frame).startswith("run_id,seed,value\n")


def test_csv_of_cells_that_are_no_text() -> None:
    """As those of a search's trials: lists, None and text in one column stand, and only the text is marked."""
    frame = pd.DataFrame({"attribute": [["=1"], None, "=1", 0.5, {"a": 1}], "number": [1, 2, 3, 4, 5]})
    again = pd.read_csv(io.StringIO(as_csv(frame)))
    assert again["attribute"].fillna("").tolist() == ["['=1']", "", "'=1", "0.5", "{'a': 1}"]
    assert again["number"].tolist() == [1, 2, 3, 4, 5]


def test_ids_that_look_like_numbers(tmp_path: Path) -> None:
    """In the tables of both kinds, and in the frame."""
    wanted = ["0012345678", "12345678e9"]
    for run_id in wanted:
        write_run(tmp_path / "runs" / "single" / run_id / "seed0", run_id=run_id, study="single")
    assert load_tool("aggregate").main([str(tmp_path / "runs"), "-o", str(tmp_path)]) == 0
    assert load_runs(tmp_path / "runs")["run_id"].tolist() == wanted
    for name in ("runs", "curves"):
        assert pd.read_csv(tmp_path / f"{name}.csv")["run_id"].str.removeprefix("'").tolist() == wanted
        assert pd.read_parquet(tmp_path / f"{name}.parquet")["run_id"].tolist() == wanted


def test_parts_of_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aggregate = load_tool("aggregate").main
    assert aggregate([str(runs), "--names", "loss"]) == 0
    assert len(pd.read_csv(runs / "curves.csv")) == 0
    (runs / "curves.csv").unlink()
    (runs / ".runs.parquet").unlink()
    assert aggregate([str(runs), "--no-curves", "--no-cache"]) == 0
    assert sorted(path.name for path in runs.iterdir()) == ["curves.parquet", "mine", "runs.csv", "runs.parquet"]
    assert aggregate([str(runs / "mine" / "arm2")]) == 1
    assert aggregate([str(runs / "nowhere")]) == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_the_example(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: block ends at 65, 65, 65 and reaches 55 at step 2; bernoulli at 55, 54, 53, the first one at step 4."""
    monkeypatch.setattr("sys.argv", ["example_analysis.py", str(runs / "mine"), "--accuracy", "55"])
    load_tool("example_analysis").main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["masking=block", "3", "65.0", "0.0", "0.0", "3", "2.0", "50.5"]
    assert lines[3].split() == ["masking=bernoulli", "3", "54.0", "1.0", "-11.0", "1", "4.0", "50.5"]
