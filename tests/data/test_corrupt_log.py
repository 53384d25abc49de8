import pytest
from data_fakes import FakeImages

from dinoswap import distributed
from dinoswap.data.corrupt import CorruptLog, TooManyCorrupt


def test_lists_each_image_once_in_the_order_found(tmp_path):
    log = CorruptLog(tmp_path, FakeImages(100), 0.1)
    log.add([])
    assert not (tmp_path / "corrupt.txt").exists()
    log.add([(5, "first\nreason"), (2, "other\treason")])
    log.add([(2, "other\treason"), (9, "third"), (9, "third")])
    assert (tmp_path / "corrupt.txt").read_text() == "image 5\tfirst reason\nimage 2\tother reason\nimage 9\tthird\n"
    assert [p.name for p in tmp_path.iterdir()] == ["corrupt.txt"]


def test_resuming_neither_repeats_nor_forgets(tmp_path):
    CorruptLog(tmp_path, FakeImages(100), 0.02).add([(5, "a"), (2, "b")])
    before = (tmp_path / "corrupt.txt").read_bytes()
    resumed = CorruptLog(tmp_path, FakeImages(100), 0.02)
    resumed.add([(2, "b")])
    assert (tmp_path / "corrupt.txt").read_bytes() == before
    with pytest.raises(TooManyCorrupt, match="3 of 100"):
        resumed.add([(7, "c")])


def test_beyond_the_budget_the_run_stops_with_the_list_and_stays_stopped(tmp_path):
    log = CorruptLog(tmp_path, FakeImages(1000), 0.024)
    log.add([(row, f"bad {row}") for row in range(24)])
    with pytest.raises(TooManyCorrupt) as caught:
        log.add([(24, "bad 24")])
    message = str(caught.value)
    assert "25 of 1000" in message and "max_corrupt_fraction" in message and "(24)" in message
    assert "image 0: bad 0\n" in message and "and 5 more" in message
    assert len((tmp_path / "corrupt.txt").read_text().splitlines()) == 25
    with pytest.raises(TooManyCorrupt):  # the same command again, nothing new found
        CorruptLog(tmp_path, FakeImages(1000), 0.024).add([(3, "bad 3")])


def test_ranks_have_files_of_their_own_and_one_budget(tmp_path, monkeypatch):
    first = CorruptLog(tmp_path, FakeImages(100), 0.02)
    monkeypatch.setattr("dinoswap.data.corrupt.rank", lambda: 1)
    second = CorruptLog(tmp_path, FakeImages(100), 0.02)
    first.add([(0, "a")])
    second.add([(0, "a"), (1, "b")])
    assert (tmp_path / "corrupt.txt").read_text() == "image 0\ta\n"
    assert (tmp_path / "corrupt.rank1.txt").read_text() == "image 0\ta\nimage 1\tb\n"
    with pytest.raises(TooManyCorrupt, match="3 of 100"):
        first.add([(2, "c")])
    assert distributed.rank() == 0


def test_what_evaluations_meet_is_listed_and_counts(tmp_path):
    log = CorruptLog(tmp_path, FakeImages(100), 0.02, others=50)
    log.note({"test image 1": "bad\n1", "test image 2": "", "test image 3": "bad"})  # 3 of 150: as many as may be
    log.note({})
    assert (tmp_path / "corrupt.txt").read_text() == "test image 1\tbad 1\ntest image 2\t\ntest image 3\tbad\n"
    log.note({f"test image {row}": "bad" for row in range(1, 5)})  # too many, but no step depends on an evaluation
    with pytest.raises(TooManyCorrupt, match="5 of 150"):
        log.add([(0, "bad")])


def test_a_list_that_somebody_has_edited(tmp_path):
    (tmp_path / "corrupt.txt").write_bytes(b"no tab\n\n\ttab first\nimage 5\ta\tb\n\xff\xfe\treason\n")
    log = CorruptLog(tmp_path, FakeImages(100), 0.05)
    log.add([(5, "again"), (6, "new")])
    lines = (tmp_path / "corrupt.txt").read_text().splitlines()
    assert lines == ["no tab\t", "image 5\tagain", "\ufffd\ufffd\treason", "image 6\tnew"]


class OddlyNamed(FakeImages):
    def name(self, row: int) -> str:
        return f"caf\udce9 \u2028 {row}"  # a file name that is not UTF-8, with a line separator


def test_names_that_are_no_text(tmp_path):
    for _ in range(2):
        CorruptLog(tmp_path, OddlyNamed(10), 0.5).add([(1, "")])
    assert (tmp_path / "corrupt.txt").read_bytes() == b"caf\\udce9 1\t\n"


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_refusals(tmp_path, fraction):
    with pytest.raises(ValueError, match=r"data.max_corrupt_fraction"):
        CorruptLog(tmp_path, FakeImages(10), fraction)
