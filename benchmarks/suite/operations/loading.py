"""From a published checkpoint on disk to a model in memory: seconds, and memory at the peak.

The checkpoint, of Qwen3-MoE's layout with tensors of the size of Qwen3-30B-A3B's, is written once into the
system's folder for temporary files and stays there. The files are in the page cache: what is measured is what
loading adds to reading.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import moeworks
from moeworks import Decoder, ModelConfig
from moeworks.config import ExpertsConfig, GQAConfig, RouterConfig
from moeworks.config.count import count_parameters
from suite.peers import required
from suite.registry import Arm, Case, Operation, Sampler, Settings, register
from suite.sampling import peak_growth, seconds_of

PLAIN = "plain read"
_DTYPES = {"bfloat16": 2, "float32": 4}
_BLOCK = 2**24


def model_config(settings: Settings) -> ModelConfig:
    """Six layers of 32 experts: 2 GB in bfloat16."""
    sizes = dict(vocab_size=16_384, d_model=2048, num_layers=6, max_seq_len=4096)
    experts, width, heads = 32, 768, 32
    if settings.quick:
        sizes, experts, width, heads = sizes | dict(vocab_size=512, d_model=128, num_layers=2), 4, 64, 2
    return ModelConfig(
        **sizes,
        tie_embeddings=False,
        attention=GQAConfig(num_heads=heads, num_kv_heads=heads // 2, head_dim=64),
        router=RouterConfig(num_experts=experts, top_k=2),
        experts=ExpertsConfig(d_expert=width),
    )


def checkpoint(settings: Settings) -> Path:
    """Its folder; written if it is not there."""
    config = model_config(settings)
    parameters = count_parameters(config).total
    folder = Path(tempfile.gettempdir()) / f"moeworks-benchmark-loading-{parameters}"
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        model = Decoder(config).bfloat16()
        moeworks.save(model, folder, family="qwen3_moe", shard_bytes=500_000_000)
    return folder


def files_of(folder: Path) -> list[Path]:
    """The safetensors files, in order."""
    return sorted(folder.glob("*.safetensors"))


def load_cases(settings: Settings) -> list[Case]:
    """To the dtype of the files, and to float32."""
    count = count_parameters(model_config(settings)).total
    return [
        Case(
            f"bfloat16 to {dtype}, {count * size / 1e9:.2f} GB",
            {"parameters": count, "dtype": dtype, "bytes": count * size},
        )
        for dtype, size in _DTYPES.items()
    ]


def _ours(folder: Path, dtype: torch.dtype) -> Any:
    return moeworks.load(folder, dtype=dtype)


def _plain(folder: Path, dtype: torch.dtype) -> None:
    """Every byte of the files, once, into the same small block."""
    block = memoryview(bytearray(_BLOCK))
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _kept(folder: Path, dtype: torch.dtype) -> list[bytes]:
    """Every byte of the files in memory of its own, which the system must hand out, as for a model."""
    return [path.read_bytes() for path in files_of(folder)]


def _load_file(folder: Path, dtype: torch.dtype) -> Any:
    """Tensors by name, every one of them read, in `dtype`."""
    load_file = required("safetensors.torch").load_file
    tensors: dict[str, torch.Tensor] = {}
    for path in files_of(folder):
        # A copy: what load_file returns are views of the mapped file, which nobody has read yet.
        tensors |= {name: t.to(dtype, copy=True) for name, t in load_file(path).items()}
    return tensors


def _transformers(folder: Path, dtype: torch.dtype) -> Any:
    auto = required("transformers").AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, trust_remote_code=False)


_WAYS: dict[str, Callable[[Path, torch.dtype], Any]] = {
    "moeworks.load": _ours,
    PLAIN: _plain,
    "plain read, kept": _kept,
    "safetensors load_file, read": _load_file,
    "transformers from_pretrained": _transformers,
}


def _seconds(load: Callable[[Path, torch.dtype], Any], case: Case, settings: Settings) -> Sampler:
    folder, dtype = checkpoint(settings), getattr(torch, case.shape["dtype"])
    _plain(folder, dtype)  # into the page cache
    return Sampler(lambda: seconds_of(partial(load, folder, dtype), settings))


def _peak(load: Callable[[Path, torch.dtype], Any], case: Case, settings: Settings) -> Sampler:
    folder, dtype = checkpoint(settings), getattr(torch, case.shape["dtype"])
    tiny = checkpoint(Settings(quick=True))

    def sample() -> float:
        grown = peak_growth(partial(load, folder, dtype), partial(load, tiny, dtype), settings)
        return grown / case.shape["bytes"]

    return Sampler(sample)


def _arms(
    build: Callable[..., Sampler], left_out: tuple[str, ...], case: Case, settings: Settings
) -> list[Arm]:
    return [
        Arm(name=name, build=partial(build, load, case, settings), ours=load is _ours)
        for name, load in _WAYS.items()
        if name not in left_out
    ]


register(
    Operation(
        name="loading",
        summary="A published checkpoint of Qwen3-MoE's layout, files in the page cache, to a model in memory",
        unit="s",
        reference=PLAIN,
        rounds=5,
        cases=load_cases,
        arms=partial(_arms, _seconds, ()),
    )
)
register(
    Operation(
        name="loading_memory",
        summary="The same: what loading adds to the peak resident memory (VmHWM), over the model's bytes",
        unit="x",
        reference=None,
        mode="fresh",
        rounds=3,
        cases=load_cases,
        arms=partial(_arms, _peak, (PLAIN,)),
    )
)
