"""What a run says that it found, in its first lines and in run.json."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
from data_fakes import FakeImages, encoded, picture
from PIL import Image
from test_image_folder import write

from dinoswap.config.configuration import plain
from dinoswap.config.facts import build_source
from dinoswap.data.decoding import Decoding
from dinoswap.data.embedded import EmbeddedData
from dinoswap.data.held_out import HeldOut
from dinoswap.data.images import ImageSource
from dinoswap.data.inventory import counted, dim, summarise, take_inventory
from dinoswap.run.assemble import build_run
from dinoswap.run.metrics import RunRecord
from dinoswap.run.progress import logging_to
from options import build_option, open_source
from small_models import composed

open_folder = partial(open_source, "image_folder")


def inventory(path, batch_size=1, decoding=Decoding()):  # noqa: B008
    return take_inventory(open_folder(str(path), decoding=decoding), batch_size, decoding)


def test_a_folder_in_a_sentence(tmp_path):
    files = {
        f"{part}/{name}/{row}.png": row for part in ("train", "test") for name in ("cat", "dog") for row in range(3)
    }
    write(tmp_path, files)
    for name in ("a.heic", "b.heic", "c.mp4", ".DS_Store"):
        (tmp_path / "train" / name).touch()
    found = inventory(tmp_path)
    assert found.sentence() == (
        "data: 6 images of 2 classes (cat, dog) by folder; 6 test images; RGB, 8 bit (6 of 6 looked at); 8 x 6 pixels; "
        "ignored: 2 .heic, 1 .mp4, 1 hidden file"
    )
    assert json.loads(json.dumps(found.record())) == {
        "images": 6, "test_images": 6, "classes": 2, "labels": "folder", "kinds": {"RGB, 8 bit": 6},
        "ignored": {".heic": 2, ".mp4": 1, "hidden file": 1}, "remarks": [],
    }  # fmt: skip


def test_without_labels_and_test_images(tmp_path):
    write(tmp_path, {"1.png": 1})
    (tmp_path / "2.png").write_bytes(encoded(picture(2, 60, 90)))
    (tmp_path / "3.png").write_bytes(b"broken")
    assert inventory(tmp_path).sentence() == (
        "data: 3 images without labels; no test images; RGB, 8 bit (2 of 2 looked at); 8 x 6 to 90 x 60 pixels"
    )


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("1", (3, 2)), "PNG", "bilevel, 1 bit"),
        (Image.new("L", (3, 2)), "JPEG", "gray, 8 bit"),
        (Image.new("P", (3, 2)), "GIF", "palette, 8 bit"),
        (Image.new("RGBA", (3, 2)), "WEBP", "RGBA, 8 bit"),
        (Image.new("CMYK", (3, 2)), "TIFF", "CMYK, 8 bit"),
        (Image.new("I;16", (3, 2)), "PNG", "gray, 16 bit"),
        (Image.new("I;16", (3, 2)), "TIFF", "gray, 16 bit"),
        (Image.new("F", (3, 2)), "TIFF", "F, 32 bit"),
    ],
)
def test_channels_and_depth(image, kind, expected):
    summary = summarise(encoded(image, kind), "x", Decoding())
    assert (summary.kind, summary.width, summary.height) == (expected, 3, 2)


def test_colours_of_16_bits():
    import cv2  # PIL writes none

    for suffix in (".png", ".tiff"):
        _, data = cv2.imencode(suffix, np.full((2, 3, 3), 4095, dtype=np.uint16))
        summary = summarise(data.tobytes(), "x", Decoding())
        assert summary.kind == "RGB, 16 bit" and summary.used == pytest.approx(15 / 255)
        assert (
            "use 5.9 % of their range: they are nearly black; data.range_16bit=[0,4095]"
            in dim([summary], Decoding())[0]
        )
        spread = Decoding(range_16bit=(0, 4095))
        assert (
            summarise(data.tobytes(), "x", spread).used == 1.0
            and dim([summarise(data.tobytes(), "x", spread)], spread) == []
        )


def scan(path, bits, window=None):
    path.mkdir()
    rng = np.random.default_rng(0)
    for row in range(4):
        (path / f"{row}.png").write_bytes(encoded(rng.integers(0, 2**bits, (60, 60)).astype(np.uint16)))
    return inventory(path, decoding=Decoding(range_16bit=window) if window else Decoding()).remarks


def test_a_range_of_16_bits_that_is_hardly_used_is_told_with_the_key(tmp_path):
    (remark,) = scan(tmp_path / "12", 12)
    assert "4 of 4 images looked at have 16 bits and use 6.2 % of their range" in remark
    assert "data.range_16bit=[0,4095] spreads it" in remark
    assert "data.range_16bit=[0,255]" in scan(tmp_path / "8", 8)[0]
    assert scan(tmp_path / "16", 16) == [] and scan(tmp_path / "14", 14) == []
    assert scan(tmp_path / "12 spread", 12, (0, 4095)) == []


def test_more_images_a_step_than_there_are(tmp_path):
    write(tmp_path, {f"{row}.png": row for row in range(3)})
    assert inventory(tmp_path, batch_size=3).remarks == []
    assert inventory(tmp_path, batch_size=4).remarks == [
        "data.batch_size=4: more images a step than the 3 there are; each is seen more than once"
    ]


def test_of_many_images_a_few_are_looked_at_always_the_same():
    loaded = Counter()

    class Many(FakeImages):
        def load(self, row):
            loaded[row] += 1
            return super().load(row)

    class Source(ImageSource):
        def train(self):
            return Many(10_000)

        def test(self):
            return None

    for _ in range(2):
        assert len(take_inventory(Source(), 1, Decoding()).summaries) == 32
    assert len(loaded) == 32 and set(loaded.values()) == {2}


def test_a_long_list_of_what_was_ignored():
    assert counted({f".{n}": n for n in range(1, 11)}) == ("10 .10, 9 .9, 8 .8, 7 .7, 6 .6, 5 .5, 4 .4, 3 .3, 3 others")


def test_the_shipped_set():
    assert take_inventory(build_option("data/embedded"), 64, Decoding()).sentence().startswith("data: ")


def resolved(overrides):
    return plain(composed(overrides))


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_found_and_lists_what_its_evaluation_could_not_decode(tmp_path, capsys):
    write(
        tmp_path / "d",
        {f"{part}/{name}/{row}.png": row for part in ("train", "test") for name in "ab" for row in range(4)},
    )
    (tmp_path / "d/test/a/broken.png").write_bytes(b"no picture")
    (tmp_path / "d/train/a/a.heic").touch()
    (tmp_path / "d/train/preview.png").write_bytes(encoded(picture(1)))
    config = resolved([
        "recipe=smoke", "trainer.precision=fp32", "trainer.device=cpu", "tracker=none",
        "trainer.max_steps=1", "trainer.eval_every=0",
        "data=image_folder", f"data.path={tmp_path}/d", "data.workers=0", "data.batch_size=4",
        "data.max_corrupt_fraction=0.1",
    ])  # fmt: skip
    record = RunRecord(tmp_path / "run/run.json", "id", "single", 0, {}, [])
    run = build_run(config, tmp_path / "run", lambda: record)
    with logging_to(tmp_path / "run/log.txt"):
        run.train()
    first, second, *_ = (tmp_path / "run/log.txt").read_text().splitlines()
    assert "INFO data: 9 images without labels" in first and "ignored: 1 .heic" in first
    assert "WARNING data: labels of the train part are not used" in second and "train/preview.png" in second
    written = json.loads((tmp_path / "run/run.json").read_text())["data"]
    assert written["images"] == written["test_images"] == 9 and written["ignored"] == {".heic": 1}
    listed = (tmp_path / "run/corrupt.txt").read_text()
    assert listed == f"{tmp_path}/d/test/a/broken.png\tnot an image in a format that PIL decodes\n"


def test_the_builder_holds_test_images_out_where_the_source_does_not(tmp_path):
    write(tmp_path, {f"{name}/{row}.png": row for name in "ab" for row in range(10)})
    chosen = ["data=image_folder", f"data.path={tmp_path}"]
    assert build_source(resolved(chosen)).test() is None
    source = build_source(resolved([*chosen, "data.test_fraction=0.2", "data.range_16bit=[0,4095]"]))
    assert isinstance(source, HeldOut) and len(source.test()) == 4 and len(source.train()) == 16
    assert source.test().images.decoding.range_16bit == (0, 4095)
    assert take_inventory(source, 1, Decoding()).record()["test_images"] == 4
    embedded = build_source(resolved(["data=embedded"]))
    assert isinstance(embedded, EmbeddedData) and len(embedded.train()) == len(
        build_option("data/embedded", test_fraction=0.25).train()
    )
