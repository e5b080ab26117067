import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubebooth_trainer.prepare.decoder import Decoded, Decoder, Verdict
from kubebooth_trainer.prepare.render import file_box
from kubebooth_trainer.prepare.shapes import Shape, cut_of
from PIL import Image, ImageOps

from tests.unit.worker.corpus import (
    EDGE,
    Case,
    bad,
    encoded,
    exif,
    good,
    picture,
    sparse_png,
)

SQUARE = (Shape(EDGE, EDGE),)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    with Decoder(scratch=tmp_path_factory.mktemp("decoder")) as one:
        yield one


def decode(
    decoder: Decoder, data: bytes, folder: Path, *, edge: int = EDGE, min_edge: int = 32
) -> tuple[Decoded | Verdict, Path]:
    source, target = folder / "source", folder / "target.png"
    source.write_bytes(data)
    shapes = (Shape(edge, edge),)
    return decoder.decode(source, target, shapes=shapes, min_edge=min_edge), target


@pytest.mark.parametrize("case", list(bad()), ids=lambda case: case.name)
def test_a_bad_file_is_refused_with_its_reason(
    decoder: Decoder, case: Case, tmp_path: Path
) -> None:
    made, target = decode(decoder, case.data, tmp_path)
    assert isinstance(made, Verdict)
    assert case.says is not None
    assert case.says in made.reason
    assert made.reason.split()[0] in {"is", "has", "claims"}
    assert not target.exists()


@pytest.mark.parametrize("case", list(good()), ids=lambda case: case.name)
def test_an_odd_picture_becomes_a_plain_square(
    decoder: Decoder, case: Case, tmp_path: Path
) -> None:
    made, target = decode(decoder, case.data, tmp_path)
    assert isinstance(made, Decoded), made
    assert (made.width, made.height) == (96, 80)
    with Image.open(target) as square:
        assert (square.mode, square.size, square.format) == ("RGB", (EDGE, EDGE), "PNG")
        assert set(square.info) == set()
        assert len(square.getcolors(EDGE * EDGE) or ()) > 1


def test_the_corpus_is_large_enough() -> None:
    assert len(list(bad())) >= 40
    assert len(list(good())) >= 30


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(97, 64), (64, 97), (98, 64), (64, 64)])
def test_a_turned_picture_is_cropped_like_the_upright_one(
    decoder: Decoder, orientation: int, size: tuple[int, int], tmp_path: Path
) -> None:
    data = encoded(picture(3, size=size), "PNG", exif=exif(orientation))
    made, target = decode(decoder, data, tmp_path)
    assert isinstance(made, Decoded)
    source = tmp_path / "source"
    with Image.open(source) as stored, Image.open(target) as square:
        upright = ImageOps.exif_transpose(stored)
        left, top = (upright.width - 64) // 2, (upright.height - 64) // 2
        expected = upright.crop((left, top, left + 64, top + 64))
        assert square.tobytes() == expected.tobytes()


@pytest.mark.parametrize("width", [200, 201, 511, 512, 513, 638, 1023, 5999])
@pytest.mark.parametrize("height", [200, 333, 512, 1000])
def test_the_centre_square_has_no_edge_outside_the_picture(width: int, height: int) -> None:
    for turn in range(1, 9):
        upright = (width, height) if turn > 4 else (height, width)
        cut = cut_of(*upright, (Shape(64, 64),))
        left, top, right, bottom = file_box(cut, width, height, turn=turn)
        assert right - left == bottom - top == min(width, height)
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height


def test_white_stays_white_up_to_the_last_pixel(decoder: Decoder, tmp_path: Path) -> None:
    for edge in (64, 65, 127):
        data = encoded(Image.new("RGB", (201, 333), "white"), "PNG")
        _, target = decode(decoder, data, tmp_path, edge=edge)
        with Image.open(target) as square:
            assert square.getextrema() == ((255, 255), (255, 255), (255, 255))


def test_clear_pixels_become_white(decoder: Decoder, tmp_path: Path) -> None:
    clear = Image.new("RGBA", (80, 80), (9, 9, 9, 0))
    for image in (clear, clear.convert("LA"), clear.quantize(4)):
        _, target = decode(decoder, encoded(image, "PNG"), tmp_path)
        with Image.open(target) as square:
            assert square.getextrema() == ((255, 255), (255, 255), (255, 255))


def test_deep_grey_is_scaled_and_not_clipped(decoder: Decoder, tmp_path: Path) -> None:
    cases = {case.name: case.data for case in good()}
    pixels = set()
    for name in ("deep grey.png", "deep grey big-endian.tif", "float.tif"):
        made, target = decode(decoder, cases[name], tmp_path)
        assert isinstance(made, Decoded)
        pixels.add(made.pixels)
        with Image.open(target) as square:
            low, high = square.convert("L").getextrema()
            assert 20 < low < 50  # type: ignore[operator]
            assert 200 < high < 240  # type: ignore[operator]
    assert len(pixels) == 1


def test_a_cmyk_picture_keeps_its_colours(decoder: Decoder, tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (80, 80), (200, 60, 30)).convert("CMYK"), "JPEG", quality=95)
    _, target = decode(decoder, data, tmp_path)
    with Image.open(target) as square:
        found = square.getpixel((5, 5))
    assert isinstance(found, tuple)
    assert all(abs(a - b) < 12 for a, b in zip(found, (200, 60, 30), strict=True))


def test_equal_files_give_equal_bytes(decoder: Decoder, tmp_path: Path) -> None:
    data = encoded(picture(5), "JPEG")
    first, target = decode(decoder, data, tmp_path)
    before = target.read_bytes()
    with Decoder(scratch=tmp_path) as other:
        second, target = decode(other, data, tmp_path)
    assert first == second
    assert target.read_bytes() == before


def test_a_hundred_megapixels_are_decoded_within_the_limit(
    decoder: Decoder, tmp_path: Path
) -> None:
    made, _ = decode(decoder, sparse_png(10_000), tmp_path)
    assert isinstance(made, Decoded)
    more, _ = decode(decoder, sparse_png(10_001), tmp_path)
    assert isinstance(more, Verdict)
    assert "claims" in more.reason


def test_a_picture_that_needs_too_much_memory_is_refused_and_the_next_is_taken(
    tmp_path: Path,
) -> None:
    with Decoder(scratch=tmp_path, memory_mib=400) as small:
        greedy, _ = decode(small, sparse_png(10_000), tmp_path)
        assert isinstance(greedy, Verdict)
        assert "too much memory" in greedy.reason
        modest, _ = decode(small, encoded(picture(), "PNG"), tmp_path)
        assert isinstance(modest, Decoded)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, "needs more memory than this worker has; scale it down"),
        (signal.SIGSEGV, "crashes the decoder (signal 11); export it again as JPEG or PNG"),
        (signal.SIGXCPU, "takes more than 30 s of CPU to decode; export it again as JPEG or PNG"),
    ],
)
def test_a_decoder_that_dies_is_replaced(tmp_path: Path, number: signal.Signals, says: str) -> None:
    with Decoder(scratch=tmp_path) as one:
        decode(one, encoded(picture(), "PNG"), tmp_path)
        hanging = tmp_path / "hanging"
        os.mkfifo(hanging)
        children = _children()
        assert len(children) == 1
        killer = threading.Timer(0.3, os.kill, (children[0], number))
        killer.start()
        dead = one.decode(hanging, tmp_path / "x.png", shapes=SQUARE, min_edge=1)
        killer.join()
        assert dead == Verdict(says)
        made, _ = decode(one, encoded(picture(), "PNG"), tmp_path)
        assert isinstance(made, Decoded)
    assert _children() == []


def test_a_picture_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    with Decoder(scratch=tmp_path, wall_limit_s=0.3) as one:
        hanging = tmp_path / "hanging"
        os.mkfifo(hanging)
        late = one.decode(hanging, tmp_path / "x.png", shapes=SQUARE, min_edge=1)
        assert isinstance(late, Verdict)
        assert "takes more than 0.3 s" in late.reason
    assert _children() == []


def test_the_decoder_sees_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    with Decoder(scratch=tmp_path) as one:
        decode(one, encoded(picture(), "PNG"), tmp_path)
        environment = Path(f"/proc/{_children()[0]}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"very secret" not in environment


def _children() -> list[int]:
    """Decoder children of this process that are alive, but not the module's shared one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent[1]) == os.getpid() and parent[0] != "Z" and b"prepare.child" in command:
            found.append(int(entry.name))
    return sorted(set(found) - _SHARED)


_SHARED: set[int] = set()


@pytest.fixture(scope="module", autouse=True)
def _know_the_shared_child(
    decoder: Decoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    decode(decoder, encoded(picture(), "PNG"), tmp_path_factory.mktemp("first"))
    _SHARED.update(_children())
    yield
    _SHARED.clear()
