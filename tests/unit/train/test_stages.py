import pytest
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.train.stages import Position, fits, plan_stages, settings_of


def planned(text: int, denoiser: int, mode: str = "Frozen"):
    settings = {"textEncoder": {"steps": text, "mode": mode}, "denoiser": {"steps": denoiser}}
    return plan_stages(Training.parse(settings))


def test_the_text_encoder_comes_first_and_leaves_the_denoiser_alone():
    first, second = planned(3, 5)
    assert (first.name, first.steps, first.parts) == ("TextEncoder", 3, ("textEncoder",))
    assert (second.name, second.steps, second.parts) == ("Denoiser", 5, ("denoiser",))


def test_a_stage_of_no_steps_is_skipped():
    assert [stage.name for stage in planned(0, 5)] == ["Denoiser"]
    assert [stage.name for stage in planned(5, 0)] == ["TextEncoder"]


def test_joint_discard_trains_both_and_keeps_the_text_encoder_only():
    first, second = planned(3, 5, "JointDiscard")
    assert first.parts == ("textEncoder", "denoiser")
    assert first.keeps == ("textEncoder",)
    assert second.parts == ("denoiser",)


def test_joint_is_one_stage_of_the_denoisers_steps():
    (only,) = planned(3, 5, "Joint")
    assert (only.name, only.steps, only.keeps) == ("Denoiser", 5, ("textEncoder", "denoiser"))


def test_joint_without_text_encoder_steps_trains_the_denoiser_alone():
    (only,) = planned(0, 5, "Joint")
    assert only.parts == ("denoiser",)


def test_joint_parts_keep_their_own_learning_rates():
    training = Training.parse(
        {
            "textEncoder": {"steps": 1, "mode": "Joint", "learningRate": 0.1},
            "denoiser": {"steps": 1, "learningRate": 0.2},
        }
    )
    (only,) = plan_stages(training)
    assert settings_of(training, only, "textEncoder").learning_rate == 0.1
    assert settings_of(training, only, "denoiser").learning_rate == 0.2


@pytest.mark.parametrize(
    ("position", "useful"),
    [
        (Position("TextEncoder", 3, 0), True),
        (Position("TextEncoder", 2, 0), True),
        (Position("TextEncoder", 4, 0), False),
        (Position("TextEncoder", 0, 0), False),
        (Position("Denoiser", 5, 3), True),
        (Position("Denoiser", 6, 3), False),
        (Position("Denoiser", 4, 2), False),
    ],
)
def test_only_a_state_on_the_way_to_the_targets_is_continued(position: Position, useful: bool):
    assert fits(planned(3, 5), position) is useful


def test_a_text_encoder_state_is_of_no_use_to_a_run_without_that_stage():
    assert not fits(planned(0, 5), Position("TextEncoder", 1, 0))
