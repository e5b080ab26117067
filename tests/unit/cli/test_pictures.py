"""What may be uploaded is decided on this machine, and every refusal names file and cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubebooth_cli.errors import CliError
from kubebooth_cli.pictures import select

JPEG = b"\xff\xd8\xff\xe0" + bytes(20)


def _write(folder: Path, name: str, data: bytes = JPEG) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_folders_keep_their_inner_names_and_files_their_own(tmp_path: Path) -> None:
    _write(tmp_path, "dog/a.jpg")
    _write(tmp_path, "dog/garden/b.JPG")
    single = _write(tmp_path, "c.jpeg")
    selection = select([tmp_path / "dog", single], skip_others=False)
    assert [file.name for file in selection.files] == ["a.jpg", "c.jpeg", "garden/b.JPG"]
    assert selection.size_bytes == 3 * len(JPEG)


def test_hidden_files_and_litter_are_left_out(tmp_path: Path) -> None:
    for name in (
        "a.jpg",
        ".DS_Store",
        "._a.jpg",
        "Thumbs.db",
        "a.jpg~",
        "__MACOSX/a.jpg",
        ".git/x",
    ):
        _write(tmp_path, name)
    assert [file.name for file in select([tmp_path], skip_others=False).files] == ["a.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.heic", JPEG, "export it as JPEG or PNG"),
        ("a.zip", b"PK", "unpack it"),
        ("a.mp4", b"x", "--skip-others"),
        ("a.jpg", b"", "is empty"),
        ("a.jpg", b"<html>", "no picture inside"),
        ("a.txt", b"\xff\xfe\x00", "save the caption as UTF-8"),
        ("a.txt", b"x" * 20_000, "too many for a caption"),
        ("a\nb.jpg", JPEG, "no store takes"),
        ("a\\b.jpg", JPEG, "no store takes"),
    ],
)
def test_a_bad_file_is_named_with_its_cure(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    _write(tmp_path, "good.jpg")
    bad = _write(tmp_path, name, data)
    with pytest.raises(CliError) as refused:
        select([tmp_path], skip_others=False)
    assert told in refused.value.message + refused.value.cure
    assert bad.name in refused.value.message


def test_others_can_be_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg")
    _write(tmp_path, "notes.docx", b"x")
    selection = select([tmp_path], skip_others=True)
    assert len(selection.files) == 1
    assert selection.notes == ("1 other file left out",)


def test_only_the_first_five_faults_are_listed(tmp_path: Path) -> None:
    for number in range(8):
        _write(tmp_path, f"{number}.mp4")
    with pytest.raises(CliError, match="and 3 more"):
        select([tmp_path], skip_others=False)


def test_a_link_never_carries_a_file_from_elsewhere(tmp_path: Path) -> None:
    secret = _write(tmp_path, "secret", b"root")
    folder = tmp_path / "dog"
    _write(folder, "a.jpg")
    (folder / "a.txt").symlink_to(secret)
    with pytest.raises(CliError, match="link"):
        select([folder], skip_others=False)


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, two = _write(tmp_path, "x/a.jpg"), _write(tmp_path, "y/a.jpg")
    with pytest.raises(CliError, match="same name"):
        select([one, two], skip_others=False)
    assert len(select([one, one], skip_others=False).files) == 1


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "a.txt", b"a caption")
    with pytest.raises(CliError, match="no picture"):
        select([tmp_path], skip_others=False)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="nowhere does not exist"):
        select([tmp_path / "nowhere"], skip_others=False)


def test_a_caption_without_picture_is_pointed_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        _write(tmp_path, name)
    for name in ("a.txt", "b.jpg.txt", "c.txt"):
        _write(tmp_path, name, b"words")
    assert select([tmp_path], skip_others=False).notes == ("c.txt is a caption without picture",)
