"""Encoders by name. Another backbone is one entry here, and its own file. Several names joined by
commas are one encoder too (`several_names.py`).

Each family's library takes a second to import: only those that are asked for are.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.encoders import several_names, vector_files, weights
from pipeline.encoders.encoder import (
    AnyEncoder,
    AnyPreparation,
    EncoderChoice,
    EncoderEntry,
    EncoderWish,
    WeightsChoice,
)
from pipeline.encoders.face_finder import find_face_cascade
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig, EncoderSpec, FrameView, Precision
from pipeline.schema import Modality
from pipeline.system.building import one_builder

RANDOM_SEED = "seed 0"
# What else than the registered names may be named.
_OTHERS: dict[Modality, str] = {
    "text": "",
    "video": ", and torchvision's other image nets",
    "audio": f", {', '.join(weights.SPEECH_MODELS)}, owner/model of the hub, a folder",
}


def find_entry(modality: Modality, name: str) -> EncoderEntry:
    """Raises UsageError, which names the known, where there is no encoder of that name."""
    kind, colon, file = name.partition(":")
    entry = ENCODERS.get(kind + colon)
    is_one = several_names.SEPARATOR not in file or Path(file).exists()
    if entry is not None and entry.modality == modality and is_one:
        return entry
    if several_names.SEPARATOR in name and not Path(name).exists():
        names = several_names.split_names(modality, name)
        return several_names.join_entries(
            modality, [(each, find_entry(modality, each)) for each in names]
        )
    if modality in OPEN and OPEN[modality].knows(name):
        return OPEN[modality]
    known = (each for each, entry in ENCODERS.items() if entry.modality == modality)
    others = _OTHERS[modality]
    raise UsageError(
        f"--{modality} {name}: unknown; known are {', '.join(known)}{others}, or several joined by "
        "commas"
    )


def prepare_for(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    """The preparation of an encoder's input, without the encoder."""
    return find_entry(choice.spec.modality, choice.spec.name).prepare(choice, decode)


def build_encoder(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    """The encoder in evaluation mode, on the CPU.

    Raises:
        MismatchError: the files that were found are not this encoder's weights.
    """
    with one_builder():
        return find_entry(choice.spec.modality, choice.spec.name).build(choice, decode)


# --------------------------------------------------------------- Hugging Face text encoders


def _choose_text(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    name = Path(wish.name).resolve().name if _is_model_folder(wish.name) else wish.name
    folder = weights.find_text_encoder(wish.name, wish.weights_dir)
    layers = _layers_of(folder, wish, name, "text_layers")
    return EncoderChoice(
        spec=EncoderSpec(
            modality="text",
            name=name,
            weights=wish.weights,
            weights_hash=_text_hash(folder, wish.weights),
            pooling="mean over tokens",
            precision=precision,
            layers=layers,
            context=wish.context,
            dialogue=wish.dialogue,
        ),
        path=folder,
    )


def _is_model_folder(name: str) -> bool:
    """Of one the recipe has the last name alone: the hash tells which, a path says only where."""
    return (Path(name) / "config.json").is_file()


def _layers_of(folder: Path, wish: EncoderWish, name: str, setting: str) -> tuple[int, ...]:
    """The layers that are asked for, or all. Raises UsageError where the model has no such."""
    num_layers = weights.count_layers(folder)
    layers = wish.layers or tuple(range(num_layers))
    wrong = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if wrong:
        raise UsageError(f"{setting}: {name} has layers 0 to {num_layers - 1}, not {wrong[0]}")
    return layers


def _searches_text(wish: EncoderWish) -> bool:
    return wish.name != weights.BUNDLED_TEXT_ENCODER and not _is_model_folder(wish.name)


def _text_hash(folder: Path, choice: WeightsChoice) -> str:
    """Random weights still have a config and a tokenizer that decide values."""
    content = weights.hash_weights(folder)
    return content if choice == "pretrained" else f"{RANDOM_SEED}, {content}"


def _prepare_text(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    from pipeline.encoders.text import Tokeniser

    assert choice.path is not None
    if choice.spec.dialogue != "none":
        from pipeline.encoders.dialogues import DialogueTokeniser

        return DialogueTokeniser(choice.path)
    return Tokeniser(choice.path, reads_context=choice.spec.context > 0)


def _build_text(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.text import TextEncoder, build_text_encoder

    assert choice.path is not None
    spec = choice.spec
    build: Callable[..., TextEncoder] = partial(TextEncoder, reads_context=spec.context > 0)
    if spec.dialogue != "none":
        from pipeline.encoders.dialogues import DialogueEncoder

        build = partial(DialogueEncoder, reading=spec.dialogue)
    return build_text_encoder(
        choice.path,
        spec.layers,
        spec.precision,
        pretrained=spec.weights != "random",
        build=build,
    )


# ------------------------------------------------------------------------- static word vectors


def _choose_vectors(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    if wish.weights == "random":
        raise UsageError(
            f"--text {wish.name}: word vectors are what they are; for untrained features name a "
            "network: --weights text=random --text minilm"
        )
    reads_more = bool(wish.context) or wish.dialogue != "none"
    if wish.layers not in ((), (-1,)) or reads_more:
        setting = "--context" if reads_more else "text_layers"
        raise UsageError(
            f"--text {wish.name}: has no layers and reads no context; leave {setting} out"
        )
    kind, colon, file = wish.name.partition(":")
    if colon:
        path = vector_files.find_file(kind, file, wish.weights_dir)
        name = f"{kind}:{path.name}"  # the hash tells which; a path says only where
    else:
        path, name = vector_files.find_package(), wish.name
    return EncoderChoice(
        spec=EncoderSpec(
            modality="text",
            name=name,
            weights="pretrained",
            weights_hash=weights.hash_weights(path),
            pooling="mean over known words",
            precision="float32",
        ),
        path=path,
    )


def _kind_of_vectors(choice: EncoderChoice) -> str | None:
    kind, colon, _ = choice.spec.name.partition(":")
    return kind if colon else None


def _prepare_vectors(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    from pipeline.encoders.vectors import Opening, Words

    assert choice.path is not None
    return Words(Opening(_kind_of_vectors(choice), choice.path))


def _build_vectors(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.vectors import build_vector_encoder

    assert choice.path is not None
    return build_vector_encoder(_kind_of_vectors(choice), choice.path)


# --------------------------------------------------------------------- torchvision's video nets


def _choose_video(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    path = None
    if wish.weights == "pretrained":
        path = weights.find_video_weights(wish.name, wish.weights_dir)
    return EncoderChoice(
        spec=EncoderSpec(
            modality="video",
            name=wish.name,
            weights=wish.weights,
            weights_hash=weights.hash_weights(path) if path else RANDOM_SEED,
            pooling="global average",
            precision=precision,
        ),
        path=path,
    )


def _searches_video(wish: EncoderWish) -> bool:
    return wish.weights == "pretrained"


def _prepare_video(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    from pipeline.encoders.video import Frames

    return Frames()


def _build_video(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.video import build_video_encoder

    assert decode is not None
    spec = choice.spec
    return build_video_encoder(spec.name, choice.path, spec.precision, decode.num_frames)


# -------------------------------------------------------------------- torchvision's image nets


def _image_net(name: str) -> weights.ImageNet:
    net = weights.find_image_net(name)
    if net is None:
        raise UsageError(f"--video {name}: no net of torchvision's")
    return net


def _image_net_frames(name: str) -> tuple[FrameView, ...]:
    side = _image_net(name).resize
    return (FrameView(height=side, width=side, fit="crop"),)


def _choose_image_net(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    path, net = None, _image_net(wish.name)
    if wish.weights == "pretrained":
        path = weights.find_video_weights(wish.name, wish.weights_dir, url=net.url)
    return EncoderChoice(
        spec=EncoderSpec(
            modality="video",
            name=wish.name,
            weights=wish.weights,
            weights_hash=weights.hash_weights(path) if path else RANDOM_SEED,
            pooling="mean and standard deviation over frames",
            precision=precision,
        ),
        path=path,
    )


def _prepare_image_net(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    from pipeline.encoders.frames import MOST_TRAINING_ROWS
    from pipeline.encoders.video import Frames

    side = _image_net(choice.spec.name).crop
    return Frames(crop=(side, side), most_rows=MOST_TRAINING_ROWS)


def _build_image_net(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.frames import build_image_net_encoder

    assert decode is not None
    spec = choice.spec
    return build_image_net_encoder(spec.name, choice.path, spec.precision, decode.num_frames)


# --------------------------------------------------------------------------------------- faces

# High enough for a face across the room, and the shape of most videos; others are padded, as a
# detector of faces knows no squeezed ones.
FACE_VIEW = FrameView(height=288, width=512, fit="pad")


def _choose_faces(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    path = None
    if wish.weights == "pretrained":
        path = weights.find_face_weights()
    cascade = find_face_cascade()
    network = weights.hash_weights(path) if path else RANDOM_SEED
    return EncoderChoice(
        spec=EncoderSpec(
            modality="video",
            name=wish.name,
            weights=wish.weights,
            weights_hash=f"{network}, cascade {weights.hash_weights(cascade)}",
            pooling="mean and maximum over frames with a face",
            precision="float32",  # it is small
        ),
        path=path,
    )


def _prepare_faces(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    from pipeline.encoders.faces import FacePreparation

    return FacePreparation(find_face_cascade())


def _build_faces(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.faces import build_face_encoder

    return build_face_encoder(choice.path, find_face_cascade())


# ------------------------------------------------------------- Hugging Face models of speech


def _choose_speech(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    name = f"./{Path(wish.name).resolve().name}" if _is_model_folder(wish.name) else wish.name
    folder = weights.find_speech_model(wish.name, wish.weights_dir)
    layers = _layers_of(folder, wish, name, "audio_layers")
    return EncoderChoice(
        spec=EncoderSpec(
            modality="audio",
            name=name,
            weights=wish.weights,
            weights_hash=_text_hash(folder, wish.weights),
            pooling="mean over frames",
            precision=precision,
            layers=layers,
        ),
        path=folder,
    )


def _prepare_speech(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    from pipeline.encoders.speech import MIN_SAMPLES, SpeechSounds

    return SpeechSounds(min_samples=MIN_SAMPLES)


def _build_speech(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.speech import build_speech_encoder

    assert choice.path is not None
    assert decode is not None
    spec = choice.spec
    return build_speech_encoder(
        choice.path,
        spec.layers,
        spec.precision,
        pretrained=spec.weights != "random",
        sample_rate_hz=decode.sample_rate_hz,
    )


# ------------------------------------------------------------------------------ the spectrogram


def _choose_spectrogram(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    return EncoderChoice(
        spec=EncoderSpec(
            modality="audio",
            name=wish.name,
            weights="none",
            weights_hash=RANDOM_SEED,
            pooling="statistics over time",
            precision="float32",  # a few milliseconds a clip; nothing to gain
        )
    )


def _prepare_sounds(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
    from pipeline.encoders.audio import Sounds, window_samples

    assert decode is not None
    return Sounds(min_samples=window_samples(decode.sample_rate_hz))


def _build_spectrogram(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.audio import build_audio_encoder

    assert decode is not None
    return build_audio_encoder(decode.sample_rate_hz, choice.path)


# ---------------------------------------------------------------------------------- the prosody


def _choose_prosody(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    return EncoderChoice(
        spec=EncoderSpec(
            modality="audio",
            name=wish.name,
            weights="none",
            weights_hash="no weights",
            pooling="functionals over time",
            precision="float32",
        )
    )


def _build_prosody(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
    from pipeline.encoders.prosody_encoder import build_prosody_encoder

    assert decode is not None
    return build_prosody_encoder(decode.sample_rate_hz)


# ------------------------------------------------------------------------------------ the entries

_VIDEO_NET = EncoderEntry(
    modality="video",
    choose=_choose_video,
    prepare=_prepare_video,
    build=_build_video,
    searches=_searches_video,
    has_batchnorm=True,
    frames=lambda name: (
        FrameView(height=weights.FRAME_SIZE[0], width=weights.FRAME_SIZE[1], fit="stretch"),
    ),
)
_VECTOR_FILE = EncoderEntry(
    modality="text",
    choose=_choose_vectors,
    prepare=_prepare_vectors,
    build=_build_vectors,
    autocast=False,
    searches=lambda wish: True,
    learns=False,
)
_IMAGE_NET = EncoderEntry(
    modality="video",
    choose=_choose_image_net,
    prepare=_prepare_image_net,
    build=_build_image_net,
    searches=_searches_video,
    has_batchnorm=True,
    frames=_image_net_frames,
    knows=lambda name: weights.find_image_net(name) is not None,
)
# A name that ends in a colon is followed by a file's.
ENCODERS: dict[str, EncoderEntry] = {
    "glove": replace(_VECTOR_FILE, searches=lambda wish: False),
    "glove:": _VECTOR_FILE,
    "word2vec:": _VECTOR_FILE,
    **dict.fromkeys(weights.VIDEO_WEIGHTS, _VIDEO_NET),
    **dict.fromkeys(weights.IMAGE_NETS, _IMAGE_NET),
    "faces": EncoderEntry(
        modality="video",
        choose=_choose_faces,
        prepare=_prepare_faces,
        build=_build_faces,
        autocast=False,
        has_batchnorm=True,
        frames=lambda name: (FACE_VIEW,),
    ),
    "spectrogram": EncoderEntry(
        modality="audio",
        choose=_choose_spectrogram,
        prepare=_prepare_sounds,
        build=_build_spectrogram,
        autocast=False,
        has_weights=False,
    ),
    "prosody": EncoderEntry(
        modality="audio",
        choose=_choose_prosody,
        prepare=_prepare_sounds,
        build=_build_prosody,
        autocast=False,
        has_weights=False,
        learns=False,
    ),
}
# Where any other name may be an encoder's: of a folder, of a model on a hub, of a net of
# torchvision's.
OPEN: dict[Modality, EncoderEntry] = {
    "text": EncoderEntry(
        modality="text",
        choose=_choose_text,
        prepare=_prepare_text,
        build=_build_text,
        searches=_searches_text,
        is_layered=True,
        count_layers=weights.count_layers,
    ),
    "video": _IMAGE_NET,
    "audio": EncoderEntry(
        modality="audio",
        choose=_choose_speech,
        prepare=_prepare_speech,
        build=_build_speech,
        searches=lambda wish: not _is_model_folder(wish.name),
        is_layered=True,
        count_layers=weights.count_layers,
        knows=lambda name: name in weights.SPEECH_MODELS or "/" in name or _is_model_folder(name),
    ),
}
