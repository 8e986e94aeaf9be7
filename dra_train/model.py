"""DRA: Dual Relation Alignment for composed image retrieval, the whole model in one file.

Read downwards: the configuration, attention, the vision compositor (TAC), the Combiner, and the model that
joins them with the two towers. Shapes: N examples, D embedding width, T tokens an image, C channels of the
last feature map, L text tokens.

The method is the paper's (arXiv 2309.02169) as far as its abstract and its authors' later work (CaLa, arXiv
2405.19149) tell it, so this is a reconstruction; docs/method.md marks what comes from where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from dra_runtime.errors import CheckpointError
from dra_runtime.preprocess import Preprocess
from dra_train.vocabulary import END_TOKEN

COMPOSITORS = ("combiner", "sum")
IMAGE_STAGES = ("last", "all")

_NOT_CLIPS_TEXT = "the text tower must be CLIP's: causal, pooled at the end-of-text token, projected"


@dataclass(frozen=True)
class DRAConfig:
    """What it takes to rebuild a model: plain values only, so that it travels inside a checkpoint."""

    clip: Mapping[str, Any]  #: an open_clip model config: embed_dim, vision_cfg, text_cfg, optionally quick_gelu
    preprocess: Preprocess
    backbone: str = "custom"  #: the config's name, for people
    image_stages: str = "last"  #: a CNN's image feature: of its "last" stage, or of "all": see `StageProjection`
    tac_layers: int = 4  #: how often the reference attends; 0 leaves the vision compositor out
    tac_heads: int = 1
    share_layers: bool = True  #: one set of attention weights for all layers of a stream
    share_streams: bool = False  #: one set for both streams; then relate(r, t) equals relate(t, r)
    augmentation: str = "scaled"  #: how F_v joins F_c: "sum" (literal) or "scaled" (F_v brought to F_c's length)
    compositor: str = "combiner"  #: what joins image and text: "combiner", or "sum" (plain CLIP, nothing to learn)
    combiner_projection: int = 0  #: width of each projected feature; 0 means 4 D, CLIP4Cir's ratio
    combiner_hidden: int = 0  #: width of the Combiner's hidden layer; 0 means 8 D, CLIP4Cir's ratio
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.augmentation not in ("sum", "scaled"):
            raise CheckpointError(f"augmentation {self.augmentation!r} is unknown; use 'sum' or 'scaled'")
        if self.compositor not in COMPOSITORS:
            raise CheckpointError(f"compositor {self.compositor!r} is unknown; use {' or '.join(COMPOSITORS)}")
        if self.image_stages not in IMAGE_STAGES:
            raise CheckpointError(f"image_stages {self.image_stages!r} is unknown; use {' or '.join(IMAGE_STAGES)}")
        if self.tac_layers < 0 or self.tac_heads < 1 or self.dim % self.tac_heads:
            raise CheckpointError(
                f"{self.tac_layers} TAC layers with {self.tac_heads} heads don't fit width {self.dim}"
            )

    @property
    def dim(self) -> int:
        """Width D of the embedding."""
        return int(self.clip["embed_dim"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back."""
        plain = asdict(self)
        plain["preprocess"] = self.preprocess.to_dict()
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DRAConfig:
        """Rebuild a configuration; CheckpointError names what is unknown or missing."""
        try:
            return cls(**{**values, "preprocess": Preprocess.from_dict(values["preprocess"])})
        except (TypeError, KeyError) as error:
            raise CheckpointError(
                f"the model configuration doesn't fit this version of the toolkit: {error}"
            ) from error


class Attention(nn.Module):
    """Multi-head attention written out, so that it trains, traces and exports as the same plain operations."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        for linear in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Attend from ``query`` (N, Q, D) to ``key_value`` (N, K, D); returns (N, Q, D)."""

        def split(x: Tensor) -> Tensor:  # (N, S, D) -> (N, heads, S, D / heads)
            return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q(query)), split(self.k(key_value)), split(self.v(key_value))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TwinAttentionCompositor(nn.Module):
    """The vision compositor (TAC): relates two images' local features, each attending to the other.

    Stream 1 starts as ``o = attend(R, T)`` and goes on as ``o = attend(R, o)``; stream 2 exchanges R and T.
    The relation is the mean of the two class tokens. No residuals, norms or feed-forward (CaLa's code). The
    class token is learned; CaLa's is fresh noise at every call, which makes the relation irreproducible.
    """

    def __init__(self, dim: int, layers: int, heads: int, share_layers: bool, share_streams: bool) -> None:
        super().__init__()
        self.layers = layers
        self.class_token = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.streams = nn.ModuleList(
            nn.ModuleList(Attention(dim, heads) for _ in range(1 if share_layers else layers))
            for _ in range(1 if share_streams else 2)
        )

    def forward(self, reference_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """Relate two images' tokens (N, T, D) each; returns relation_features F_v (N, D)."""
        class_token = self.class_token.expand(reference_tokens.shape[0], 1, -1)
        r = torch.cat([class_token, reference_tokens], dim=1)  # (N, 1 + T, D)
        t = torch.cat([class_token, candidate_tokens], dim=1)
        return (self._stream(self.streams[0], r, t) + self._stream(self.streams[-1], t, r)) / 2

    def _stream(self, attentions: nn.Module, query: Tensor, other: Tensor) -> Tensor:
        assert isinstance(attentions, nn.ModuleList)
        for layer in range(self.layers):
            last = layer == self.layers - 1
            # Only the class token leaves the last layer, so only its row is computed there.
            other = attentions[layer % len(attentions)](query[:, :1] if last else query, other)
        return other[:, 0]


class Combiner(nn.Module):
    """CLIP4Cir's Combiner: a learned mixture of text and image features plus a learned residual.

    Baldrati et al., "Conditioned and composed image retrieval combining and partially fine-tuning CLIP-based
    features" (CVPRW 2022). Takes raw features: their lengths carry information.
    """

    def __init__(self, dim: int, projection: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.text_projection = nn.Linear(dim, projection)
        self.image_projection = nn.Linear(dim, projection)
        self.hidden = nn.Linear(2 * projection, hidden)
        self.output = nn.Linear(hidden, dim)
        self.mixture = nn.Sequential(
            nn.Linear(2 * projection, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
            nn.Sigmoid(),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compose raw features (N, D) each into queries (N, D) of unit length."""
        a = self.dropout(F.relu(self.text_projection(text_features)))
        b = self.dropout(F.relu(self.image_projection(image_features)))
        z = torch.cat([a, b], dim=-1)  # (N, 2 * projection)
        v = self.output(self.dropout(F.relu(self.hidden(z))))  # (N, D)
        lam = self.mixture(z)  # (N, 1), between 0 (image) and 1 (text)
        return F.normalize(v + lam * text_features + (1 - lam) * image_features, dim=-1)


class FeatureSum(nn.Module):
    """The compositor of a plain CLIP: the sum of raw image and text features. It has nothing to learn."""

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compose raw features (N, D) each into queries (N, D) of unit length."""
        return F.normalize(image_features + text_features, dim=-1)


class StageProjection(nn.Module):
    """Adds to an image feature what the stages below the last saw: each channel's mean and standard deviation.

    Colour and texture live there; the last stage of a classifier is trained to ignore them, and a text may ask for
    just that ("in red", "with darker skin"). This project's addition to DRA. The mean and spread of Gatys et al.
    (CVPR 2016) and of instance normalisation, here as input of one linear layer.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        # Deep and shallow stages differ by orders of magnitude: the training images set these, see `standardize`.
        self.register_buffer("mean", torch.zeros(2 * channels))
        self.register_buffer("spread", torch.ones(2 * channels))
        self.linear = nn.Linear(2 * channels, dim, bias=False)
        nn.init.normal_(self.linear.weight, std=(2 * channels) ** -0.5)

    def forward(self, statistics: Tensor) -> Tensor:
        """Project (N, 2 * channels) statistics to (N, D)."""
        return self.linear((statistics - self.mean) / self.spread)  # type: ignore[no-any-return]

    def split(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Cut a trunk's ``pooled`` (N, P) into what the tower's head takes and the statistics."""
        width = self.mean.shape[0]
        return pooled[:, :-width], pooled[:, -width:]

    def standardize(self, statistics: Tensor) -> None:
        """Make the projection see these (M, 2 * channels) of M images as zero mean and unit spread, once for all."""
        if self.mean.any():  # a model that was trained before keeps what its weights were trained with
            return
        self.mean.copy_(statistics.mean(dim=0))
        self.spread.copy_(statistics.std(dim=0) + 1e-6)


@dataclass(frozen=True)
class FrozenFeatures:
    """What a frozen image tower gives, before anything that is trained: safe to compute once and keep."""

    pooled: Tensor = field(repr=False)  #: (N, P), what the tower's head takes, then the stages' statistics if used
    feature_map: Tensor = field(repr=False)  #: (N, T, C), local features as tokens


class DRA(nn.Module):
    """Image tower, text tower, vision compositor and Combiner."""

    def __init__(self, config: DRAConfig) -> None:
        super().__init__()
        self.config = config
        clip = CustomTextCLIP(**_without_pretrained(config.clip))
        self.visual, self.text = clip.visual, clip.text
        _check_image_tower(self.visual)
        _check_text_tower(self.text)
        self.stage_projection: StageProjection | None = None
        if config.image_stages == "all":
            self.stage_projection = StageProjection(_stage_channels(self.visual), config.dim)
        self.combiner: nn.Module = (
            FeatureSum()
            if config.compositor == "sum"
            else Combiner(
                config.dim,
                config.combiner_projection or 4 * config.dim,
                config.combiner_hidden or 8 * config.dim,
                config.dropout,
            )
        )
        if config.tac_layers:
            self.token_projection = nn.Linear(map_channels(self.visual), config.dim)
            self.tac = TwinAttentionCompositor(
                config.dim, config.tac_layers, config.tac_heads, config.share_layers, config.share_streams
            )

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of this model's images."""
        return self.config.preprocess

    @property
    def has_tac(self) -> bool:
        """Whether the model has a vision compositor."""
        return self.config.tac_layers > 0

    def image_trunk(self, image: Tensor) -> FrozenFeatures:
        """Run the part of the image tower that training freezes on ``image`` (N, 3, S, S)."""
        if self.stage_projection is None:
            return _last_stage(self.visual, image)
        with _recorded(_stage_modules(self.visual)) as maps:
            last = _last_stage(self.visual, image)
        flat = [m.flatten(2) for m in maps]  # (N, channels of the stage, positions)
        means = [m.mean(dim=-1, keepdim=True) for m in flat]
        # Not torch.var, which exports with each mean computed a second time
        centred = [m - mean for m, mean in zip(flat, means, strict=True)]
        deviations = [(d * d).mean(dim=-1, keepdim=True).sqrt() for d in centred]
        statistics = torch.cat([*means, *deviations], dim=1).flatten(1)
        return FrozenFeatures(torch.cat([last.pooled, statistics], dim=-1), last.feature_map)

    def project_image(self, pooled: Tensor) -> Tensor:
        """Turn a trunk's ``pooled`` (N, P) into raw image_features (N, D)."""
        if self.stage_projection is None:
            return self._head(pooled)
        last, statistics = self.stage_projection.split(pooled)
        return self._head(last) + self.stage_projection(statistics)  # type: ignore[no-any-return]

    def standardize(self, pooled: Tensor) -> None:
        """Scale the stages' statistics in ``pooled`` (M, P) of the training images, where the model uses them."""
        if self.stage_projection is not None:
            self.stage_projection.standardize(self.stage_projection.split(pooled)[1])

    def _head(self, pooled: Tensor) -> Tensor:
        return self.visual.head(pooled) if isinstance(self.visual, TimmModel) else pooled

    def project_tokens(self, feature_map: Tensor) -> Tensor:
        """Turn a trunk's ``feature_map`` (N, T, C) into the image_tokens (N, T, D) that TAC relates."""
        return F.relu(self.token_projection(feature_map))

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode preprocessed images (N, 3, S, S) into raw features (N, D) and tokens (N, T, D), None without TAC."""
        frozen = self.image_trunk(image)
        tokens = self.project_tokens(frozen.feature_map) if self.has_tac else None
        return self.project_image(frozen.pooled), tokens

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids (N, L), L at most the context length, into raw features (N, D).

        The tower is causal and pooled at the first end-of-text token, so what follows that token can be cut
        off without a change.
        """
        text = self.text
        x = text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]
        mask = text.attn_mask[: tokens.shape[1], : tokens.shape[1]]
        x = text.ln_final(text.transformer(x, attn_mask=mask))  # (N, L, width); len(x) would fix N in a trace
        end = (tokens == END_TOKEN).int().argmax(dim=-1)
        return x[torch.arange(x.shape[0], device=x.device), end] @ text.text_projection  # type: ignore[no-any-return]

    def relate(self, reference_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """Relate two images' tokens (N, T, D) each: relation_features F_v (N, D)."""
        return self.tac(reference_tokens, candidate_tokens)  # type: ignore[no-any-return]

    def augment(self, text_features: Tensor, relation_features: Tensor) -> Tensor:
        """Enhance F_c (N, D) with F_v (N, D), as the configuration's ``augmentation`` says."""
        if self.config.augmentation == "sum":
            return text_features + relation_features
        length: Tensor = torch.linalg.vector_norm(text_features, dim=-1, keepdim=True)
        return text_features + F.normalize(relation_features, dim=-1) * length

    def compose(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compose raw features (N, D) each into queries (N, D) of unit length."""
        return self.combiner(image_features, text_features)  # type: ignore[no-any-return]


def _last_stage(visual: nn.Module, image: Tensor) -> FrozenFeatures:
    """Run an image tower on ``image`` (N, 3, S, S): its pooled feature, and its last feature map as tokens."""
    if isinstance(visual, TimmModel):
        last = visual.trunk.forward_features(image)
        pooled = visual.trunk.forward_head(last)
        if last.ndim == 3:  # (N, prefix + T, C) from a transformer; class and register tokens stand in front
            tokens = last[:, getattr(visual.trunk, "num_prefix_tokens", 0) :]
        elif getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC":  # Swin and its kin
            tokens = last.flatten(1, 2)
        else:
            tokens = last.flatten(2).transpose(1, 2)
    elif isinstance(visual, ModifiedResNet):
        last = visual.stem(image)
        for layer in _stage_modules(visual):
            last = layer(last)
        pooled = visual.attnpool(last)  # (N, D)
        # flatten, then transpose: a plain view of NCHW as (N, T, C) would mix channels with positions.
        tokens = last.flatten(2).transpose(1, 2)
    else:
        assert isinstance(visual, VisionTransformer)
        # open_clip drops the class token, and norms and pools as the config says. The last norm tames the few
        # channels in which a ViT's residual stream is hundreds of times larger than in all others.
        pooled, tokens = visual._pool(visual.transformer(visual._embeds(image)))
        pooled = pooled @ visual.proj
    return FrozenFeatures(pooled, tokens)


def _stage_modules(visual: nn.Module) -> list[nn.Module]:
    """Return the stages of a CNN, each a module that gives a feature map (N, C, H, W)."""
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    for name in ("blocks", "stages"):  # EfficientNet and MobileNet; ConvNeXt and RegNet
        stages = getattr(trunk, name, None)
        token_based = hasattr(trunk, "num_prefix_tokens") or getattr(trunk, "output_fmt", "NCHW") != "NCHW"
        if isinstance(stages, nn.Sequential) and not token_based:  # a ViT has blocks too
            return list(stages)
    if all(hasattr(trunk, f"layer{i}") for i in (1, 2, 3, 4)):  # ResNets
        return [getattr(trunk, f"layer{i}") for i in (1, 2, 3, 4)]
    raise CheckpointError(
        f"image_stages 'all' needs a CNN with stages, and {type(trunk).__name__} has none that are known; "
        "use 'last' (--set model.image_stages=last)"
    )


def _stage_channels(visual: nn.Module) -> int:
    """Return the channels of all stages of a CNN, counted on a small blank picture."""
    training = visual.training
    visual.eval()
    with torch.no_grad(), _recorded(_stage_modules(visual)) as maps:
        blank = torch.zeros(1, 3, 64, 64)
        if isinstance(visual, TimmModel):
            visual.trunk.forward_features(blank)
        else:
            assert isinstance(visual, ModifiedResNet)
            nn.Sequential(*_stage_modules(visual))(visual.stem(blank))
    visual.train(training)
    return sum(m.shape[1] for m in maps)


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what ``modules`` return while the context lasts, in the order of their calls."""
    outputs: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for m in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def map_channels(visual: nn.Module) -> int:
    """Return the channels C of an image tower's last feature map."""
    if isinstance(visual, TimmModel):
        return int(visual.trunk.num_features)
    if isinstance(visual, ModifiedResNet):
        return int(visual.attnpool.k_proj.in_features)
    if isinstance(visual, VisionTransformer):
        return int(visual.ln_post.normalized_shape[0])
    raise CheckpointError(f"image tower {type(visual).__name__} isn't supported; use a ResNet, ViT or timm config")


def _check_image_tower(visual: nn.Module) -> None:
    """Refuse a ViT whose pooled feature and patch tokens can't be told apart."""
    if isinstance(visual, VisionTransformer) and (visual.attn_pool is not None or visual.pool_type == "none"):
        raise CheckpointError(
            "a ViT with attentional pooling or none keeps no token a patch, which TAC needs; use pool_type tok or avg"
        )


def _check_text_tower(text: nn.Module) -> None:
    """Refuse a text tower that can't be cut after its end-of-text token without a change."""
    end = -1  # of this tower: the largest id, or the one that it names; it must be CLIP's
    if isinstance(text, TextTransformer) and text.attn_mask is not None and text.cls_emb is None:
        end = {"argmax": text.vocab_size - 1, "eos": text.eos_id}.get(text.pool_type, -1)
    if end != END_TOKEN or not isinstance(text.text_projection, Tensor):
        raise CheckpointError(_NOT_CLIPS_TEXT)


def _without_pretrained(clip: Mapping[str, Any]) -> dict[str, Any]:
    """Return constructor arguments that never make open_clip download anything: a checkpoint brings its own."""
    if clip["text_cfg"].get("hf_model_name"):
        raise CheckpointError(f"{_NOT_CLIPS_TEXT}; found {clip['text_cfg']['hf_model_name']!r}")
    return {
        "embed_dim": clip["embed_dim"],
        "vision_cfg": {**clip["vision_cfg"], "timm_model_pretrained": False},
        "text_cfg": dict(clip["text_cfg"]),
        "quick_gelu": bool(clip.get("quick_gelu", False)),
    }
