from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LINES = (ROOT / "trainer-image/Dockerfile").read_text().splitlines()


def test_the_image_is_built_from_files_that_are_there() -> None:
    copied = [
        source
        for line in LINES
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    ignored = (ROOT / "trainer-image/Dockerfile.dockerignore").read_text().splitlines()
    assert copied
    assert all((ROOT / source).exists() for source in copied)
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == set(copied)


def test_the_image_runs_without_root_and_holds_no_secret() -> None:
    assert [line for line in LINES if line.startswith("USER")][-1] == "USER 65532:65532"
    assert not [line for line in LINES if "SECRET" in line or "TOKEN" in line]
