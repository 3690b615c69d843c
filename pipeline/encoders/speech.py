"""Networks that learned from speech: `--audio wav2vec2-base`, `hubert-base`, `wavlm-base`,
`whisper-tiny.en`, another name of the hub, or a folder; a Whisper's also in CTranslate2's form.

    waveform ── as the model's own feature extractor prepares it ──> the model's encoder
             ──> the mean over the clip's frames, of each layer

Clips are encoded one by one. Models that normalise over groups of channels (all the small ones
here) give other values for a clip that is padded, whatever mask is passed with it. Of a Whisper
only the encoder is kept. It always reads 30 s: only the frames that the clip fills are pooled, and
a longer clip is read in pieces.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from pipeline.encoders import ctranslate
from pipeline.encoders.audio import Sound, SoundBatch, Sounds, sines_and_cosines
from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.pruning import PrunableLayer, check_units, prune_layers, units_of
from pipeline.errors import MismatchError, UsageError
from pipeline.recipe import DecodeConfig, Precision

# One frame of wav2vec 2.0's convolutions; a shorter sound has none.
MIN_SAMPLES = 400
RATE_HZ = 16_000  # of all of these models
WHISPER_FRAMES_HZ = 50
_PIECE_SAMPLES = 30 * RATE_HZ  # that Whisper's encoder reads at once
_PIECE_FRAMES = 30 * WHISPER_FRAMES_HZ
_WHISPER_FLOOR = 1e-10  # of its spectrogram's power; its dynamic range is 8 powers of ten
_VARIANCE_FLOOR = 1e-7  # of the library's own feature extractor; silence stays silence

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
# Where a layer widens and narrows again, and where its attention is: of wav2vec 2.0 and its kin,
# and of Whisper.
_FEED_FORWARD = (("feed_forward.intermediate_dense", "feed_forward.output_dense"), ("fc1", "fc2"))
_ATTENTION = ("attention", "self_attn")
_HEADS = ("q_proj", "k_proj", "v_proj", "out_proj", "head_dim", "num_heads")
_UNITS = "pruned_units"  # what `config.json` says of a pruned one
# That a backward pass keeps of each frame and layer, as of the text encoders.
_BYTES_PER_HIDDEN = 100
_BYTES_PER_ATTENTION = 16


class SpeechSounds(Sounds):
    """A clip's waveform; clips of similar length share a batch, and each is encoded alone."""

    nothing = f"its sound is shorter than {MIN_SAMPLES} samples"

    def length(self, item: Sound) -> int:
        return len(item.waveform)


class SpeechEncoder(nn.Module):
    """The mean over time of each layer asked for.

    forward: SoundBatch -> float32 [batch, layers, dim]
    """

    batch_size: int | None = None

    def __init__(
        self, folder: Path, layers: Sequence[int], precision: Precision, *, pretrained: bool
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.preparation = SpeechSounds(min_samples=MIN_SAMPLES)
        self.model = _load(folder, getattr(torch, precision), pretrained)
        _augment_nothing(self.model)
        self.reading = _reading_of(folder, self.model)

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)

    def forward(self, batch: SoundBatch) -> Tensor:
        return torch.stack([self._encode(sound.waveform) for sound in batch.sounds])

    def _encode(self, waveform: Tensor) -> Tensor:
        """float32 [samples] -> [layers, dim]"""
        total, frames = torch.zeros((), device=waveform.device), 0
        for values, count in self.reading.pieces(waveform):
            hidden = self.model(
                values.to(next(self.model.parameters()).dtype), output_hidden_states=True
            ).hidden_states
            kept = torch.stack([hidden[layer][0] for layer in self.layers]).float()
            kept = kept[:, :count]  # [layers, frames, dim]
            total, frames = total + kept.sum(1), frames + kept.shape[1]
        return total / frames

    def layer_depths(self) -> dict[str, int]:
        """0 the convolutions and positions, layer i at i + 1, what is above all at the top."""
        paths = [
            path
            for path, value in self.named_parameters()
            if value.requires_grad and "masked_spec_embed" not in path
        ]
        numbered = {
            path: int(found.group(1)) + 1 for path in paths if (found := _LAYER.search(path))
        }
        return {path: numbered.get(path, 0) for path in paths}

    def prunable(self) -> list[PrunableLayer]:
        """Attention heads and feed-forward neurons of each layer that is built as those of wav2vec
        2.0 or Whisper are; WavLM's heads stay."""
        return _prunable(self.model)

    def prune_to(self, kept: Sequence[Sequence[int]]) -> None:
        """`config.json` then says how many units each layer has."""
        _prune_to(self.model, kept)

    def checkpoint_gradients(self) -> None:
        """About a third more time for a fraction of the memory."""
        try:
            self.model.activation_checkpointing_enable()
        except ValueError as error:
            raise UsageError(f"gradient_checkpointing: {error}") from error

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        config = self.model.config
        frames = self.reading.frames(longest)
        heads = config.num_attention_heads
        of_a_layer = _BYTES_PER_HIDDEN * config.hidden_size + _BYTES_PER_ATTENTION * frames * heads
        return float(rows * frames * config.num_hidden_layers * of_a_layer)

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        """What the library's feature extractor does with the waveform is in the graph."""
        return self.reading.graph_of(self)

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.reading.save(folder)


class WaveformReading:
    """wav2vec 2.0, HuBERT, WavLM: the waveform itself, normalised if the model was trained so."""

    def __init__(self, normalises: bool) -> None:
        self.normalises = normalises

    def pieces(self, waveform: Tensor) -> list[tuple[Tensor, int | None]]:
        """All of it: [1, samples], and every frame counts."""
        if self.normalises:
            centred = waveform - waveform.mean()
            waveform = centred / (centred.square().mean() + _VARIANCE_FLOOR).sqrt()
        return [(waveform.unsqueeze(0), None)]

    def frames(self, samples: int) -> int:
        return samples // 320 + 1

    def graph_of(self, encoder: SpeechEncoder) -> GraphSource:
        return GraphSource(
            net=_WholeSound(encoder, self),
            inputs={"waveform": torch.linspace(-1, 1, RATE_HZ)},
            lengths={"waveform": {0: "samples"}},
            outputs=("features",),
            reading={"kind": "speech", "min_samples": MIN_SAMPLES, "sample_rate_hz": RATE_HZ},
        )

    def save(self, folder: Path) -> None:
        values = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": self.normalises,
            "sampling_rate": RATE_HZ,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(values))


class WhisperReading:
    """Whisper: log-mel spectrograms of 30 s, as the library's own extractor makes them."""

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self.extractor = extractor

    def pieces(self, waveform: Tensor) -> list[tuple[Tensor, int | None]]:
        """[1, mels, 3000] of each 30 s, and how many of its 1,500 frames the sound fills. What is
        left at the end counts if it is long enough to be heard alone."""
        parts = [part for part in waveform.split(_PIECE_SAMPLES) if len(part) >= MIN_SAMPLES]
        return [
            (
                torch.from_numpy(
                    self.extractor(
                        part.cpu().numpy(), sampling_rate=RATE_HZ, return_tensors="np"
                    ).input_features
                ).to(waveform.device),
                math.ceil(len(part) * WHISPER_FRAMES_HZ / RATE_HZ),
            )
            for part in parts
        ]

    def frames(self, samples: int) -> int:
        return _PIECE_FRAMES  # whatever the sound fills of them

    def graph_of(self, encoder: SpeechEncoder) -> GraphSource:
        return GraphSource(
            net=_PieceOfSound(encoder, self.extractor),
            inputs={
                "waveform": torch.linspace(-1, 1, _PIECE_SAMPLES),
                "kept": torch.ones(_PIECE_FRAMES, dtype=torch.bool),
            },
            lengths={},
            outputs=("sum",),
            reading={
                "kind": "speech_pieces",
                "min_samples": MIN_SAMPLES,
                "sample_rate_hz": RATE_HZ,
                "piece_samples": _PIECE_SAMPLES,
                "piece_frames": _PIECE_FRAMES,
            },
        )

    def save(self, folder: Path) -> None:
        self.extractor.save_pretrained(folder)


class _WholeSound(nn.Module):
    """A graph of one clip: float32 [samples] -> [layers, dim]"""

    def __init__(self, encoder: SpeechEncoder, reading: WaveformReading) -> None:
        super().__init__()
        self.model = encoder.model
        self.layers = encoder.layers
        self.reading = reading

    def forward(self, waveform: Tensor) -> Tensor:
        [(values, _)] = self.reading.pieces(waveform)
        hidden = self.model(values, output_hidden_states=True).hidden_states
        return torch.stack([hidden[layer][0] for layer in self.layers]).mean(1)


class _PieceOfSound(nn.Module):
    """A graph of one piece: float32 [480,000] and which of its 1,500 frames count -> their sum,
    [layers, dim].

    The spectrogram is the library's, by operators that a graph has: the Fourier transform is a
    convolution with windowed sines and cosines.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, encoder: SpeechEncoder, extractor: WhisperFeatureExtractor) -> None:
        super().__init__()
        self.model = encoder.model
        self.layers = encoder.layers
        self.num_fft, self.hop = int(extractor.n_fft), int(extractor.hop_length)
        window = torch.hann_window(self.num_fft, dtype=torch.float64)
        waves = sines_and_cosines(self.num_fft) * window
        self.register_buffer("basis", waves.float().unsqueeze(1))  # [2 * bins, 1, num_fft]
        # Divided by the floor, which is then 1: the exporter takes so small a constant for zero.
        filters = torch.as_tensor(extractor.mel_filters).double().T / _WHISPER_FLOOR
        self.register_buffer("filters", filters.float().contiguous())  # [mels, bins]

    def forward(self, waveform: Tensor, kept: Tensor) -> Tensor:
        hidden = self.model(self.log_mel(waveform)[None], output_hidden_states=True).hidden_states
        layers = torch.stack([hidden[layer][0] for layer in self.layers])  # [layers, frames, dim]
        return torch.where(kept[None, :, None], layers, 0.0).sum(1)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[samples] -> [mels, samples / hop]"""
        edge = self.num_fft // 2
        before, after = waveform[1 : edge + 1].flip(0), waveform[-edge - 1 : -1].flip(0)
        padded = torch.cat([before, waveform, after])
        waves = nn.functional.conv1d(padded[None, None], self.basis, stride=self.hop)[0, :, :-1]
        real, imaginary = waves.chunk(2, dim=0)
        power = self.filters @ (real * real + imaginary * imaginary)
        log = power.clamp_min(1).log() / math.log(10) + math.log10(_WHISPER_FLOOR)
        return (torch.maximum(log, log.flatten().amax(0) - 8) + 4) / 4


def _reading_of(folder: Path, model: Any) -> WaveformReading | WhisperReading:
    path = folder / "preprocessor_config.json"
    if model.config.model_type == "whisper":
        if ctranslate.is_model(folder) and not path.is_file():  # it is often left out there
            return WhisperReading(WhisperFeatureExtractor(model.config.num_mel_bins))
        return WhisperReading(WhisperFeatureExtractor.from_pretrained(folder))
    values = {}
    if path.is_file():
        values = json.loads(path.read_text())
    if values.get("sampling_rate", RATE_HZ) != RATE_HZ:
        raise ValueError(f"it hears {values['sampling_rate']} Hz, and not {RATE_HZ}")
    return WaveformReading(bool(values.get("do_normalize", True)))


def _load(folder: Path, dtype: torch.dtype, pretrained: bool) -> Any:
    model: Any
    if ctranslate.is_model(folder):
        model = _load_converted(folder, pretrained)
        return model.to(dtype)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # A run keeps the encoder alone.
    alone = config.architectures == [WhisperEncoder.__name__]
    units = getattr(config, _UNITS, None)
    if not pretrained or units is not None:
        # Drawn in float32 and rounded: the same weights in every precision.
        model = _encoder_of(WhisperEncoder(config) if alone else AutoModel.from_config(config))
        if units is not None:
            _prune_to(model, [range(number) for number in check_units(_prunable(model), units)])
        if pretrained:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.to(dtype)
    kind: Any = WhisperEncoder if alone else AutoModel
    model, loaded = kind.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(key for key in loaded["missing_keys"] if "masked_spec_embed" not in key)
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    return _encoder_of(model)


def _augment_nothing(model: Any) -> None:
    """What the library does by itself in training is switched off. A layer that is left out
    (LayerDrop) has no features; and what is masked (SpecAugment) is drawn from NumPy's global
    generator, which no seed of a run sets."""
    model.config.apply_spec_augment = False
    for owner in (model.config, model):
        for name in ("layerdrop", "encoder_layerdrop"):
            if hasattr(owner, name):
                setattr(owner, name, 0.0)


def _prunable(model: nn.Module) -> list[PrunableLayer]:
    modules = dict(model.named_modules())
    layers = []
    for path in modules:
        for name in _ATTENTION:
            attention: Any = modules.get(f"{path}.{name}")
            # WavLM's heads have positions of their own; attention of other kinds stays as well.
            has_heads = all(hasattr(attention, part) for part in _HEADS)
            if has_heads and not hasattr(attention, "gru_rel_pos_linear"):
                layers.append(
                    PrunableLayer(
                        name=f"{path}.{name}",
                        producers=(attention.q_proj, attention.k_proj, attention.v_proj),
                        consumers=(attention.out_proj,),
                        unit=int(attention.head_dim),
                    )
                )
        for wide, narrow in _FEED_FORWARD:
            widens, narrows = modules.get(f"{path}.{wide}"), modules.get(f"{path}.{narrow}")
            if widens is not None and narrows is not None:
                layers.append(
                    PrunableLayer(name=f"{path}.{wide}", producers=(widens,), consumers=(narrows,))
                )
    return layers


def _prune_to(model: Any, kept: Sequence[Sequence[int]]) -> None:
    prune_layers(_prunable(model), kept)
    pruned = _prunable(model)
    setattr(model.config, _UNITS, units_of(pruned))
    for layer in pruned:
        if layer.unit > 1:
            model.get_submodule(layer.name).num_heads = layer.num_units


def _encoder_of(model: Any) -> Any:
    """Without Whisper's decoder."""
    whole = model.config.model_type == "whisper" and not isinstance(model, WhisperEncoder)
    return model.get_encoder() if whole else model


def _load_converted(folder: Path, pretrained: bool) -> WhisperEncoder:
    config = ctranslate.read_config(folder)
    encoder = WhisperEncoder(config)
    if pretrained:
        # Positions are not in the file: they are sines, which the library computes.
        weights = ctranslate.read_encoder(folder, config)
        positions = {"embed_positions.weight": encoder.embed_positions.weight}
        encoder.load_state_dict(weights | positions)
    return encoder


def build_speech_encoder(
    folder: Path,
    layers: Sequence[int],
    precision: Precision,
    *,
    pretrained: bool,
    sample_rate_hz: int,
) -> SpeechEncoder:
    """From a Hugging Face folder; seeded random weights of its shape where not `pretrained`.

    Raises:
        MismatchError: the folder holds no such model, or not a whole one, or one of another rate.
    """
    if sample_rate_hz != RATE_HZ:
        raise MismatchError(f"{folder}: hears {RATE_HZ} Hz; the clips are at {sample_rate_hz} Hz")
    # Loading draws progress bars and advice over our own output.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = SpeechEncoder(folder, layers, precision, pretrained=pretrained)
    except (
        *(OSError, ValueError, KeyError, RuntimeError, SafetensorError, AttributeError),
        *(TypeError, ZeroDivisionError, StrictDataclassError),  # of a config that cannot be
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MismatchError(f"{folder}: no usable speech model ({reason})") from error
    if not all(torch.isfinite(value).all() for value in encoder.model.parameters()):
        raise MismatchError(f"{folder}: holds weights that are not finite")
    return encoder.eval()
