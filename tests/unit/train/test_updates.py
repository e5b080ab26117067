import pytest
import torch
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Placement
from kubebooth_trainer.train.stages import plan_stages
from kubebooth_trainer.train.updates import Updates
from kubebooth_trainer.train.weights import OwnWeights

CPU = Placement(torch.device("cpu"), None)
HALF = Placement(torch.device("cpu"), torch.float16)


class Net:
    """A model whose parts are single layers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.parts = {
            "textEncoder": torch.nn.Linear(2, 2),
            "denoiser": torch.nn.Linear(2, 2),
        }


def updates_of(net: Net, placement: Placement = CPU, **more: object) -> Updates:
    settings = {"textEncoder": {"steps": 0}, "denoiser": {"steps": 50, "learningRate": 0.01}}
    training = Training.parse({**settings, **more})
    (stage,) = plan_stages(training)
    return Updates(OwnWeights(net), stage, training=training, placement=placement)


def backward_of(net: Net):
    def backward(scale: float) -> torch.Tensor:
        loss = net.parts["denoiser"](torch.ones(1, 2)).pow(2).sum()
        (loss * scale).backward()
        return loss.detach()

    return backward


def test_only_the_parts_of_the_stage_are_trained():
    net = Net()
    before = {part: layer.weight.detach().clone() for part, layer in net.parts.items()}
    updates_of(net).apply(0, backward_of(net))
    assert torch.equal(net.parts["textEncoder"].weight, before["textEncoder"])
    assert not torch.equal(net.parts["denoiser"].weight, before["denoiser"])
    assert not net.parts["textEncoder"].weight.requires_grad


def test_an_update_is_that_of_adamw_with_clipped_gradients():
    net, peer = Net(), Net()
    ours = updates_of(net, maxGradNorm=0.5, weightDecay=0.1)
    theirs = torch.optim.AdamW(
        peer.parts["denoiser"].parameters(), lr=0.01, weight_decay=0.1, fused=True
    )
    for step in range(5):
        ours.apply(step, backward_of(net))
        theirs.param_groups[0]["lr"] = 0.01 * (1 - step / 50)
        theirs.zero_grad()
        backward_of(peer)(1.0)
        torch.nn.utils.clip_grad_norm_(peer.parts["denoiser"].parameters(), 0.5)
        theirs.step()
    assert torch.equal(net.parts["denoiser"].weight, peer.parts["denoiser"].weight)


@pytest.mark.parametrize("more", [{}, {"ema": {"decay": 0.9}}])
def test_a_restored_optimizer_goes_on_bit_for_bit(more: dict[str, object]):
    net = Net()
    whole = updates_of(net, **more)
    for step in range(6):
        whole.apply(step, backward_of(net))
    other = Net()
    first = updates_of(other, **more)
    for step in range(3):
        first.apply(step, backward_of(other))
    saved = {name: tensor.clone() for name, tensor in first.capture().items()}
    second = updates_of(other, **more)
    second.restore(saved, first.facts, step=3)
    for step in range(3, 6):
        second.apply(step, backward_of(other))
    assert torch.equal(net.parts["denoiser"].weight, other.parts["denoiser"].weight)
    with whole.averaged(), second.averaged():
        assert torch.equal(net.parts["denoiser"].weight, other.parts["denoiser"].weight)


def test_the_average_is_the_recurrence_and_training_goes_on_from_the_weights():
    net = Net()
    updates = updates_of(net, ema={"decay": 0.5})
    kept = net.parts["denoiser"].weight.detach().clone()
    for step in range(4):
        updates.apply(step, backward_of(net))
        decay = min(0.5, (1 + step) / (10 + step))
        kept = decay * kept + (1 - decay) * net.parts["denoiser"].weight.detach()
    trained = net.parts["denoiser"].weight.detach().clone()
    with updates.averaged():
        assert torch.allclose(net.parts["denoiser"].weight, kept, atol=1e-6)
    assert torch.equal(net.parts["denoiser"].weight, trained)


def test_an_overflow_in_fp16_repeats_the_step_at_half_the_scale():
    net, peer = Net(), Net()
    updates = updates_of(net, HALF)
    tried = []

    def overflowing(scale: float) -> torch.Tensor:
        tried.append(scale)
        loss = backward_of(net)(scale)
        if scale > 16384:
            net.parts["denoiser"].weight.grad.fill_(float("inf"))
        return loss

    updates.apply(0, overflowing)
    updates_of(peer).apply(0, backward_of(peer))
    assert tried == [65536.0, 32768.0, 16384.0]
    assert torch.allclose(net.parts["denoiser"].weight, peer.parts["denoiser"].weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(bad: float):
    net = Net()
    before = net.parts["denoiser"].weight.detach().clone()
    updates = updates_of(net)
    with pytest.raises(ConfigurationError, match="loss became"):
        updates.apply(0, lambda scale: torch.tensor(bad))
    assert torch.equal(net.parts["denoiser"].weight, before)


def test_gradients_that_are_not_finite_leave_the_weights_alone():
    net = Net()
    before = net.parts["denoiser"].weight.detach().clone()

    def broken(scale: float) -> torch.Tensor:
        loss = backward_of(net)(scale)
        net.parts["denoiser"].weight.grad.fill_(float("nan"))
        return loss

    with pytest.raises(ConfigurationError, match="gradients"):
        updates_of(net).apply(0, broken)
    assert torch.equal(net.parts["denoiser"].weight, before)


def test_an_average_of_rounded_weights_is_itself_not_rounded():
    net = Net()
    for part in net.parts.values():
        part.to(torch.bfloat16)
    updates = updates_of(net, ema={"decay": 0.5})

    def backward(scale: float) -> torch.Tensor:
        loss = net.parts["denoiser"](torch.ones(1, 2, dtype=torch.bfloat16)).float().pow(2).sum()
        (loss * scale).backward()
        return loss.detach()

    for step in range(3):
        updates.apply(step, backward)
    average = updates.capture()["ema/denoiser.weight"]
    kept = average.clone()
    trained = net.parts["denoiser"].weight.detach().clone()
    assert average.dtype == torch.float32
    with updates.averaged():
        shown = net.parts["denoiser"].weight.detach().clone()
    assert torch.equal(shown, kept.to(torch.bfloat16))
    assert not torch.equal(kept, kept.to(torch.bfloat16).float())
    assert torch.equal(net.parts["denoiser"].weight, trained)
    assert torch.equal(updates.capture()["ema/denoiser.weight"], kept)
