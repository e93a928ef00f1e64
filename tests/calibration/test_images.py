"""Images that are read are held against Pillow and numpy by hand, and against the image processors of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from retarget.calibration.data import open_samples
from retarget.errors import RetargetError
from retarget.preprocess import Preprocess
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.calibration.data import Samples

Pixels: TypeAlias = NDArray[np.uint8]
ANY = TensorSpec.parse("image=float32[N,3,H,W]")
GRAY = TensorSpec.parse("image=float32[N,1,H,W]")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int, width: int, *, channels: int = 3, seed: int = 0) -> Pixels:
    """Smooth shapes with some noise: what resizing keeps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * x * (c + 1) + seed) + np.cos(7 * y + c) for c in range(channels)]
    values = 127 + 50 * np.stack(waves, axis=-1) + rng.normal(0, 10, (height, width, channels))
    return np.clip(values, 0, 255).astype(np.uint8)


def save(path: Path, pixels: Pixels, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0]).convert(mode).save(path)
    return path


def opened(folder: Path, preprocess: Preprocess | None = None, spec: TensorSpec = ANY) -> Samples:
    return open_samples(folder, [spec], function=None, limit=None, preprocess=preprocess or Preprocess())


def one(folder: Path, preprocess: Preprocess | None = None, spec: TensorSpec = ANY) -> NDArray[np.float32]:
    """The only image in ``folder``."""
    (batch,) = opened(folder, preprocess, spec).batches(4)
    assert len(batch["image"]) == 1
    return cast("NDArray[np.float32]", batch["image"][0])


# ---- against others


@pytest.mark.parametrize("size", [(300, 200), (199, 333), (64, 64)])
def test_like_transformers_vit(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = picture(*size)
    save(tmp_path / "a.png", pixels)
    processor = ViTImageProcessorPil(image_mean=list(MEAN), image_std=list(STD))
    expected = np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"])[0]
    found = one(tmp_path, Preprocess(resize=(224, 224), scale="1/255", mean=MEAN, std=STD))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(300, 200), (199, 333), (250, 251)])
def test_like_transformers_clip(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = picture(*size, seed=1)
    save(tmp_path / "a.png", pixels)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 80, "width": 80})
    expected = np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"])[0]
    block = Preprocess(
        resize=96,
        interpolation="bicubic",
        crop=80,
        scale="1/255",
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )
    np.testing.assert_allclose(one(tmp_path, block), expected, rtol=0, atol=2e-6)


def test_by_hand(tmp_path: Path) -> None:
    pixels = picture(20, 30)
    save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(one(tmp_path), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(one(tmp_path, Preprocess(color="bgr")), pixels[:, :, ::-1].transpose(2, 0, 1))
    last = TensorSpec.parse("image=float32[N,H,W,3]")
    np.testing.assert_array_equal(one(tmp_path, Preprocess(layout="nhwc"), last), pixels)
    cropped = one(tmp_path, Preprocess(crop=(11, 12)))
    np.testing.assert_array_equal(cropped, pixels[4:15, 9:21].transpose(2, 0, 1))
    scaled = one(tmp_path, Preprocess(scale=0.5, mean=3.0, std=(1.0, 2.0, 4.0), color="bgr"))
    by_hand = (pixels[:, :, ::-1] * 0.5 - 3) / np.array([1, 2, 4])
    np.testing.assert_allclose(scaled, by_hand.transpose(2, 0, 1), rtol=1e-6)
    small = Image.fromarray(pixels).resize((15, 10), Image.Resampling.BOX)
    resized = one(tmp_path, Preprocess(resize=10, interpolation="box"))
    np.testing.assert_array_equal(resized, np.asarray(small).transpose(2, 0, 1))


def test_an_input_of_bytes_takes_pixels_as_they_are(tmp_path: Path) -> None:
    pixels = picture(8, 9)
    save(tmp_path / "a.png", pixels)
    spec = TensorSpec.parse("image=uint8[N,3,H,W]")
    found = one(tmp_path, Preprocess(color="bgr"), spec)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels[:, :, ::-1].transpose(2, 0, 1))
    with pytest.raises(RetargetError, match=r"takes whole numbers, and `preprocess:` has a scale, mean or std"):
        opened(tmp_path, Preprocess(scale="1/255"), spec)


# ---- kinds of files


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "PNG"])
def test_lossless_files(tmp_path: Path, suffix: str) -> None:
    pixels = np.repeat(picture(8, 9, channels=1), 3, axis=2)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(one(tmp_path), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files(tmp_path: Path, suffix: str) -> None:
    pixels = picture(64, 48)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", quality=95)
    assert np.abs(one(tmp_path) - pixels.transpose(2, 0, 1).astype(np.float32)).mean() < 8


def test_the_first_frame_of_many(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(one(tmp_path, Preprocess(color="gray"), GRAY).ravel()) == {10.0}


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    """Alpha is dropped and gray is repeated."""
    gray = np.where(picture(8, 9, channels=1) > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(gray[:, :, 0]).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.arange(72, dtype=np.uint8).reshape(8, 9)))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(one(tmp_path), np.repeat(gray, 3, axis=2).transpose(2, 0, 1))
    np.testing.assert_array_equal(one(tmp_path, Preprocess(color="gray"), GRAY), gray.transpose(2, 0, 1))


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 7, 8, 9])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(one(tmp_path)[:, 0].T, [[255, 0, 0], [0, 255, 0], [7, 8, 9]])


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    found = one(tmp_path)
    assert found[0].min() > 240
    assert found[1:].max() < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_says_which_way_is_up(tmp_path: Path, orientation: int) -> None:
    """Each orientation is written as the standard defines it: where row 0 and column 0 are seen."""
    pixels = picture(6, 4)
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(one(tmp_path), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_more_than_8_bits_are_refused(tmp_path: Path, mode: str) -> None:
    values = np.arange(12, dtype=np.uint16 if mode == "I;16" else np.float32).reshape(3, 4) * 5000
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(RetargetError, match=rf"a\.tif: has more than 8 bits a pixel \({mode}\)"):
        one(tmp_path)


def test_a_16_bit_png_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(RetargetError, match="more than 8 bits a pixel"):
        one(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "scrambled"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    save(tmp_path / "0.png", picture(40, 40))
    path = save(tmp_path / f"1.{suffix}", picture(40, 40))
    whole = path.read_bytes()
    scrambled = bytes(255 - byte if 8 < i < len(whole) // 2 else byte for i, byte in enumerate(whole))
    path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2], "scrambled": scrambled}[damage])
    with pytest.raises(RetargetError, match=rf"1\.{suffix}: not a readable image") as caught:
        list(opened(tmp_path).batches(1))
    assert caught.value.hint == "replace it, or take it out of the folder"


def test_an_image_that_only_does_harm_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    with pytest.raises(RetargetError, match="decompression bomb"):
        one(tmp_path)


def test_metadata_that_cannot_be_read_do_no_harm(tmp_path: Path) -> None:
    image = Image.fromarray(picture(8, 8))
    image.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x09\x00\x12\x01\x03\x00")
    assert one(tmp_path).shape == (3, 8, 8)


# ---- sets


def test_order_and_repetition(tmp_path: Path) -> None:
    """Natural order, folders in turns, hidden files left out; again the same, and from the start."""
    for name in ("b/10", "b/9", "a/1", "a/2", "a/3", "top"):
        value = {"b/10": 1, "b/9": 2, "a/1": 3, "a/2": 4, "a/3": 5, "top": 6}[name]
        save(tmp_path / f"{name}.png", np.full((2, 2, 3), value, np.uint8))
    (tmp_path / "a" / "._1.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    samples = opened(tmp_path)
    for _ in range(2):
        assert [int(batch["image"].max()) for batch in samples.batches(1)] == [3, 2, 6, 4, 1, 5]
    assert samples.count == 6
    first = open_samples(tmp_path, [ANY], function=None, limit=2, preprocess=Preprocess())
    assert [int(batch["image"].max()) for batch in first.batches(1)] == [3, 2]
    assert first.count == 2


def test_folders_that_link_to_each_other(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", picture(2, 2))
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert opened(tmp_path).count == 1


def test_batches_are_of_one_size(tmp_path: Path) -> None:
    for index, width in enumerate((5, 5, 6, 6, 6)):
        save(tmp_path / f"{index}.png", picture(4, width))
    assert [batch["image"].shape for batch in opened(tmp_path).batches(2)] == [
        (2, 3, 4, 5),
        (2, 3, 4, 6),
        (1, 3, 4, 6),
    ]
    resized = opened(tmp_path, Preprocess(resize=(4, 4)), TensorSpec.parse("image=float32[2,3,4,4]"))
    assert [len(batch["image"]) for batch in resized.batches(None)] == [2, 2]
    assert resized.notes == ("the last 1 samples do not fill the model's batch of 2",)


def test_images_without_an_axis_of_samples(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(4, 5))
    (batch,) = opened(tmp_path, spec=TensorSpec.parse("image=float32[3,4,5]")).batches(8)
    assert batch["image"].shape == (3, 4, 5)


def test_float16_inputs(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(4, 5))
    assert one(tmp_path, Preprocess(scale="1/255"), TensorSpec.parse("image=float16[N,3,H,W]")).dtype == np.float16


# ---- what does not fit


@pytest.mark.parametrize(
    ("spec", "block", "message", "hint"),
    [
        ("float32[N,3,8,8]", {}, r"b\.png: becomes \[3, 20, 30\], and the input is image=float32\[N,3,8,8\]", "resize"),
        ("float32[N,20,30,3]", {}, r"becomes \[3, 20, 30\]", "write `layout: nhwc`"),
        ("float32[N,3,20,30]", {"layout": "nhwc"}, r"becomes \[20, 30, 3\]", "write `layout: nchw`"),
        ("float32[N,1,20,30]", {}, r"becomes \[3, 20, 30\]", "`color` in `preprocess:`"),
        ("float32[N,3,20,30]", {"color": "gray"}, r"becomes \[1, 20, 30\]", "`color` in `preprocess:`"),
        ("float32[N,3,H,W]", {"crop": 24}, r"b\.png: 30×20 pixels, and crop takes 24×24", "resize it first"),
        ("float32[N,600]", {}, r"not an input for images", "give arrays"),
    ],
)
def test_an_image_that_does_not_fit(tmp_path: Path, spec: str, block: dict[str, str], message: str, hint: str) -> None:
    save(tmp_path / "b.png", picture(20, 30))
    with pytest.raises(RetargetError, match=message) as caught:
        one(tmp_path, Preprocess(**block), TensorSpec.of("image", spec))  # type: ignore[arg-type]
    assert hint in (caught.value.hint or "")


def test_what_a_folder_of_images_needs(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "b.png", picture(4, 4))
    with pytest.raises(RetargetError, match="images need a `preprocess:` block") as caught:
        open_samples(tmp_path, [ANY], function=None, limit=None)
    assert "preprocess: {resize: 256, crop: 224, scale: 1/255, mean: [" in (caught.value.hint or "")
    with pytest.raises(RetargetError, match="images need a `preprocess:` block of their own"):
        opened(tmp_path, Preprocess(sample_rate=16000))
    with pytest.raises(RetargetError, match="a folder of images feeds one input, and the model has 2: image, scale"):
        open_samples(
            tmp_path, [ANY, TensorSpec.parse("scale=float32[]")], function=None, limit=None, preprocess=Preprocess()
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetargetError, match="no folder 'image'"):
        opened(tmp_path / "empty")


# ---- labels


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name, count in (("dog", 2), ("cat", 1), ("ape", 3)):
        for index in range(count):
            save(tmp_path / name / f"{index}.png", np.full((2, 2, 3), ord(name[0]), np.uint8))
    return tmp_path


def labelled(folder: Path, labels: str, classes: object = None) -> list[tuple[str, int]]:
    """First letter of the class that each image was drawn with, and its label."""
    samples = open_samples(
        folder,
        [ANY],
        function=None,
        limit=None,
        extra=(labels,),
        preprocess=Preprocess(),
        classes=classes,  # type: ignore[arg-type]
    )
    return [
        (chr(int(image.max())), int(label))
        for batch in samples.batches(4)
        for image, label in zip(batch["image"], batch[labels], strict=True)
    ]


def test_a_folder_a_class(classes: Path) -> None:
    found = labelled(classes, "folder")
    assert sorted(set(found)) == [("a", 0), ("c", 1), ("d", 2)]
    assert len(found) == 6
    assert set(labelled(classes, "folder", ("cat", "dog", "fox", "ape"))) == {("c", 0), ("d", 1), ("a", 3)}
    with pytest.raises(RetargetError, match=r"'cat' is none of the classes") as caught:
        labelled(classes, "folder", ("ape", "cats", "dog"))
    assert caught.value.hint == "did you mean 'cats'?"
    save(classes / "loose.png", picture(2, 2))
    with pytest.raises(RetargetError, match=r"loose\.png: is in no folder"):
        labelled(classes, "folder")


def test_folders_called_by_numbers(tmp_path: Path) -> None:
    for name in ("2", "10", "1"):
        save(tmp_path / name / "a.png", np.full((2, 2, 3), ord("a") + int(name), np.uint8))
    with pytest.raises(RetargetError, match="class folders are numbers, but not 0, 1, 2") as caught:
        labelled(tmp_path, "folder")
    assert "`classes: numbers`" in (caught.value.hint or "")
    assert set(labelled(tmp_path, "folder", "numbers")) == {("b", 1), ("c", 2), ("k", 10)}
    assert set(labelled(tmp_path, "folder", "sorted")) == {("b", 0), ("k", 1), ("c", 2)}


def test_folders_that_count_from_0_mean_the_same_either_way(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        save(tmp_path / name / "a.png", np.full((2, 2, 3), ord("a") + int(name), np.uint8))
    expected = {("a", 0), ("b", 1), ("c", 2)}
    for how in (None, "numbers", "sorted"):
        assert set(labelled(tmp_path, "folder", how)) == expected


def test_a_table_of_labels(classes: Path) -> None:
    rows = {"dog/0.png": 5, "dog/1.png": 5, "cat/0.png": 7, "ape/0.png": 1, "ape/1.png": 1, "ape/2.png": 1}
    table = classes / "labels.csv"
    table.write_text("label,file,more\n" + "".join(f"{label},{file},x\n" for file, label in rows.items()))
    assert set(labelled(classes, "labels.csv")) == {("d", 5), ("c", 7), ("a", 1)}
    table.write_text("file,label\n" + "".join(f"{file},{file[:3]}\n" for file in rows))
    assert set(labelled(classes, "labels.csv")) == {("a", 0), ("c", 1), ("d", 2)}
    assert set(labelled(classes, "labels.csv", ("cat", "ape", "dog"))) == {("c", 0), ("a", 1), ("d", 2)}
    with pytest.raises(RetargetError, match=r"class 'ape' is not a number"):
        labelled(classes, "labels.csv", "numbers")
    table.write_text("file,label\ndog/0.png,1\n")
    with pytest.raises(RetargetError, match=r"labels\.csv: no label for ape/0\.png"):
        labelled(classes, "labels.csv")
    table.write_text("name,class\n")
    with pytest.raises(RetargetError, match=r"labels\.csv: the first line is name, class"):
        labelled(classes, "labels.csv")
    table.unlink()
    with pytest.raises(RetargetError, match=r"labels\.csv: not a readable table"):
        labelled(classes, "labels.csv")


def test_labels_that_files_do_not_have(classes: Path) -> None:
    with pytest.raises(RetargetError, match="'label' says no labels of files") as caught:
        labelled(classes, "label")
    assert "`labels: folder`" in (caught.value.hint or "")
