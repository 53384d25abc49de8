"""Labels of a folder from a CSV file."""

from functools import partial

import pytest
from test_image_folder import rows, write
from test_zip_images import zipped

from options import open_source

open_folder = partial(open_source, "image_folder")

FILES = {"x/1.png": 1, "x/2.png": 2, "y/3.png": 3}


def labelled(tmp_path, text, files=None, encoding="utf-8"):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "labels.csv").write_text(text, encoding=encoding)
    return open_folder(write(tmp_path / "d", files or FILES), labels=str(tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    "text",
    [
        "x/1.png,dog\nx/2.png,cat\ny/3.png,dog\n",
        "path,label\ny/3.png,dog\nx/1.png,dog\nx/2.png,cat\n",
        "label,filename\ndog,y/3.png\ndog,x/1.png\ncat,x/2.png\n",
        "anything,something\ny/3.png,dog\nx/1.png,dog\nx/2.png,cat\n",
        "id;width;class\nx/1.png;5;dog\nx/2.png;5;cat\ny/3.png;5;dog\n",
        'x/1.png\t"dog"\n\nx/2.png\t cat \ny/3.png\tdog',
        "\ufeffpath,label\n./x/1.png,dog\nx\\2.png,cat\ny/3.png,dog\ny/3.png,dog\n",
    ],
)
def test_labels_of_paths_below_the_folder(tmp_path, text):
    source = labelled(tmp_path, text)
    assert rows(source.train()) == [1, 2, 3] and source.train().labels.tolist() == [1, 0, 1]
    assert list(source.train().classes) == ["cat", "dog"] and source.remarks == []


def test_numbers_are_in_the_order_of_their_values(tmp_path):
    source = labelled(tmp_path, "x/1.png,10\nx/2.png,9\ny/3.png,10\n")
    assert list(source.train().classes) == ["9", "10"] and source.train().labels.tolist() == [1, 0, 1]


def test_the_same_images_with_other_labels_are_another_data_set(tmp_path):
    one, other, again = (
        labelled(tmp_path / name, f"x/1.png,{name[0]}\nx/2.png,b\ny/3.png,a\n").fingerprint()
        for name in ("a1", "b1", "a2")
    )
    assert one == again != other


def test_names_with_commas_quotes_and_accents(tmp_path):
    files = {"é, ü.png": 1, 'a"b.png': 2}
    source = labelled(tmp_path, '"é, ü.png","dog, small"\n"a""b.png",cat\n', files)
    assert dict(zip(rows(source.train()), source.train().labels.tolist(), strict=True)) == {1: 1, 2: 0}


def test_labels_of_both_parts_and_of_a_zip_file(tmp_path):
    files = {"train/1.png": 1, "train/2.png": 2, "test/3.png": 3}
    source = labelled(tmp_path, "train/1.png,b\ntrain/2.png,a\ntest/3.png,b\n", files)
    assert source.train().labels.tolist() == [1, 0] and source.test().labels.tolist() == [1]
    archive = open_folder(zipped(tmp_path / "d", tmp_path / "d.zip"), labels=str(tmp_path / "labels.csv"))
    assert archive.train().labels.tolist() == [1, 0] and archive.test().labels.tolist() == [1]
    assert archive.fingerprint() != open_folder(str(tmp_path / "d.zip")).fingerprint()


def test_labels_that_are_missing_take_the_others_and_are_told(tmp_path):
    source = labelled(tmp_path, "x/1.png,dog\ny/3.png,\n")
    assert source.train().labels is None
    (remark,) = source.remarks
    assert f"labels of the train part are not used: 2 of its 3 images have none in {tmp_path}/labels.csv" in remark
    assert remark.endswith("e.g. x/2.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/1.png,dog\nx/2.png\n", "line 2: 1 columns"),
        ("x/1.png,dog\nnowhere.png,cat\n", "line 2: there is no image nowhere.png; paths are relative to data.path"),
        ("id,label\nx/1,dog\n", "line 2: there is no image x/1; .* with their extension"),
        ("path,label\n\nx/1.png,dog\ny/3.png,dog\nx/1.png,cat\n", "line 5: x/1.png is 'cat', but 'dog' in line 3"),
        ('x/1.png,dog\nx/2.png,"cat\n', "line 2: unexpected end of data"),
        ("", "is empty"),
        ("x/1.png,dog,small\n", r"which of \['x/1.png', 'dog', 'small'\] are the paths and the labels"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"^data\.labels={tmp_path}/labels.csv.*{message}"):
        labelled(tmp_path, text)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ValueError, match=r"is not in UTF-8 .*convert it"):
        labelled(tmp_path, "x/1.png,é\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"data.labels=.*nowhere.csv: No such file"):
        open_folder(str(tmp_path / "d"), labels=str(tmp_path / "nowhere.csv"))
