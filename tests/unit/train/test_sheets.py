import pytest
from kubebooth_trainer.train.record import MOST_POINTS, Point, Record, spacing
from kubebooth_trainer.train.sheets import Row, before_after, contact_sheet, loss_curve
from PIL import Image

RED, BLUE = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))


def colours(sheet: Image.Image) -> dict[tuple[int, int, int], int]:
    return {colour: count for count, colour in sheet.getcolors(sheet.width * sheet.height)}


def test_before_and_after_stand_side_by_side_in_equal_numbers():
    rows = [Row("a sks dog", "the subject", [RED] * 3, [BLUE] * 3)]
    found = colours(before_after(rows, [], title="t", subtitle="s"))
    assert found[(255, 0, 0)] == found[(0, 0, 255)] == 3 * 144 * 144


def test_small_pictures_are_shown_large_enough_to_see():
    sheet = contact_sheet([Row("p", "", [RED, BLUE])], title="t", subtitle="s")
    assert colours(sheet)[(255, 0, 0)] == 144 * 144


@pytest.mark.parametrize("label", ["", "x" * 2048, "line\nbreak\x00\x1b[31m", "日本語 🐶"])
def test_any_prompt_can_be_printed(label: str):
    sheet = contact_sheet([Row(label, "", [RED])], title=label, subtitle=label)
    assert sheet.width == 560


def test_equal_inputs_give_equal_pictures():
    rows = [Row("p", "", [RED], [BLUE])]
    one = before_after(rows, [RED], title="t", subtitle="s")
    assert one.tobytes() == before_after(rows, [RED], title="t", subtitle="s").tobytes()


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_a_loss_curve_is_drawn_for_any_number_of_points(count: int):
    points = [Point("Denoiser", step + 1, 1 / (step + 1), 1e-4) for step in range(count)]
    points = [Point("TextEncoder", 1, 0.5, 1e-4), *points] if count else []
    assert loss_curve(points, title="t", subtitle="s").size == (960, 540)


def test_long_trainings_keep_a_bounded_record():
    record, steps = Record(), 10 * MOST_POINTS + 7
    for step in range(1, steps + 1):
        record.add("Denoiser", step, steps=steps, loss=1.0, learning_rate=1e-4)
    assert len(record.points) <= MOST_POINTS + 1
    assert record.points[-1].step == steps
    assert record.smoothed == pytest.approx(1.0)
    assert spacing(MOST_POINTS) == 1
