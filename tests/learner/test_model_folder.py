"""Model folders that aren't whole: each is a real one of transformers, broken in one way."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learner_cases import SIZES, VOCABULARY, loaded_policy
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM

from agent.errors import UserError
from learner.model_folder import INDEX, WEIGHTS, _named, check_folder, weight_files
from learner.policy import Policy
from learner.skeleton import MARKER, qwen2_config

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 42\n"
Break = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole folders: a Qwen2 with tied embeddings and a Llama with a head of its own."""
    torch.manual_seed(0)
    qwen2 = Qwen2ForCausalLM(qwen2_config(SIZES, vocab_size=VOCABULARY))
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=VOCABULARY))
    folders = {"qwen2": tmp_path_factory.mktemp("qwen2"), "llama": tmp_path_factory.mktemp("llama")}
    for model, folder in zip((qwen2, llama), folders.values(), strict=True):
        model.save_pretrained(folder)
    return folders


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    """A whole Qwen2, to be broken."""
    return Path(shutil.copytree(made["qwen2"], tmp_path / "model"))


@pytest.fixture
def llama(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["llama"], tmp_path / "llama"))


def configure(folder: Path, **changed: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda held: {key: value for key, value in held.items() if key != name}


def shard(folder: Path) -> dict[str, str]:
    """Splits the weights into two shards; the index's map."""
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(held)
    place = {name: SHARDS[at >= 5] for at, name in enumerate(names)}
    for file in SHARDS:
        save_file({name: held[name] for name in names if place[name] == file}, folder / file)
    index(folder, place)
    return place


def index(folder: Path, place: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": place}))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        check_folder(folder, "model.path=here")
    message = str(error.value)
    assert message.startswith("model.path=here: ")
    assert "\n" not in message
    return message


# --- whole ones ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_whole_folder_says_how_many_rows_its_embedding_has(made: dict[str, Path], family: str) -> None:
    assert check_folder(made[family], "model.path=here") == VOCABULARY


def test_shards_are_as_good_as_one_file(folder: Path) -> None:
    shard(folder)
    assert check_folder(folder, "model.path=here") == VOCABULARY
    assert [file.name for file in weight_files(folder)] == list(SHARDS)
    assert loaded_policy(folder).head.shape == (VOCABULARY, SIZES["hidden_size"])


def test_files_that_are_none_of_the_weights_are_left_alone(folder: Path) -> None:
    save_file({"tok_embeddings.weight": torch.zeros(2)}, folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_text(POINTER)
    (folder / "README.md").write_text("about it")
    assert check_folder(folder, "model.path=here") == VOCABULARY
    assert [file.name for file in weight_files(folder)] == [WEIGHTS]


def test_what_loaders_forgive_is_forgiven(folder: Path) -> None:
    """A head that is written although it is the embedding, and a buffer of old Llamas."""

    def more(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head = held["model.embed_tokens.weight"].clone()
        return {**held, "lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}

    tensors(folder, more)
    assert check_folder(folder, "model.path=here") == VOCABULARY


def test_a_saved_policy_is_whole(tmp_path: Path) -> None:
    for name, rank in (("plain", 0), ("adapted", 2)):
        Policy.build(SIZES, vocab_size=VOCABULARY, seed=0, lora_rank=rank).save(tmp_path / name)
        assert check_folder(tmp_path / name, "checkpoint=here") == VOCABULARY


def test_the_headers_of_a_model_of_gigabytes_take_no_time(tmp_path: Path) -> None:
    """1.5B parameters in a file with nothing but holes after its header: reading them would take seconds."""
    sizes = {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2}
    config = qwen2_config({**sizes, "intermediate_size": 8960}, vocab_size=151936, architectures=["Qwen2ForCausalLM"])
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    header, at = {}, 0
    for name, tensor in model.named_parameters():
        size = 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    assert at > 3e9
    started = time.process_time()
    assert check_folder(tmp_path, "model.path=here") == 151936
    assert time.process_time() - started < 1


# --- files that are missing, or are something else --------------------------------------------------


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "model.safetensors is missing" in refusal(folder)
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        weight_files(folder)


def test_an_adapter_with_its_models_configuration(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert "model.safetensors is missing; the folder holds an adapter: merge it" in refusal(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "model.safetensors is missing; the folder holds an adapter: merge it" in refusal(folder)


def test_an_adapter_beside_its_model(folder: Path) -> None:
    """With peft installed transformers loads both, and an engine the model alone."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/name"}')
    assert "adapter_config.json: the folder holds an adapter: merge it into its base model first, or" in refusal(folder)


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "rng_state.pth", "consolidated.00.pth"])
def test_a_pickle_that_no_model_can_be_made_of_is_not_to_be_converted(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch unpickled'\ntR.")
    assert refusal(folder).endswith(
        "model.safetensors is missing (or model.safetensors.index.json and what it names); download the weights again"
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_never_loaded_and_how_to_convert_it_is_said(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch unpickled'\ntR.")
    message = refusal(folder)
    assert f"{name} is a pickle" in message
    assert f"use_safetensors=False).save_pretrained('{folder}')" in message
    with pytest.raises(UserError, match="is a pickle"):
        Policy.from_folder(folder, seed=0, dtype="float32")


@pytest.mark.parametrize(
    "half",
    [
        "model.safetensors.incomplete",
        ".cache/huggingface/download/a1b2.incomplete",
        "model.safetensors.part",
        "model.safetensors.aria2",
        "Unconfirmed 1.crdownload",
    ],
)
def test_half_a_download(folder: Path, half: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / half).parent.mkdir(parents=True, exist_ok=True)
    (folder / half).write_bytes(b"part")
    message = refusal(folder)
    assert "model.safetensors is missing" in message
    assert f"a download was not finished: {Path(half).name}" in message


def test_half_a_download_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    snapshot = tmp_path / "models--org--name" / "snapshots" / "a1b2"
    shutil.copytree(folder, snapshot)
    (snapshot.parent.parent / "blobs").mkdir()
    (snapshot.parent.parent / "blobs" / "c3d4.incomplete").write_bytes(b"part")
    assert "a download was not finished: c3d4.incomplete" in refusal(snapshot)


def test_weights_of_another_name(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / SHARDS[0])
    assert f"and so is {INDEX}, which would name {SHARDS[0]}" in refusal(folder)


def test_a_link_to_nowhere(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "blobs" / "1234")
    assert "model.safetensors is a link to a file that is missing" in refusal(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer.model"])
def test_a_git_lfs_pointer(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    assert f"{name} is a git-lfs pointer" in refusal(folder)
    assert "git lfs pull" in refusal(folder)


def test_a_shard_that_is_a_git_lfs_pointer(folder: Path) -> None:
    shard(folder)
    (folder / SHARDS[1]).write_text(POINTER)
    assert f"{SHARDS[1]} is a git-lfs pointer" in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, b"\0" * 999, b"x" * 999, struct.pack("<Q", 12) + b'{"a": nope} ' + b"\0" * 50]
)
def test_weights_that_are_no_safetensors(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    message = refusal(folder)
    assert "model.safetensors is no whole safetensors file" in message
    assert f"{len(content)} bytes" in message


@pytest.mark.parametrize("left", [9, 200, -1])
def test_weights_that_are_cut_short(folder: Path, left: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:left])
    assert "model.safetensors is no whole safetensors file" in refusal(folder)


def test_a_header_that_promises_other_sizes(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size].replace(b'"data_offsets":[0,', b'"data_offsets":[4,')
    (folder / WEIGHTS).write_bytes(content[:8] + header + content[8 + size :])
    assert "model.safetensors is no whole safetensors file" in refusal(folder)


def test_a_shard_is_missing(folder: Path) -> None:
    shard(folder)
    (folder / SHARDS[1]).unlink()
    assert f"{SHARDS[1]} is missing, which {INDEX} names" in refusal(folder)


def test_an_index_that_names_what_its_shards_dont_hold(folder: Path) -> None:
    place = shard(folder)
    index(folder, {**place, "model.ghost.weight": SHARDS[0]})
    assert f"{SHARDS[0]} doesn't hold model.ghost.weight" in refusal(folder)
    name = "model.embed_tokens.weight"
    index(folder, {**place, name: SHARDS[1]})
    assert f"{SHARDS[1]} doesn't hold {name}" in refusal(folder)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    place = shard(folder)
    name = next(iter(place))
    both = [load_file(folder / file) for file in SHARDS]
    save_file({**both[1], name: both[0][name]}, folder / SHARDS[1])
    assert f"{name} is both in {SHARDS[0]} and in {SHARDS[1]}" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "can't be read"),
        ("[]", "holds no JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "puts a into 1, which is no file of this folder"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "puts a into ../b.safetensors, which is no file of this folder"),
    ],
)
def test_an_index_that_is_garbled(folder: Path, text: str, reason: str) -> None:
    shard(folder)
    (folder / INDEX).write_text(text)
    assert f"{INDEX} {reason}" in refusal(folder)


# --- config.json -----------------------------------------------------------------------------------


def test_without_a_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing; name a folder with a model" in refusal(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "config.json is missing; the folder holds an adapter" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{ nope", b"\xff\xfe\0", b'{"a": 1, "a": 1}', b"[]", b"null", b'"text"'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_that_is_garbled(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert f"model.path=here: {name} " in refusal(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": None},
        {"model_type": "nothing-like-it"},
        {"model_type": "bert-generation-of-tomorrow"},
        pytest.param({"model_type": "t5"}, marks=pytest.mark.slow),  # transformers then lists all that it knows
        {"num_attention_heads": 0},
        {"num_attention_heads": "four"},
        {"hidden_size": -16},
        {"hidden_act": "no such function"},
        {"vocab_size": 1.5},
    ],
)
def test_a_configuration_that_is_of_no_model(folder: Path, changed: dict[str, Any]) -> None:
    configure(folder, **changed)
    assert "config.json describes no causal language model" in refusal(folder)


@pytest.mark.parametrize("named", [None, [], "Qwen2ForCausalLM", ["LlamaForCausalLM"], ["Qwen2Model"]])
def test_a_model_that_an_engine_would_take_for_another(folder: Path, named: Any) -> None:
    """transformers goes by the one field, vLLM by the other."""
    configure(folder, architectures=named)
    message = refusal(folder)
    assert f"config.json has architectures={named}, by which an engine loads" in message
    assert message.endswith('a Qwen2ForCausalLM\'s; if they are, set "architectures": ["Qwen2ForCausalLM"] there')


def test_a_model_of_texts_and_pictures_is_named_by_all_of_it() -> None:
    config = SimpleNamespace(architectures=["Qwen3_5ForConditionalGeneration"], get_text_config=lambda decoder: None)
    assert _named(config, "Qwen3_5ForCausalLM")
    config.get_text_config = lambda decoder: config
    assert not _named(config, "Qwen3_5ForCausalLM")


@pytest.mark.parametrize("value", ["x", ["x"], 1.5, True, {"id": 1}])
def test_ids_that_no_engine_can_stop_on(folder: Path, value: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert f"generation_config.json: eos_token_id is {value!r}, and it has to be a token's id" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_folder_in_a_files_place(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert f"{name} is a folder, and a file is needed" in refusal(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
@pytest.mark.parametrize(("content", "why"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff{{", "can't be read")])
def test_a_chat_template_that_is_damaged(folder: Path, name: str, content: bytes, why: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    assert f"{Path(name).name} {why}" in refusal(folder)


def test_quantised_weights(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "config.json says that the weights are quantised" in refusal(folder)


# --- tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_a_tensor_is_missing(folder: Path, name: str) -> None:
    tensors(folder, without(name))
    assert f"{WEIGHTS}: {name} of the Qwen2ForCausalLM in config.json is missing" in refusal(folder)


def test_a_head_of_its_own_is_missing(llama: Path) -> None:
    tensors(llama, without("lm_head.weight"))
    message = refusal(llama)
    assert "lm_head.weight of the LlamaForCausalLM in config.json is missing" in message
    assert "tie_word_embeddings=true" in message


def test_a_head_that_should_be_the_embedding_and_differs(folder: Path) -> None:
    """transformers would keep it, and vLLM would leave it out: learner and engine would be two models."""
    tensors(folder, lambda held: {**held, "lm_head.weight": held["model.embed_tokens.weight"] + 1})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(folder)


@pytest.mark.parametrize(("layers", "where"), [(3, "missing"), (1, "not of the Qwen2ForCausalLM")])
def test_another_number_of_layers(folder: Path, layers: int, where: str) -> None:
    configure(folder, num_hidden_layers=layers, layer_types=None)
    message = refusal(folder)
    assert where in message
    assert "(and 11 more)" in message


def test_a_tensor_of_another_model(folder: Path) -> None:
    tensors(folder, lambda held: {**held, "v_head.weight": torch.zeros(3)})
    assert f"{WEIGHTS}: v_head.weight is not of the Qwen2ForCausalLM" in refusal(folder)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"vocab_size": VOCABULARY + 3}, "model.embed_tokens.weight"),
        ({"intermediate_size": 32}, "mlp"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj"),
    ],
)
def test_shapes_that_arent_the_configurations(folder: Path, changed: dict[str, int], name: str) -> None:
    configure(folder, **changed)
    message = refusal(folder)
    assert name in message
    assert "has shape" in message


def test_numbers_that_are_no_weights(folder: Path) -> None:
    tensors(folder, lambda held: {**held, "model.norm.weight": torch.zeros(SIZES["hidden_size"], dtype=torch.int8)})
    assert f"{WEIGHTS}: model.norm.weight has type I8" in refusal(folder)


# --- random weights --------------------------------------------------------------------------------


def test_a_file_without_a_tensor(folder: Path) -> None:
    save_file({}, folder / WEIGHTS)
    assert refusal(folder) == "model.path=here: model.safetensors holds no tensors; download it again"


def test_values_that_no_training_leaves_behind(folder: Path) -> None:
    """A file that was made as large as it will be, and then not filled."""
    held = load_file(folder / WEIGHTS)
    embedding, norm = "model.embed_tokens.weight", "model.norm.weight"
    for name, value, why in (
        (embedding, 0.0, f"{embedding} is zeros throughout"),
        (norm, float("nan"), f"{norm} has values that are no numbers"),
        (norm, float("inf"), f"{norm} has values that are no numbers"),
    ):
        save_file({**held, name: torch.full_like(held[name], value)}, folder / WEIGHTS)
        with pytest.raises(UserError, match=f"^model.path={folder}: {why}; the weights are damaged; download them"):
            Policy.from_folder(folder, seed=0, dtype="float32")


def test_a_layer_that_was_never_filled(folder: Path) -> None:
    """The end of a file that was made as large as it will be: its values are numbers, and no model's."""
    held = load_file(folder / WEIGHTS)
    last = {name: torch.zeros_like(value) if ".1." in name else value for name, value in held.items()}
    save_file(last, folder / WEIGHTS)
    with pytest.raises(UserError, match=r": model\.layers\.1 is zeros throughout; the weights are damaged; download"):
        loaded_policy(folder)
    new = {name: torch.zeros_like(value) if "1.mlp.down" in name else value for name, value in held.items()}
    save_file(new, folder / WEIGHTS)
    assert loaded_policy(folder).head.any(), "a single matrix of zeros is how layers are added"


@pytest.mark.parametrize("changed", [{"rms_norm_eps": -1.0}, {"rms_norm_eps": float("nan")}])
def test_a_configuration_that_computes_no_numbers(folder: Path, changed: dict[str, float]) -> None:
    configure(folder, **changed)
    with pytest.raises(UserError, match=r"Qwen2ForCausalLM: its logits are no numbers; its config\.json or"):
        loaded_policy(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"_attn_implementation": "eager"},
        {"attn_implementation": "flash_attention_2"},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"return_dict": False},
        {"transformers_weights": "other.safetensors"},
    ],
)
def test_what_is_no_matter_of_the_model_is_left_out(folder: Path, changed: dict[str, Any]) -> None:
    plain = loaded_policy(folder)
    configure(folder, **changed)
    assert check_folder(folder, "model.path=here") == VOCABULARY
    assert torch.equal(loaded_policy(folder).head, plain.head)


def test_nobody_elses_folder_is_filled_with_random_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        loaded_policy(folder)


def test_a_skeleton_is_no_model_to_start_from(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / MARKER).write_text("")
    assert "a run started here from random weights; name one of its checkpoints" in refusal(folder)
