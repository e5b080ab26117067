"""Whatever happens in whatever order, a session ends where its spec says; never two train pods."""

from __future__ import annotations

import random

import pytest
from kubebooth_api.exitcodes import ExitCode
from kubebooth_operator.resources import CHILDREN

from tests.unit.operator_core.simulator import Faults
from tests.unit.session.booth import Booth, spec
from tests.unit.session.world import KILLED, chance

SEEDS = 40
ACTIONS = 90


class Chaos:
    """Random users, workers, streams and crashes around one session."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.booth = Booth(seed=seed)
        world = self.booth.world
        world.hold = lambda stage: self.rng.random() < 0.6
        world.next_exit = lambda stage: chance(
            self.rng, (0, 6), (64, 1), (65, 1), (66, 1), (67, 2), (68, 2), (70, 1), (KILLED, 1)
        )
        self.tokens = 0

    def act(self, *, users: bool = True) -> None:
        """One random thing."""
        simulator = self.booth.simulator
        self.rng.choices(
            (
                lambda: simulator.deliver(self.rng.randint(1, 4)),
                lambda: simulator.work() or None,
                lambda: self.booth.world(simulator.server),
                lambda: simulator.advance(self.rng.choice((1, 7, 40, 700))),
                self.user,
                simulator.crash,
                lambda: simulator.lose(self.rng.randint(1, 3)),
                lambda: simulator.replay(self.rng.randrange(1000)),
                simulator.resync,
                self.break_a_write,
            ),
            (30, 30, 25, 8, 6 if users else 0, 2, 3, 4, 2, 4),
        )[0]()
        self.booth.world.look(simulator.server)

    def user(self) -> None:
        """An edit of the spec, or a retry."""
        rng, booth = self.rng, self.booth
        self.tokens += 1
        token = str(self.tokens)
        rng.choice(
            (
                lambda: booth.edit(suspend=rng.random() < 0.5),
                lambda: booth.edit(training=_training(rng)),
                lambda: booth.edit(captions={"mode": rng.choice(("None", "Files"))}),
                lambda: booth.edit(runtime={"resources": {"memory": rng.choice(("8Gi", "9Gi"))}}),
                lambda: booth.edit(samples={"everySteps": rng.choice((10, 20))}),
                lambda: booth.edit(rerun=rng.choice(("", "again"))),
                lambda: booth.edit(outputs=_outputs(rng)),
                lambda: booth.edit(baseModel=_base_model(rng)),
                lambda: booth.edit(ttlSecondsAfterFinished=rng.choice((0, 30, 3000))),
                lambda: booth.edit(retry={"limit": rng.choice((0, 2)), "backoffSeconds": 1}),
                lambda: booth.retry(token),
            )
        )()

    def break_a_write(self) -> None:
        """The operator dies around one of its next writes, or the write fails."""
        fault = self.rng.choice(("crash_before", "crash_after", "refuse", "lose_answer"))
        self.booth.simulator.server.faults = Faults(**{fault: self.rng.randint(0, 3)})

    def calm(self) -> None:
        """No more faults; workers succeed."""
        self.booth.simulator.server.faults = Faults()
        self.booth.world.hold = lambda stage: False
        self.booth.world.next_exit = lambda stage: 0


def _outputs(rng: random.Random) -> list[dict[str, str]]:
    formats = {
        "file": {"format": "Safetensors", "precision": rng.choice(("Keep", "Fp16"))},
        "ckpt": {"format": "Ckpt"},
    }
    exports = rng.sample(sorted(formats), rng.randint(0, 2))
    return [{"name": "diffusers"}, *({"name": name, **formats[name]} for name in exports)]


def _base_model(rng: random.Random) -> dict[str, object]:
    source: dict[str, object] = {"store": {"key": "models/shapes"}}
    if rng.random() < 0.5:
        source = {"url": {"href": f"https://a.example.com/{rng.randint(0, 1)}"}}
    return {"variant": "sd15", "source": source}


def _training(rng: random.Random) -> dict[str, object]:
    return {
        "textEncoder": {"steps": 10},
        "denoiser": {"steps": rng.choice((20, 30, 40))},
        "seed": rng.choice((0, 1)),
    }


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_session_ends_complete_whatever_happened_before(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(ACTIONS):
        chaos.act()
    chaos.calm()
    booth = chaos.booth
    booth.edit(suspend=False)
    booth.retry("at last")
    booth.settle()
    assert booth.holds("Complete"), booth.status["message"]
    assert booth.holds("Ready")
    assert not booth.holds("Failed")
    assert booth.status["run"]["completedTarget"]
    assert booth.world.most_train_pods == 1
    assert len(set(booth.world.trained)) == len(booth.world.trained)
    _is_told_truly(booth)


def _is_told_truly(booth: Booth) -> None:
    parent = booth.simulator.parent(booth.key)
    assert parent is not None
    generation = parent["metadata"]["generation"]
    conditions = booth.status["conditions"]
    assert {c["observedGeneration"] for c in conditions} == {generation}
    steps = sum(parent["spec"]["training"][s]["steps"] for s in ("textEncoder", "denoiser"))
    assert (booth.status["run"]["digest"], steps) in booth.world.trained
    assert all(a["outcome"] != "Running" for a in booth.status["attempts"])
    names = {output["name"] for output in parent["spec"].get("outputs", ({"name": "diffusers"},))}
    assert {artifact["name"] for artifact in booth.status["artifacts"]} == names
    _is_exported(booth)


def _is_exported(booth: Booth) -> None:
    """One conversion for each export, each of the model that is told."""
    artifacts = {artifact["name"]: artifact for artifact in booth.status["artifacts"]}
    made = booth.simulator.server.all("ModelConversion")
    assert len(made) == len(artifacts) - 1
    for conversion in made:
        assert conversion["spec"]["source"]["digest"] == artifacts["diffusers"]["digest"]
        assert conversion["status"]["artifact"]["digest"] in {
            artifact["digest"] for artifact in artifacts.values()
        }


@pytest.mark.parametrize("seed", range(15))
def test_bad_data_ends_failed_whatever_happened_before(seed: int) -> None:
    chaos = Chaos(seed + 1000)
    for _ in range(ACTIONS // 2):
        chaos.act()
    chaos.calm()
    booth = chaos.booth
    booth.world.next_exit = lambda stage: ExitCode.DATA_ERROR
    booth.edit(**spec(suspend=False, rerun="fresh"))
    booth.settle()
    assert booth.holds("Failed")
    assert booth.holds("Stalled")
    assert booth.status["lastFailure"]["exitCode"] == 65
    assert not booth.holds("Complete")
    assert not any(pod["status"]["phase"] == "Running" for pod in _pods(booth))


@pytest.mark.parametrize("seed", range(15))
def test_a_suspended_session_comes_to_rest_without_a_pod(seed: int) -> None:
    chaos = Chaos(seed + 2000)
    for _ in range(ACTIONS // 2):
        chaos.act()
    chaos.calm()
    booth = chaos.booth
    booth.edit(suspend=True, rerun="never ran")
    booth.settle()
    assert booth.holds("Suspended") or booth.holds("Failed") or booth.holds("Complete")
    assert all(pod["status"]["phase"] != "Running" for pod in _pods(booth))
    assert not booth.holds("Reconciling")


@pytest.mark.parametrize("seed", range(15))
def test_deletion_ends_whatever_happened_before(seed: int) -> None:
    chaos = Chaos(seed + 3000)
    chaos.booth.edit(deletionPolicy="Delete")
    for _ in range(ACTIONS // 2):
        chaos.act()
    asked = chaos.booth.simulator.parent(chaos.booth.key)
    assert asked is not None
    chaos.booth.simulator.delete(chaos.booth.key)
    for _ in range(ACTIONS // 3):
        if not chaos.booth.there:
            break
        chaos.act(users=False)
    chaos.calm()
    if chaos.booth.there:
        chaos.booth.retry("at last")
    chaos.booth.simulator.settle()
    assert not chaos.booth.there
    server = chaos.booth.simulator.server
    assert not [body for (r, _), body in server.objects.items() if r in CHILDREN]
    if asked["metadata"].get("finalizers"):
        assert chaos.booth.world.purged >= 1
        assert chaos.booth.world.started[-1] == "purge"


def _pods(booth: Booth) -> list[dict[str, object]]:
    return booth.simulator.server.all("Pod")
