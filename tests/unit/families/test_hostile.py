"""A model that somebody tampered with ends with an error that names the file, and never hangs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import flux, sdxl, writing

from tests.tiny.models import write_model
from tests.unit.families.reference import CPU

ENDLESS = 2**40
CHANGES: list[tuple[str, str, Any]] = [
    ("text_encoder/config.json", "num_hidden_layers", ENDLESS),
    ("text_encoder/config.json", "num_hidden_layers", [1]),
    ("text_encoder/config.json", "num_hidden_layers", math.nan),
    ("text_encoder/config.json", "attn_implementation", "flash_attention_2"),
    ("text_encoder/config.json", "attn_implementation", 1.5),
    ("text_encoder_2/config.json", "hidden_act", None),
    ("text_encoder_2/config.json", "num_attention_heads", 0),
    ("text_encoder_2/config.json", "vocab_size", ENDLESS),
    ("unet/config.json", "layers_per_block", ENDLESS),
    ("unet/config.json", "transformer_layers_per_block", [1, ENDLESS]),
    ("unet/config.json", "transformer_layers_per_block", []),
    ("unet/config.json", "act_fn", 7),
    ("unet/config.json", "block_out_channels", [8] * 1000),
    ("unet/config.json", "norm_num_groups", 0),
    ("vae/config.json", "layers_per_block", ENDLESS),
    ("vae/config.json", "block_out_channels", [8, 8]),
    ("vae/config.json", "latents_mean", [0.0]),
    ("scheduler/scheduler_config.json", "num_train_timesteps", ENDLESS),
    ("scheduler/scheduler_config.json", "num_train_timesteps", "x"),
    ("scheduler/scheduler_config.json", "beta_end", math.nan),
    ("scheduler/scheduler_config.json", "beta_start", [1]),
    ("tokenizer/tokenizer.json", "model", None),
    ("tokenizer/tokenizer.json", "model", {"vocab": {}}),
    ("tokenizer/tokenizer.json", "normalizer", 1),
    ("tokenizer/tokenizer.json", "truncation", {}),
    ("tokenizer/tokenizer.json", "version", "9"),
    ("tokenizer/tokenizer.json", "added_tokens", [1]),
    ("tokenizer_2/tokenizer.json", "evil", "x"),
]


@pytest.fixture(scope="module")
def sdxl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hostile") / "sdxl", "sdxl")


@pytest.mark.parametrize(("name", "key", "value"), CHANGES)
@pytest.mark.timeout(60)
def test_a_file_with_a_wrong_value_is_named(sdxl_base: Path, name: str, key: str, value: Any):
    path = sdxl_base / name
    good = path.read_text()
    path.write_text(json.dumps({**json.loads(good), key: value}))
    try:
        with pytest.raises(DataError, match=name.split("/")[0]):
            sdxl.load(sdxl_base, placement=CPU, zero_terminal_snr=False, trained=frozenset())
    finally:
        path.write_text(good)


@pytest.mark.timeout(60)
def test_a_t5_of_endless_layers_is_refused(tmp_path: Path):
    base = write_model(tmp_path / "base", "flux-dev")
    path = base / "text_encoder_2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": ENDLESS}))
    with pytest.raises(DataError, match=r"text_encoder_2/config\.json has num_layers"):
        flux.load(base, placement=CPU, zero_terminal_snr=False, trained=frozenset())


def test_an_index_that_names_folders_elsewhere_leads_nowhere(sdxl_base: Path, tmp_path: Path):
    (sdxl_base.parent / "secret").mkdir(exist_ok=True)
    (sdxl_base.parent / "secret" / "a.json").write_text("{}")
    path = sdxl_base / "model_index.json"
    good = path.read_text()
    evil = {"..": ["x", "y"], "../secret": ["x", "y"], ".": ["x", "y"]}
    path.write_text(json.dumps({**json.loads(good), **evil}))
    try:
        writing.write_layout(sdxl_base, tmp_path / "a" / "out", trained={}, precision="Keep")
    finally:
        path.write_text(good)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"out"}
    assert not list(tmp_path.rglob("a.json"))
