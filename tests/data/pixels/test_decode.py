import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from unfreeze.data.pixels.corrupt import Shift
from unfreeze.data.pixels.decode import (
    ImageArray,
    Squares,
    cached,
    decode_files,
    decode_sequence,
    make_array,
    square,
)
from unfreeze.data.pixels.files import fingerprint, list_files
from unfreeze.data.pixels.reading import NOTHING_SEEN, check_bad_files
from unfreeze.errors import DataError


def photo(width: int = 24, height: int = 16) -> Image.Image:
    """Smooth colours, so that lossy formats stay close."""
    down, right = np.mgrid[0:height, 0:width]
    channels = [255 * right / width, 255 * down / height, np.full((height, width), 80.0)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_one(folder: Path, content: bytes, *, size: int = 16, name: str = "a.img") -> np.ndarray:
    (folder / name).write_bytes(content)
    return decode_files(folder, [name], [0], Squares(size)).images[0]


EXPECTED = np.asarray(photo().crop((4, 0, 20, 16)))


@pytest.mark.parametrize(
    ("content", "tolerance"),
    [
        (encoded(photo(), "PNG"), 0),
        (encoded(photo(), "BMP"), 0),
        (encoded(photo(), "TIFF", compression="tiff_lzw"), 0),
        (encoded(photo(), "WEBP", lossless=True), 0),
        (encoded(photo(), "JPEG", quality=95), 12),
        (encoded(photo().convert("CMYK"), "JPEG", quality=95), 12),
        (encoded(photo().convert("CMYK"), "TIFF"), 2),
        (encoded(photo().convert("RGBA"), "PNG"), 0),
        (encoded(photo().quantize(256), "PNG"), 40),
        (encoded(photo(), "GIF"), 40),
    ],
    ids=["png", "bmp", "tiff", "webp", "jpeg", "cmyk-jpeg", "cmyk-tiff", "rgba", "palette", "gif"],
)
def test_formats_decode_to_the_same_picture(tmp_path: Path, content: bytes, tolerance: int) -> None:
    pixels = decode_one(tmp_path, content)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - EXPECTED).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_images_become_three_equal_channels(tmp_path: Path, mode: str) -> None:
    pixels = decode_one(tmp_path, encoded(photo().convert(mode), "PNG"))
    assert (pixels == pixels[..., :1]).all()
    assert pixels.std() > 10


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_greys(tmp_path: Path, kind: str) -> None:
    deep = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    pixels = decode_one(tmp_path, encoded(Image.fromarray(deep), kind))
    assert np.abs(pixels[..., 0].astype(int) - (deep >> 8)).max() <= 1


def test_sixteen_bits_decode(tmp_path: Path) -> None:
    deep = np.zeros((16, 16), np.uint16)
    assert decode_one(tmp_path, encoded(Image.fromarray(deep), "PNG")).shape == (16, 16, 3)


def test_a_palette_with_transparency_decodes_quietly(tmp_path: Path) -> None:
    content = encoded(photo().quantize(4), "PNG", transparency=bytes([0, 128, 255, 255]))
    assert decode_one(tmp_path, content).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode_one(tmp_path, content) == [255, 0, 0]).all()


def test_floats_and_thirty_two_bits_decode(tmp_path: Path) -> None:
    for mode in ("I", "F"):
        pixels = decode_one(tmp_path, encoded(photo().convert(mode), "TIFF"))
        assert np.abs(pixels[..., 0].astype(int) - np.asarray(photo().convert("L").crop((4, 0, 20, 16)))).max() <= 1


@pytest.mark.parametrize(("most", "white"), [(1.0, 1.0), (1.004, 1.0), (254.6, 255.0), (65535.0, 65535.0)])
def test_floats_are_scaled_by_what_they_hold(tmp_path: Path, most: float, white: float) -> None:
    """Resampling adds a little to white, which must not make grey levels of 0 … 1 ones of 0 … 255: black all over."""
    ramp = np.tile(np.linspace(0, most, 16, dtype=np.float32), (16, 1))
    pixels = decode_one(tmp_path, encoded(Image.fromarray(ramp), "TIFF"))
    assert np.abs(pixels[..., 0] - np.minimum(ramp / white * 255, 255)).max() <= 0.5


@pytest.mark.parametrize("most", [1.5, 3.0, 12.0])
def test_floats_of_no_usual_range_are_refused(tmp_path: Path, most: float) -> None:
    ramp = np.tile(np.linspace(0, most, 16, dtype=np.float32), (16, 1))
    with pytest.raises(DataError, match=rf"values up to {most:g}, which is neither 0 … 1 nor 0 … 255; rescale"):
        decode_one(tmp_path, encoded(Image.fromarray(ramp), "TIFF"))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 7), (7, 1), (3, 2)])
def test_the_smallest_images_decode(tmp_path: Path, width: int, height: int) -> None:
    content = encoded(Image.new("RGB", (width, height), (10, 20, 30)), "PNG")
    pixels = decode_one(tmp_path, content, size=8)
    assert pixels.shape == (min(width, height), min(width, height), 3)
    assert (pixels == [10, 20, 30]).all()


def test_short_side_is_resized_and_the_centre_kept() -> None:
    wide = Image.new("RGB", (80, 20), "red")
    wide.paste("blue", (30, 0, 50, 20))
    assert (square(wide, 20) == [0, 0, 255]).all()
    assert square(wide, 10).shape == (10, 10, 3)
    assert (square(wide, 10)[:, 2:-2] == [0, 0, 255]).all()
    assert (square(wide.rotate(90, expand=True), 20) == [0, 0, 255]).all()
    assert (square(wide, 40)[:, 4:-4] == [0, 0, 255]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited the Linux way")
def test_a_long_strip_takes_no_more_memory_than_its_square() -> None:
    script = (
        "import resource; from pathlib import Path; from PIL import Image\n"
        "from unfreeze.data.pixels.decode import square\n"
        "limit = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize() + 2**27\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "assert square(Image.new('RGB', (1, 4_000)), 256).shape == (256, 256, 3)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_small_images_are_stored_small(tmp_path: Path) -> None:
    for name, size in (("a", (8, 30)), ("b", (12, 12)), ("c", (10, 9))):
        (tmp_path / name).write_bytes(encoded(photo(*size), "PNG"))
    assert decode_files(tmp_path, ["a", "b", "c"], [0, 1, 0], Squares(256)).images.shape == (3, 12, 12, 3)
    assert decode_files(tmp_path, ["a", "b", "c"], [0, 1, 0], Squares(10)).images.shape == (3, 10, 10, 3)


def test_squares_are_resized_as_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photo(60, 40), "PNG"))
    for kind in ("bicubic", "bilinear"):
        (pixels,) = decode_files(tmp_path, ["a.png"], [0], Squares(16, kind)).images
        expected = photo(60, 40).resize((16, 16), Image.Resampling[kind.upper()], box=(10, 0, 50, 40))
        assert np.array_equal(pixels, np.asarray(expected))


def test_a_sequence_is_stored_as_files_are(tmp_path: Path) -> None:
    """Also where the sides differ: all smaller than asked for, some, none; each image held on its own."""
    pictures = [photo(*size) for size in ((8, 30), (12, 12), (40, 20))]
    for index, picture in enumerate(pictures):
        (tmp_path / f"{index}").write_bytes(encoded(picture, "PNG"))
    shift = Shift("gaussian_noise", 2, 0)
    for size in (6, 10, 64):
        squares = Squares(size, "bilinear", shift)
        array = decode_sequence([(picture, index) for index, picture in enumerate(pictures)], squares)
        files = decode_files(tmp_path, ["0", "1", "2"], [0, 1, 2], squares)
        assert array.digest == files.digest


PNG, JPEG = encoded(photo(), "PNG"), encoded(photo(200, 200), "JPEG")
BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "html": b"<html><body>404</body></html>" * 50,
    "zeros": bytes(2000),
    "cut_png": PNG[: len(PNG) // 2],
    "cut_jpeg": JPEG[: len(JPEG) // 2],
    "header_only": JPEG[:30],
    "flipped_png": PNG[:60] + bytes(byte ^ 255 for byte in PNG[60:90]) + PNG[90:],
    "cut_gif": encoded(photo(), "GIF")[:200],
    "cut_webp": encoded(photo(), "WEBP")[:60],
    "cut_bmp": encoded(photo(), "BMP")[:200],
    "cut_tiff": encoded(photo(), "TIFF")[:40],
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow on the cut TIFF
@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_file_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    (tmp_path / name).write_bytes(BROKEN[name])
    array = decode_files(tmp_path, ["good.png", name], [4, 5], Squares(16))
    assert array.bad_files == (name,)
    assert array.labels.tolist() == [4]
    assert len(array) == len(array.images) == 1
    with pytest.raises(DataError, match=f"1 of 2 files below {tmp_path} cannot be read.*: {name};"):
        check_bad_files(array, tmp_path, max_bad_share=0.49)
    check_bad_files(array, tmp_path, max_bad_share=0.5)


def test_other_formats_are_not_opened_whatever_the_name_says(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "EPS"))  # Pillow would start Ghostscript
    assert decode_files(tmp_path, ["good.png", "a.jpg"], [0, 0], Squares(16)).bad_files == ("a.jpg",)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF decoder")
def test_a_damaged_avif_file_is_left_out(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (64, 64), "red"), "AVIF")
    (tmp_path / "a.avif").write_bytes(content[:-10] + bytes(byte ^ 255 for byte in content[-10:]))
    (tmp_path / "good.png").write_bytes(PNG)
    assert decode_files(tmp_path, ["good.png", "a.avif"], [0, 0], Squares(16)).bad_files == ("a.avif",)


def test_many_unreadable_files_are_named_up_to_ten(tmp_path: Path) -> None:
    names = [f"{index:02d}.png" for index in range(13)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 13") as caught:
        decode_files(tmp_path, names, [0] * 13, Squares(16))
    assert "09.png and 3 more" in str(caught.value)


def test_nothing_to_decode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        decode_files(tmp_path, [], [], Squares(16))


def test_the_digest_tells_images_and_labels() -> None:
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1])
    other = images.copy()
    other[1, 0, 0, 0] = 1
    digests = [make_array(*pair).digest for pair in ((images, labels), (images, labels[::-1]), (other, labels))]
    assert len(set(digests)) == 3
    assert make_array(images.copy(), labels.astype(np.int32)).digest == digests[0]


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/.hidden", ".git/x", "a.png", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_files(tmp_path) == ["a.png", "b/2.png"]


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "1.png").write_bytes(b"")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "train").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "tree")
    (tmp_path / "real" / "self").symlink_to(tmp_path / "real")
    (tmp_path / "tree" / "again").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "tree" / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "tree" / "ring").symlink_to(tmp_path / "tree" / "ring")
    expected = ["again/1.png", "nowhere", "ring", "train/deep/1.png"]
    assert list_files(tmp_path / "tree") == expected
    (tmp_path / "door").symlink_to(tmp_path / "tree")
    assert list_files(tmp_path / "door") == expected


def test_a_fingerprint_tells_a_changed_tree(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before = fingerprint(tmp_path, ["a"])
    assert fingerprint(tmp_path, ["a"]) == before
    (tmp_path / "a").write_bytes(b"2")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert fingerprint(tmp_path, ["a"]) != before


class Counter:
    def __init__(self, value: int = 7) -> None:
        self.calls, self.value = 0, value

    def __call__(self) -> ImageArray:
        self.calls += 1
        return make_array(
            np.full((2, 4, 4, 3), self.value, np.uint8),
            np.array([1, 0]),
            seen=replace(NOTHING_SEEN, bad_files=("bad.png",)),
        )


def test_the_cache_is_built_once_and_gives_the_same(tmp_path: Path) -> None:
    build = Counter()
    first = cached(tmp_path, {"set": "x"}, build)
    again = cached(tmp_path, {"set": "x"}, build)
    assert build.calls == 1
    assert isinstance(again.images, np.memmap)
    for array in (first, again):
        assert np.array_equal(array.images, build().images)
        assert array.labels.tolist() == [1, 0]
        assert array.digest == build().digest
        assert array.bad_files == ("bad.png",)


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    assert cached(tmp_path, {"size": 1}, Counter(1)).images[0, 0, 0, 0] == 1
    assert cached(tmp_path, {"size": 2}, Counter(2)).images[0, 0, 0, 0] == 2
    assert cached(tmp_path, {"size": 1}, Counter(3)).images[0, 0, 0, 0] == 1


def test_a_failing_build_leaves_no_entry(tmp_path: Path) -> None:
    def fail() -> ImageArray:
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        cached(tmp_path, {"set": "x"}, fail)
    assert cached(tmp_path, {"set": "x"}, Counter(5)).images[0, 0, 0, 0] == 5


def test_two_builds_at_once_both_succeed(tmp_path: Path) -> None:
    inner, outer = Counter(), Counter()

    def build_while_another_finishes() -> ImageArray:
        cached(tmp_path, {"set": "x"}, inner)
        return outer()

    array = cached(tmp_path, {"set": "x"}, build_while_another_finishes)
    assert (inner.calls, outer.calls) == (1, 1)
    assert np.array_equal(array.images, inner().images)
    assert [path.name for path in (tmp_path / "decoded").iterdir() if path.name.startswith(".tmp")] == []
