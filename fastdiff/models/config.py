"""The configuration of a UNet: diffusers' UNet2DModel keys and defaults, and three of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}

# The keys that diffusers does not know, and the values at which nothing is lost without them.
OWN_KEYS = {"residual_scale": 1.0, "num_attention_heads": None, "time_feature_channels": None}

Count = int  # 1 or more
Positive = float  # above 0
_FITS: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "Count": lambda value: _FITS["int"](value) and value > 0,
    "float": lambda value: isinstance(value, float) or _FITS["int"](value),
    "Positive": lambda value: _FITS["float"](value) and value > 0,
    "tuple[str, ...]": lambda value: _is_tuple_of("str", value),
    "tuple[Count, ...]": lambda value: _is_tuple_of("Count", value),
    "tuple[Count, Count]": lambda value: _is_tuple_of("Count", value) and len(value) == 2,
}


@dataclass(frozen=True)
class UNetConfig:
    """What a `UNet` is built from: keys, meanings and defaults of diffusers' UNet2DModel.

    Three keys are fastdiff's own, and diffusers knows nothing of them:

    - `residual_scale`: multiplies every residual sum; 1/sqrt(2) in Song et al.,
      "Score-Based Generative Modeling through SDEs", section 4.4. `mid_block_scale_factor`
      divides the sums of the middle block alone, as in diffusers.
    - `num_attention_heads`: that many heads at every resolution, however wide; it takes the place
      of `attention_head_dim`, the channels of one head (None: one head over all channels).
    - `time_feature_channels`: sines and cosines of t, where they are not as many as the first
      block's channels; so in ADM's 512x512 model.

    Raises ValueError, naming the key, for values that the UNet does not know.
    """

    sample_size: Count | tuple[Count, Count] | None = None
    in_channels: Count = 3
    out_channels: Count = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: Count | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    block_out_channels: tuple[Count, ...] = (224, 448, 672, 896)
    layers_per_block: Count = 2
    mid_block_scale_factor: Positive = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: Count | None = 8
    norm_num_groups: Count = 32
    attn_norm_num_groups: Count | None = None
    norm_eps: Positive = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: Count | None = None
    num_train_timesteps: Count | None = None
    residual_scale: float = 1.0
    num_attention_heads: Count | None = None
    time_feature_channels: Count | None = None

    def __post_init__(self) -> None:
        self._check_types()
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; fastdiff's UNet knows {_listed(choices)}.")
        self._check_levels()
        self._check_channels()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Make a config of a diffusers config.json's content; lists become tuples.

        Keys that begin with "_" and unknown keys that are None are passed over; any other unknown
        key raises ValueError.
        """
        known = {field.name for field in fields(cls)}
        foreign = [
            key
            for key, value in config.items()
            if key not in known and not key.startswith("_") and value is not None
        ]
        if foreign:
            raise ValueError(
                f"fastdiff's UNet does not know the config key {foreign[0]!r} "
                f"(its value is {config[foreign[0]]!r}); remove it if it means nothing."
            )
        kept: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in config.items()
            if key in known
        }
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        """Return the diffusers keys, and of our own keys those that are not at their defaults."""
        config = asdict(self)
        for own, default in OWN_KEYS.items():
            if config[own] == default:
                del config[own]
        return config

    @property
    def down_factor(self) -> int:
        """How many times smaller the lowest resolution is; images are multiples of it."""
        return 1 << (len(self.block_out_channels) - 1)

    @property
    def time_embed_dim(self) -> int:
        """The channels of the embedding of t and class that every residual block reads."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def time_channels(self) -> int:
        """How many sines and cosines of t the time embedding begins with."""
        return self.time_feature_channels or self.block_out_channels[0]

    @property
    def takes_classes(self) -> bool:
        """Whether the UNet is called with class labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def num_classes(self) -> int | None:
        """How many class labels there are; None without a table of classes."""
        return self.num_class_embeds if self.class_embed_type is None else None

    def heads(self, channels: int) -> int:
        """The number of attention heads where the feature map has `channels` channels."""
        heads, rest = self.num_attention_heads, channels % (self.num_attention_heads or 1)
        if heads is None:
            head_dim = self.attention_head_dim or channels
            heads, rest = channels // head_dim, channels % head_dim
        if heads < 1 or rest:
            raise ValueError(
                f"Attention over {channels} channels cannot be split into whole heads: "
                f"attention_head_dim is {self.attention_head_dim}, "
                f"num_attention_heads is {self.num_attention_heads}; choose divisors of {channels}."
            )
        return heads

    def _check_types(self) -> None:
        for field in fields(self):
            value, hint = getattr(self, field.name), str(field.type)
            if not any(_FITS[kind](value) for kind in hint.split(" | ")):
                expected = hint.replace("Count", "int above 0").replace("Positive", "float above 0")
                raise ValueError(f"{field.name} is {value!r}; fastdiff's UNet takes {expected}.")

    def _check_levels(self) -> None:
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            blocks = getattr(self, name)
            if len(blocks) != levels or levels == 0:
                raise ValueError(
                    f"{name} lists {len(blocks)} blocks and block_out_channels {levels}; "
                    f"give one of each for every resolution."
                )
            for block in blocks:
                if block not in known:
                    raise ValueError(
                        f"{name} holds {block!r}; fastdiff's UNet knows {_listed(known)}."
                    )

    def _check_channels(self) -> None:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels holds {channels}, which norm_num_groups "
                    f"{self.norm_num_groups} does not divide; choose a multiple."
                )
        if self.time_channels // 2 <= self.freq_shift:
            raise ValueError(
                f"freq_shift is {self.freq_shift}; with {self.time_channels} channels in "
                f"the first block it has to be below {self.time_channels // 2}."
            )
        if self.time_embedding_type == "learned" and not self.num_train_timesteps:
            raise ValueError(
                "time_embedding_type 'learned' needs num_train_timesteps, the size of its table."
            )


def _is_tuple_of(kind: str, value: Any) -> bool:
    return isinstance(value, tuple) and all(_FITS[kind](item) for item in value)


def _listed(choices: tuple[Any, ...]) -> str:
    return ", ".join(repr(choice) for choice in choices)
