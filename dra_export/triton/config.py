"""Triton's config.pbtxt as text: what a model takes and gives, how it is batched, where it runs, how it warms up.

The format is protobuf's text format of `ModelConfig`
(https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "bytes": "TYPE_STRING"}
ANY = -1  #: a free dimension


@dataclass(frozen=True)
class Tensor:
    """An input or output; ``dims`` has no batch dimension."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Warmup:
    """One warm-up request: a batch of one sample, taken again and again; ``files`` names each input's in warmup/."""

    name: str
    batch: int
    files: Mapping[str, str]
    dims: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelConfig:
    """What config.pbtxt says of one model."""

    name: str
    backend: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int = 1
    instances: int = 1
    gpu: bool = False
    profiles: tuple[int, ...] = ()  #: TensorRT's optimization profiles to choose from
    parameters: Mapping[str, str] = field(default_factory=dict)
    warmups: tuple[Warmup, ...] = ()


def config_text(config: ModelConfig) -> str:
    """Return the config.pbtxt of a model."""
    dtypes = {tensor.name: tensor.dtype for tensor in config.inputs}
    lines = [
        f"name: {_quoted(config.name)}",
        f"backend: {_quoted(config.backend)}",
        f"max_batch_size: {config.max_batch}",
        *(f"input {_tensor(tensor)}" for tensor in config.inputs),
        *(f"output {_tensor(tensor)}" for tensor in config.outputs),
        f"instance_group [ {{ count: {config.instances} kind: {'KIND_GPU' if config.gpu else 'KIND_CPU'}"
        + (f" profile: [ {', '.join(_quoted(str(p)) for p in config.profiles)} ]" if config.profiles else "")
        + " } ]",
        "# Requests that wait while others run are taken together; none waits for company.",
        "dynamic_batching { }",
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in config.parameters.items()
        ),
    ]
    for warmup in config.warmups:
        lines += [f"model_warmup {{ name: {_quoted(warmup.name)} batch_size: {warmup.batch}"]
        for name, file in warmup.files.items():
            value = (
                f"data_type: {TYPES[dtypes[name]]} dims: {_dims(warmup.dims[name])} input_data_file: {_quoted(file)}"
            )
            lines.append(f"  inputs {{ key: {_quoted(name)} value {{ {value} }} }}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor) -> str:
    return f"{{ name: {_quoted(tensor.name)} data_type: {TYPES[tensor.dtype]} dims: {_dims(tensor.dims)} }}"


def _dims(dims: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, dims))} ]"


def _quoted(text: str) -> str:
    return json.dumps(text)  # escapes as protobuf's text format reads them
