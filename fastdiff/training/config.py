"""What a training run is made of: every setting once, with its default and what it means."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdiff.schedules import NoiseSchedule


def _setting(
    default: Any, section: str, help: str, *choices: str, least: float | None = None
) -> Any:
    """A setting with what the command line tells of it; `least` is the smallest it may be."""
    told = {"section": section, "help": help, "choices": choices, "least": least}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run: everything that decides its result, beside the data.

    `batch_size` images make one step, however many ranks share them out and in however many parts
    (`accumulate`) each takes its own. `hold_out` images at the end of the data are never trained
    on. The first of `ema_decays` is the model that is drawn from and validated.

    Raises ValueError, naming the setting, for a value that does not fit.
    """

    data: str = field(metadata={"section": ""})

    hold_out: int = _setting(0, "Data", "Images at the end kept for validation.", least=0)
    image_size: int = _setting(
        0, "Data", "Scale and crop images to this square; 0 takes them as they are.", least=0
    )
    class_conditional: bool = _setting(True, "Data", "Learn the labels of the data.")
    label_dropout: float = _setting(
        0.0, "Data", "Share of labels hidden, for guidance without a classifier.", least=0
    )
    horizontal_flips: bool = _setting(False, "Data", "Mirror half of the images.")

    timesteps: int = _setting(1000, "Diffusion", "T, the number of noise levels.", least=1)
    schedule: str = _setting(
        "linear", "Diffusion", "Of the noise; learned: with the model, by the bound.",
        "linear", "cosine", "learned",
    )  # fmt: skip
    prediction_type: str = _setting(
        "epsilon", "Diffusion", "What the model predicts.", "epsilon", "x_start", "v"
    )
    variance_type: str = _setting(
        "fixed_small", "Diffusion", "Of the reverse steps; learned: by the model.",
        "fixed_small", "fixed_large", "learned", "learned_range",
    )  # fmt: skip

    channels: int = _setting(128, "Model", "Channels at full resolution.", least=1)
    multipliers: tuple[int, ...] = _setting((1, 2, 2, 2), "Model", "Of channels, one a resolution.")
    blocks: int = _setting(2, "Model", "Residual blocks a resolution.", least=1)
    attention_resolutions: tuple[int, ...] = _setting((16,), "Model", "Image sizes with attention.")
    groups: int = _setting(32, "Model", "Groups of each normalisation.", least=1)
    dropout: float = _setting(0.0, "Model", "In residual blocks.", least=0)

    objective: str = _setting(
        "simple", "Loss", "L_simple, L_simple + vlb_weight L_vlb, or L_vlb.",
        "simple", "hybrid", "vlb",
    )  # fmt: skip
    rescaled: bool = _setting(False, "Loss", "L_vlb times T, as improved-diffusion rescales it.")
    vlb_weight: float = _setting(0.001, "Loss", "Of L_vlb in hybrid.", least=0)
    weighting: str = _setting("uniform", "Loss", "Of L_simple by timestep.", "uniform", "min_snr")
    min_snr_gamma: float = _setting(5.0, "Loss", "Bound on the SNR that weighs.", least=0)
    timestep_sampler: str = _setting(
        "uniform", "Loss", "How timesteps are drawn.", "uniform", "loss_second_moment"
    )

    steps: int = _setting(100_000, "Optimiser", "Train up to this step.", least=1)
    batch_size: int = _setting(128, "Optimiser", "Images a step, over all ranks.", least=1)
    accumulate: int = _setting(1, "Optimiser", "Parts each rank takes its images in.", least=1)
    learning_rate: float = _setting(2e-4, "Optimiser", "Of AdamW.")
    warmup_steps: int = _setting(500, "Optimiser", "Steps of rising learning rate.", least=0)
    weight_decay: float = _setting(0.0, "Optimiser", "Of AdamW, on every weight.", least=0)
    gradient_clip: float = _setting(1.0, "Optimiser", "Largest norm of the gradient.")
    ema_decays: tuple[float, ...] = _setting((0.9999,), "Optimiser", "Averages; a model each.")
    skip_limit: int = _setting(
        10, "Optimiser", "Steps in a row without a finite loss that end the run.", least=1
    )
    seed: int = _setting(0, "Optimiser", "Of weights, order, noise and all else drawn.", least=0)

    precision: str = _setting(
        "float32", "Speed and memory", "bf16: by autocast, weights in float32.", "float32", "bf16"
    )
    checkpoint_activations: bool = _setting(
        False, "Speed and memory", "Less memory for a third more time."
    )
    compile: bool = _setting(False, "Speed and memory", "Compile the model by torch.compile.")

    save_every: int = _setting(1000, "Files", "Steps between checkpoints.", least=1)
    keep: int = _setting(2, "Files", "How many checkpoints are kept.", least=1)
    sample_every: int = _setting(5000, "Files", "Steps between grids of samples.", least=1)
    validate_every: int = _setting(5000, "Files", "Steps between validations.", least=1)

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            _check(setting, getattr(self, setting.name))
        for name in ("learning_rate", "gradient_clip", "min_snr_gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("label_dropout", "dropout"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not self.ema_decays or not all(0 <= decay < 1 for decay in self.ema_decays):
            raise ValueError(f"ema_decays are {self.ema_decays}; give one or more in [0, 1)")
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"ema_decays are {self.ema_decays}; give each once")
        self._check_together()

    def _check_together(self) -> None:
        if self.learns_variance and self.objective == "simple":
            raise ValueError(
                f"variance_type {self.variance_type} gets no gradient from objective simple; "
                "take objective hybrid or vlb"
            )
        if self.objective == "hybrid" and not self.learns_variance:
            raise ValueError(
                f"objective hybrid trains a learned variance and variance_type is "
                f"{self.variance_type}; take learned_range, or objective simple or vlb"
            )
        plain = (self.objective, self.prediction_type, self.variance_type)
        if self.schedule == "learned" and plain != ("vlb", "epsilon", "fixed_small"):
            raise ValueError(
                f"schedule learned is trained by the bound of an epsilon model, and the run has "
                f"{', '.join(plain)}; take objective vlb, prediction_type epsilon and "
                "variance_type fixed_small"
            )
        if self.label_dropout and not self.class_conditional:
            raise ValueError(
                f"label_dropout is {self.label_dropout} in a run without labels; leave one out"
            )

    @property
    def learns_variance(self) -> bool:
        """Whether the model has a second half of output channels."""
        return self.variance_type.startswith("learned")

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule by its name; the linear one, near which a learned one begins."""
        from fastdiff.schedules import NoiseSchedule

        if self.schedule == "cosine":
            return NoiseSchedule.cosine(self.timesteps)
        return NoiseSchedule.linear(self.timesteps)

    def save(self, path: Path) -> None:
        """Write the settings as YAML."""
        import yaml

        from fastdiff._files import write_whole

        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        with write_whole(path) as unfinished:
            Path(unfinished).write_text(
                yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
            )

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what `save` wrote; ValueError, with the file's name, for anything else."""
        try:
            return cls(**read_settings(path))
        except TypeError as error:
            raise ValueError(f"{path} is no training configuration: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, lists as tuples; ValueError for an unknown one."""
    import yaml

    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no training configuration: {reason}") from error
    if not isinstance(read, Mapping):
        raise ValueError(f"{path} is no training configuration: it holds no settings by name")
    kinds = {setting.name: str(setting.type) for setting in dataclasses.fields(TrainConfig)}
    unknown = [str(name) for name in read if name not in kinds]
    if unknown:
        raise ValueError(f"{path} sets {unknown[0]}, which fastdiff train does not know")
    return {name: _from_yaml(kinds[name], value) for name, value in read.items()}


def _from_yaml(kind: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_yaml(kind, part) for part in value)
    if "float" in kind and isinstance(value, str):  # YAML takes 2e-4 for a text
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _check(setting: dataclasses.Field[Any], value: Any) -> None:
    """ValueError for a value of the wrong type, no choice, or below the least."""
    kind = str(setting.type)
    parts = value if kind.startswith("tuple") else (value,)
    if not isinstance(parts, tuple) or not all(_is_a(kind, part) for part in parts):
        raise ValueError(f"{setting.name} is {value!r}; it must be of type {kind}")
    choices, least = setting.metadata.get("choices"), setting.metadata.get("least")
    if choices and value not in choices:
        raise ValueError(f"{setting.name} {value!r} is not one of {', '.join(choices)}")
    if least is not None and not value >= least:
        raise ValueError(f"{setting.name} is {value}; it must be at least {least}")


def _is_a(kind: str, value: Any) -> bool:
    if "bool" in kind or isinstance(value, bool):
        return "bool" in kind and isinstance(value, bool)
    if "float" in kind:
        return isinstance(value, float | int)
    return isinstance(value, int if "int" in kind else str)
