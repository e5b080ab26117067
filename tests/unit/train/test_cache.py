import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_store import open_store
from kubebooth_store.verbs import Store
from kubebooth_trainer.errors import DataError, Preempted
from kubebooth_trainer.families.door import LatentNormal
from kubebooth_trainer.train.cache import Cache, Form, shards
from kubebooth_trainer.train.dataset import Picture, uncut
from kubebooth_trainer.train.latents import at_resolution, examples
from kubebooth_trainer.train.words import Words, stored_words, text_identity, weights_digest
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

CPU = torch.device("cpu")


class Encoder:
    """A model whose latents tell which picture they are of, and that counts its work."""

    def __init__(self) -> None:
        self.encoded: list[tuple[int, int]] = []
        self.embedded: list[str] = []
        self.broken = False

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return 4, size[0] // 8, size[1] // 8

    def encode_picture(self, picture: Image.Image) -> LatentNormal:
        self.encoded.append(picture.size)
        shape = self.latent_shape((picture.height, picture.width))
        mean = float("nan") if self.broken else float(np.asarray(picture).mean())
        return LatentNormal(torch.full(shape, mean), torch.ones(shape))

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.embedded += prompts
        values = [float(int(hashlib.sha256(p.encode()).hexdigest()[:6], 16)) for p in prompts]
        return {"text": torch.tensor(values).reshape(-1, 1, 1).expand(-1, 3, 2)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store((tmp_path / "store").as_uri())
    store.create_root()
    return store


def cache_in(store: Store, folder: Path, *, vae: str = "one") -> Cache:
    return Cache(store, session_prefix="sessions/a/b", folder=folder, identity={"vae": vae})


def pictures_in(folder: Path, count: int, *, first: int = 0) -> list[Picture]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(first, first + count):
        size = [(16, 16), (16, 32), (32, 16)][number % 3]
        path = folder / f"{number}.png"
        Image.new("RGB", (size[1], size[0]), (number, number, number)).save(path)
        found.append(Picture(path, f"caption {number}", f"picture {number}", uncut(size)))
    return found


def encode(model: Encoder, pictures: Sequence[Picture], cache: Cache, **more: int):
    return examples(model, pictures, cache=cache, stop=threading.Event(), **more)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=12)
@given(order=st.permutations(range(12)), known=st.integers(0, 12))
def test_a_latent_never_comes_to_another_pictures_caption(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], known: int
):
    folder = tmp_path_factory.mktemp("pairs")
    store = open_store((folder / "store").as_uri())
    store.create_root()
    pictures = pictures_in(folder / "pictures", 12)
    encode(Encoder(), pictures[:known], cache_in(store, folder / "first"))
    found = encode(Encoder(), [pictures[n] for n in order], cache_in(store, folder / "second"))
    assert [example.name for example in found] == [f"picture {n}" for n in order]
    for number, example in zip(order, found, strict=True):
        assert example.prompt == f"caption {number}"
        assert example.latent.mean.unique().tolist() == [float(number)]


def test_a_second_run_encodes_nothing_and_a_new_picture_one_shard_only(
    store: Store, tmp_path: Path
):
    pictures, first = pictures_in(tmp_path / "pictures", 40), Encoder()
    before = encode(first, pictures, cache_in(store, tmp_path / "a"))
    assert len(first.encoded) == 40
    second = Encoder()
    after = encode(second, pictures, cache_in(store, tmp_path / "b"))
    assert second.encoded == []
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.latent.mean, other.latent.mean)
    more, third = pictures_in(tmp_path / "more", 1, first=40), Encoder()
    encode(third, [*pictures, *more], cache_in(store, tmp_path / "c"))
    assert 1 <= len(third.encoded) <= 33


def test_another_vae_or_size_is_encoded_anew(store: Store, tmp_path: Path):
    pictures, model = pictures_in(tmp_path / "pictures", 2), Encoder()
    encode(model, pictures, cache_in(store, tmp_path / "a"))
    encode(model, pictures, cache_in(store, tmp_path / "b", vae="two"))
    assert len(model.encoded) == 4
    smaller = encode(model, pictures, cache_in(store, tmp_path / "c"), prepared=64, wanted=32)
    assert [example.geometry.target for example in smaller] == [(16, 16), (16, 16)]
    assert len(model.encoded) == 6


def test_equal_pictures_are_encoded_once_and_repeats_share_their_latent(
    store: Store, tmp_path: Path
):
    (picture,), model = pictures_in(tmp_path / "pictures", 1), Encoder()
    twice = Picture(picture.path, "other", "twin", picture.geometry, repeats=3)
    found = encode(model, [picture, twice], cache_in(store, tmp_path / "a"))
    assert len(model.encoded) == 1
    assert [example.prompt for example in found] == ["caption 0", "other", "other", "other"]


def test_what_is_encoded_when_a_stop_comes_is_kept(store: Store, tmp_path: Path):
    pictures, stop = pictures_in(tmp_path / "pictures", 60), threading.Event()

    def halfway(done: int) -> None:
        if done >= 20:
            stop.set()

    first = Encoder()
    with pytest.raises(Preempted, match="encoded so far are kept"):
        examples(first, pictures, cache=cache_in(store, tmp_path / "a"), stop=stop, on_done=halfway)  # type: ignore[arg-type]
    second = Encoder()
    encode(second, pictures, cache_in(store, tmp_path / "b"))
    assert len(first.encoded) + len(second.encoded) == 60
    assert len(first.encoded) >= 20


def shard_files(store: Store) -> list[str]:
    return [e.key for e in store.list("sessions/a/b/cache") if e.key.endswith(".safetensors")]


def republished(store: Store, key: str, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Put other content there with a manifest that is true of it, as a liar would."""
    from kubebooth_store import publish, read_manifest

    prefix = key.rsplit("/", 1)[0]
    manifest = read_manifest(store, prefix)
    assert manifest is not None
    store.delete_prefix(prefix)
    folder.mkdir()
    save_file(tensors, folder / "tensors.safetensors")
    publish(store, prefix, folder, kind="cache", metadata=manifest.metadata)


@pytest.mark.parametrize("lie", ["shape", "dtype", "nan", "stranger", "missing", "large", "noise"])
def test_hostile_content_is_thrown_away_and_computed_again(
    store: Store, tmp_path: Path, lie: str, caplog: pytest.LogCaptureFixture
):
    pictures = pictures_in(tmp_path / "pictures", 1)
    good = encode(Encoder(), pictures, cache_in(store, tmp_path / "a"))[0].latent
    (key,) = shard_files(store)
    name = f"{hashlib.sha256(pictures[0].read()).hexdigest()}-16x16"
    sound = {f"{name}/mean": good.mean.clone(), f"{name}/std": good.std.clone()}
    lies: dict[str, dict[str, Tensor]] = {
        "shape": {**sound, f"{name}/std": torch.ones(4, 9, 9)},
        "dtype": {**sound, f"{name}/std": torch.ones(4, 2, 2, dtype=torch.float16)},
        "nan": {**sound, f"{name}/std": torch.full((4, 2, 2), float("nan"))},
        "stranger": {**sound, "f" * 64 + "-16x16/mean": torch.ones(4, 2, 2)},
        "missing": {f"{name}/mean": sound[f"{name}/mean"]},
        "large": {**sound, "padding/mean": torch.ones(1 << 20)},
    }
    if lie == "noise":
        store.write(key, b"\x93\x00" * 500)
    else:
        republished(store, key, tmp_path / "lie", lies[lie])
    model = Encoder()
    (again,) = encode(model, pictures, cache_in(store, tmp_path / "b"))
    assert len(model.encoded) == 1
    assert torch.equal(again.latent.mean, good.mean)
    assert "broken and computed again" in caplog.text
    third = Encoder()
    encode(third, pictures, cache_in(store, tmp_path / "c"))
    assert third.encoded == []


def test_a_vae_that_makes_nan_is_told_with_the_picture_and_nothing_is_published(
    store: Store, tmp_path: Path
):
    model = Encoder()
    model.broken = True
    with pytest.raises(DataError, match=r"picture 0: the VAE .* NaN"):
        encode(model, pictures_in(tmp_path / "pictures", 1), cache_in(store, tmp_path / "a"))
    assert shard_files(store) == []


def test_a_killed_publish_is_taken_up(store: Store, tmp_path: Path):
    pictures = pictures_in(tmp_path / "pictures", 1)
    encode(Encoder(), pictures, cache_in(store, tmp_path / "a"))
    (key,) = shard_files(store)
    store.delete(f"{key.rsplit('/', 1)[0]}/manifest.json")
    model = Encoder()
    encode(model, pictures, cache_in(store, tmp_path / "b"))
    assert len(model.encoded) == 1
    again = Encoder()
    encode(again, pictures, cache_in(store, tmp_path / "c"))
    assert again.encoded == []


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=200))
def test_shards_hold_every_key_once_and_one_more_key_changes_one_shard(numbers: set[int]):
    keys = [hashlib.sha256(str(n).encode()).hexdigest() for n in numbers]
    before = [tuple(shard) for shard in shards(keys)]
    assert sorted(key for shard in before for key in shard) == sorted(keys)
    assert max(map(len, before)) <= 32
    after = {tuple(shard) for shard in shards([*keys, hashlib.sha256(b"more").hexdigest()])}
    assert len(set(before) - after) <= 2


def test_large_items_have_shards_of_their_own():
    form = Form({"mean": (5 << 20,)}, {"mean": torch.float32})
    assert max(len(shard) for shard in shards({f"k{n}": form for n in range(4)})) == 1


def test_embeddings_are_found_by_prompt_and_by_what_the_encoder_learned(
    store: Store, tmp_path: Path
):
    stop, prompts = threading.Event(), ["a sks dog", "a dog", ""]
    base = text_identity({"text_encoder/model.safetensors": "1", "unet/x.safetensors": "2"}, {})
    learned = text_identity({"text_encoder/model.safetensors": "1"}, {"a": torch.ones(2)})
    assert base == {"text": {"text_encoder/model.safetensors": "1"}}
    assert base != learned

    def words_of(model: Encoder, identity: dict[str, object], folder: str) -> Words:
        cache = Cache(
            store, session_prefix="sessions/a/b", folder=tmp_path / folder, identity=identity
        )
        stored = stored_words(model, prompts, cache=cache, stop=stop)  # type: ignore[arg-type]
        return Words(model, frozen=True, device=CPU, stored=stored)  # type: ignore[arg-type]

    first, second, third = Encoder(), Encoder(), Encoder()
    words_of(first, base, "a")
    known = words_of(second, base, "b")
    assert second.embedded == prompts[:1]
    both = known.of(["a dog", "a sks dog", "a dog"])["text"]
    alone = Encoder().embed(["a dog", "a sks dog", "a dog"])["text"]
    assert torch.equal(both, alone)
    assert second.embedded == prompts[:1]
    words_of(third, learned, "c")
    assert len(third.embedded) == 4


def test_a_prompt_that_is_not_stored_is_embedded_when_it_is_asked_for(store: Store):
    model = Encoder()
    words = Words(model, frozen=True, device=CPU)  # type: ignore[arg-type]
    for _ in range(3):
        words.of(["shuffled", "shuffled"])
    assert model.embedded == ["shuffled"]


def test_weights_are_named_by_their_bytes_names_shapes_and_dtypes():
    plain = {"a": torch.arange(4.0), "b": torch.zeros(())}
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(())},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(())},
        {"a": torch.arange(4.0).bfloat16(), "b": torch.zeros(())},
        {"a": torch.arange(4.0) + 1e-7, "b": torch.zeros(())},
    ]
    digests = {weights_digest(weights) for weights in [plain, *others]}
    assert len(digests) == 5
    assert weights_digest(dict(reversed(plain.items()))) == weights_digest(plain)


def test_a_stage_at_another_resolution_keeps_the_cut_in_proportion():
    cut = uncut((768, 384))
    cut = type(cut)(original=(1000, 500), crop=(32, 0), target=(768, 384))
    half = at_resolution(cut, prepared=512, wanted=256)
    assert (half.original, half.crop, half.target) == ((1000, 500), (16, 0), (384, 192))
    assert at_resolution(cut, prepared=512, wanted=512) is cut
