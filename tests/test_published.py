"""Published checkpoints from disk and to disk: every tensor of them, or an error that names it."""

import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_published import DEEPSEEK, LLAMA, MIXTRAL, change_config, change_tensors, make, write

from moeworks import Decoder, ModelConfig, load, save
from moeworks.config import ExpertsConfig, GQAConfig, RouterConfig
from moeworks.errors import CheckpointError, ConfigError, MoeworksError

TOKENS = torch.arange(20).view(2, 10)


@pytest.fixture(params=[MIXTRAL, DEEPSEEK, LLAMA], ids=["mixtral", "deepseek_v3", "llama"])
def written(request, tmp_path):
    return write(tmp_path / "m", request.param), tmp_path / "m"


def same(a: Decoder, b: Decoder) -> None:
    assert a.config == b.config
    for name, value in a.state_dict().items():
        assert torch.equal(b.state_dict()[name], value), name


def test_load_gives_back_what_was_saved(written):
    model, folder = written
    same(model, load(folder, dtype=torch.float32))
    assert not load(folder).training


def test_shards_with_an_index(tmp_path):
    model = write(tmp_path / "m", MIXTRAL, shard_bytes=9000)
    names = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert "model.safetensors.index.json" in names and names[0] == "config.json"
    assert len([name for name in names if name.startswith("model-")]) > 2
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    same(model, load(tmp_path / "m", dtype=torch.float32))


def test_experts_are_sorted_as_numbers(tmp_path):
    """Expert 10 is the eleventh, and not the third."""
    write(tmp_path, MIXTRAL)
    tensors = load_file(tmp_path / "model.safetensors")
    experts = load(tmp_path, dtype=torch.float32).layers[1].mlp.experts
    for e in range(12):
        prefix = f"model.layers.1.block_sparse_moe.experts.{e}"
        assert torch.equal(experts.down_proj[e], tensors[f"{prefix}.w2.weight"])
        both = torch.cat([tensors[f"{prefix}.w1.weight"], tensors[f"{prefix}.w3.weight"]])
        assert torch.equal(experts.gate_up_proj[e], both)


def test_fused_experts_are_read_too(tmp_path):
    model = write(tmp_path, MIXTRAL)

    def fuse(tensors):
        for layer, block in enumerate(model.layers):
            prefix = f"model.layers.{layer}.block_sparse_moe.experts."
            for name in [name for name in tensors if name.startswith(prefix)]:
                del tensors[name]
            tensors[f"{prefix}gate_up_proj"] = block.mlp.experts.gate_up_proj.detach()
            tensors[f"{prefix}down_proj"] = block.mlp.experts.down_proj.detach()

    change_tensors(tmp_path, fuse)
    same(model, load(tmp_path, dtype=torch.float32))


def test_dtype_is_the_checkpoints_or_the_one_asked_for(tmp_path):
    write(tmp_path, DEEPSEEK, dtype=torch.bfloat16)
    change_config(tmp_path, torch_dtype="bfloat16")
    model = load(tmp_path)
    assert model.embed.weight.dtype == torch.bfloat16
    assert model.layers[1].mlp.router.expert_bias.dtype == torch.float32
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert load(tmp_path, dtype=torch.float64).embed.weight.dtype == torch.float64
    change_config(tmp_path, torch_dtype=None)
    assert load(tmp_path).embed.weight.dtype == torch.bfloat16


def test_tied_embeddings_may_be_stored_twice_but_not_differ(tmp_path):
    model = write(tmp_path, LLAMA)
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    same(model, load(tmp_path, dtype=torch.float32))
    change_tensors(tmp_path, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"ties lm_head.weight to model.embed_tokens.weight, but the"):
        load(tmp_path)


def test_mtp_layers_are_read_written_and_may_be_absent(tmp_path):
    model = write(tmp_path / "with", DEEPSEEK)
    assert len(model.mtp) == 1
    tensors = load_file(tmp_path / "with" / "model.safetensors")
    assert "model.layers.3.eh_proj.weight" in tensors and "model.layers.3.mlp.gate.weight" in tensors

    def copies(t):  # as published files have them
        t["model.layers.3.embed_tokens.weight"] = t["model.embed_tokens.weight"].clone()
        t["model.layers.3.shared_head.head.weight"] = t["lm_head.weight"].clone()

    change_tensors(tmp_path / "with", copies)
    same(model, load(tmp_path / "with", dtype=torch.float32))

    def without(t):
        for name in [name for name in t if name.startswith("model.layers.3.")]:
            del t[name]

    change_tensors(tmp_path / "with", without)
    bare = load(tmp_path / "with", dtype=torch.float32)
    assert len(bare.mtp) == 0
    assert torch.equal(bare(TOKENS).logits_BLV, model(TOKENS).logits_BLV)
    save(bare, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    same(bare, load(tmp_path / "again", dtype=torch.float32))


def test_mtp_layers_that_the_config_does_not_announce_are_read(tmp_path):
    model = write(tmp_path, DEEPSEEK)
    change_config(tmp_path, num_nextn_predict_layers=0)
    again = load(tmp_path, dtype=torch.float32)
    same(model, again)
    assert len(again.mtp) == 1
    save(again, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["num_nextn_predict_layers"] == 1


def test_a_layer_too_many_is_no_mtp_layer(tmp_path):
    write(tmp_path, DEEPSEEK | {"num_nextn_predict_layers": 0})
    change_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(
        CheckpointError, match=r"model.layers.2.input_layernorm.weight is unknown to the model"
    ):
        load(tmp_path)


def test_what_the_source_held_beside_the_weights_is_kept(tmp_path):
    write(tmp_path / "a", MIXTRAL)
    change_config(tmp_path / "a", bos_token_id=5, torch_dtype="float32")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    save(load(tmp_path / "a"), tmp_path / "b")
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written == json.loads((tmp_path / "a" / "config.json").read_text())
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"


def test_saving_over_a_folder_replaces_it(tmp_path):
    write(tmp_path / "m", MIXTRAL, shard_bytes=9000)
    other = make(LLAMA)
    save(other, tmp_path / "m", family="llama")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}
    same(other, load(tmp_path / "m"))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_model_made_here_takes_the_first_family_that_can_say_it(tmp_path):
    config = ModelConfig(
        vocab_size=40,
        d_model=16,
        num_layers=2,
        attention=GQAConfig(num_heads=2, num_kv_heads=1),
        router=RouterConfig(num_experts=4),
        experts=ExpertsConfig(d_expert=8),
    )
    model = Decoder(config)
    save(model, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "qwen3_moe"
    same(model, load(tmp_path / "m"))
    odd = Decoder(ModelConfig(vocab_size=40, experts=ExpertsConfig(activation="relu2")))
    with pytest.raises(ConfigError, match=r"no family's config\.json can express this model"):
        save(odd, tmp_path / "odd")
    with pytest.raises(ConfigError, match="family = 'mixtrall': unknown"):
        save(model, tmp_path / "odd", family="mixtrall")
    assert not (tmp_path / "odd").exists()


def test_frequencies_that_old_checkpoints_hold_are_passed_over(tmp_path):
    model = write(tmp_path, LLAMA)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(tmp_path, lambda t: t.update({name: torch.ones(2)}))
    same(model, load(tmp_path, dtype=torch.float32))


# What is wrong with a checkpoint is said, with names.


def drop(name):
    return lambda tensors: tensors.pop(name)


def reshape(name):
    return lambda tensors: tensors.update({name: tensors[name].T})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (
            drop("model.layers.1.block_sparse_moe.experts.10.w3.weight"),
            r"model\.layers\.1\.block_sparse_moe\.experts\.10\.w3\.weight is missing",
        ),
        (lambda t: t.update({"model.layers.3.extra": torch.ones(2)}), r"model\.layers\.3\.extra is unknown"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}),
            r"q_proj\.bias is unknown",
        ),
        (
            lambda t: t.update({"model.layers.1.block_sparse_moe.experts.12.w1.weight": torch.ones(12, 16)}),
            r"experts\.12\.w1\.weight is unknown",
        ),
        (
            reshape("model.layers.0.block_sparse_moe.experts.0.w1.weight"),
            r"w1\.weight has shape \(16, 12\), the config means \(12, 16\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int64)}),
            r"model\.norm\.weight: its dtype is torch\.int64; expected a floating-point one",
        ),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(tmp_path, change, message):
    write(tmp_path, MIXTRAL)
    change_tensors(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_many_problems_are_counted(tmp_path):
    write(tmp_path, MIXTRAL)
    change_config(tmp_path, hidden_size=32)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of its config: .*; and \d+ more"):
        load(tmp_path)


def test_a_wrong_config_costs_no_memory(tmp_path):
    """Names and shapes are compared before anything is allocated: this one would take 5 TB."""
    write(tmp_path, MIXTRAL)
    change_config(tmp_path, hidden_size=2**20, num_attention_heads=2**10)
    with pytest.raises(CheckpointError, match="the config means"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        dict(hidden_size=10**18),
        dict(hidden_size=0),
        dict(num_hidden_layers=10**9),
        dict(num_hidden_layers=-1),
        dict(vocab_size="many"),
        dict(rms_norm_eps=float("nan")),
        dict(rms_norm_eps=-1.0),
        dict(num_local_experts=None),
        dict(num_experts_per_tok=10**6),
        dict(head_dim=3),
        dict(rope_theta=float("inf")),
        dict(rope_theta=-5.0),
        dict(max_position_embeddings=0),
        dict(rope_scaling={"rope_type": "linear", "factor": float("nan")}),
        dict(model_type=["mixtral"]),
        dict(model_type={"a": 1}),
        dict(sliding_window=-3),
        dict(secret_option=7),
    ],
)  # fmt: skip
def test_absurd_configs_are_errors(tmp_path, changes):
    write(tmp_path, MIXTRAL)
    change_config(tmp_path, **changes)
    with pytest.raises(MoeworksError):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"model_type": null}', "[" * 10_000, "\xff"])
def test_a_config_json_that_is_none(tmp_path, content):
    write(tmp_path, MIXTRAL)
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(MoeworksError):
        load(tmp_path)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(tmp_path, name):
    write(tmp_path, MIXTRAL)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=f"{name} is a pickle"):
        load(tmp_path)


def test_a_pickle_under_another_name_is_no_safetensors_file(tmp_path):
    write(tmp_path, MIXTRAL)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    write(tmp_path / "m", MIXTRAL, shard_bytes=9000)
    return tmp_path / "m"


LATE = "model.layers.2.input_layernorm.weight"


def change_index(folder, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "place",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "x.bin", "a\\b.safetensors", 3],
)  # fmt: skip
def test_an_index_names_files_of_its_folder_only(sharded, place):
    (sharded.parent / "outside.safetensors").write_bytes(b"secret")
    change_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": place}))
    with pytest.raises(CheckpointError, match=r"a shard is a \.safetensors file in the same folder"):
        load(sharded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "has no weight_map"),
        (lambda index: index.update(weight_map=[]), "has no weight_map"),
        (lambda index: index.update(weight_map={}), "has no weight_map"),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "model-9.safetensors"}),
            "model-9.safetensors: missing",
        ),
        (
            lambda index: index["weight_map"].update(
                {LATE: index["weight_map"]["model.embed_tokens.weight"]}
            ),
            rf"{LATE} should be in .*, which does not hold it",
        ),
        (lambda index: index["weight_map"].pop("model.norm.weight"), r"holds model\.norm\.weight, which"),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "model.safetensors.index.json"}),
            "a shard is a .safetensors file",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_files(sharded, change, message):
    change_index(sharded, change)
    with pytest.raises(CheckpointError, match=message):
        load(sharded)


def test_a_missing_shard_and_a_missing_index(sharded):
    next(sharded.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"missing; model\.safetensors\.index\.json lists it"):
        load(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load(sharded)


@settings(max_examples=60)
@given(st.data())
def test_a_fuzzed_checkpoint_loads_or_is_a_moeworks_error(tmp_path_factory, data):
    """Bytes changed anywhere in the three kinds of files."""
    folder = tmp_path_factory.mktemp("fuzz")
    write(folder, LLAMA, shard_bytes=4000)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())), label="file")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        at = data.draw(st.integers(0, min(len(content) - 1, 2000)), label="at")
        piece = data.draw(st.binary(min_size=1, max_size=8), label="bytes")
        content[at : at + len(piece)] = piece
    path.write_bytes(bytes(content))
    try:
        load(folder)
    except MoeworksError as error:
        assert str(error)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="neither a run"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match="shard_bytes = 0"):
        save(make(LLAMA), tmp_path / "x", shard_bytes=0)
