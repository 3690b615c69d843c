"""The encoders of a fine-tuned run: a folder with their specs and weights.

    encoders.json               format, decode settings, per modality its spec and files' hash
    text/                       a Hugging Face folder
    video/<name>.safetensors    the trunk
    audio/<name>.safetensors    the small CNN

All encoders of a run are in it, the untouched ones too, so that a run is enough to extract,
evaluate or predict with.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from pipeline.encoders.encoder import AnyEncoder
from pipeline.encoders.weights import hash_weights
from pipeline.errors import CacheCorrupt, InputError, MismatchError, StorageError
from pipeline.recipe import EncoderSpec, FeatureRecipe
from pipeline.schema import Modality
from pipeline.system.files import sync, write_whole
from pipeline.system.json_values import MALFORMED

FOLDER = "encoders"
INDEX = "encoders.json"
INDEX_PATH = f"{FOLDER}/{INDEX}"  # in the run
FORMAT = "meld-encoders"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SavedEncoders:
    """The content of a run's `encoders.json`.

    recipe: of features made with them; files: per modality the hash of its files, as written
    """

    folder: Path
    recipe: FeatureRecipe
    files: Mapping[Modality, str]

    def spec(self, modality: Modality) -> EncoderSpec:
        for spec in self.recipe.encoders:
            if spec.modality == modality:
                return spec
        raise InputError(
            f"{self.folder}: no {modality} encoder; it has {', '.join(self.recipe.modalities)}"
        )

    def path(self, modality: Modality) -> Path:
        return self.folder / modality

    def check_files(self, modality: Modality) -> None:
        """Reads and hashes the files, which are hundreds of megabytes, so it is done once per
        start.

        Raises:
            CacheCorrupt: not the files that were written.
        """
        folder = self.path(modality)
        try:
            found = _hash_files(folder)
        except OSError as error:
            raise CacheCorrupt(f"{folder}: cannot be read ({error}); fine-tune again") from error
        if found != self.files[modality]:
            raise CacheCorrupt(
                f"{folder}: not the files that fine-tuning wrote (their hash "
                "differs from encoders.json's); fine-tune again, or restore them"
            )


def write_encoders(
    run: Path,
    encoders: Mapping[Modality, AnyEncoder],
    recipe: FeatureRecipe,
    tuned: Collection[Modality],
) -> FeatureRecipe:
    """Writes `run`/encoders, whole or not at all; returns the recipe of their features.

    recipe: how the encoders were before; tuned: those that were trained.
    Raises StorageError.
    """
    folder, temporary = run / FOLDER, run / f".{FOLDER}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for spec in recipe.encoders:
            (temporary / spec.modality).mkdir(parents=True)
            encoders[spec.modality].save(temporary / spec.modality)
        hashes = {name: _hash_files(temporary / name) for name in recipe.modalities}
        specs = tuple(
            _tuned(spec, hashes[spec.modality]) if spec.modality in tuned else spec
            for spec in recipe.encoders
        )
        recipe = replace(recipe, encoders=specs)
        index = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "recipe": recipe.to_dict(),
            "files": hashes,
        }
        write_whole(temporary / INDEX, json.dumps(index, indent=2).encode())
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        if (folder / INDEX).is_file():  # else it is not ours, and the next line says so
            shutil.rmtree(folder)
        temporary.replace(folder)
        sync(run)
    except (OSError, SafetensorError) as error:  # safetensors tells of a full disk in its own way
        raise StorageError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # renamed by now, or half of it
    return recipe


def _hash_files(folder: Path) -> str:
    """Of the files in the folder, and in its folders where it has some: several encoders of one
    modality have one each."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    if not inner:
        return hash_weights(folder)
    whole = "\n".join(f"{path.name} {hash_weights(path)}" for path in inner)
    return f"sha256:{hashlib.sha256(whole.encode()).hexdigest()}"


def _tuned(spec: EncoderSpec, files_hash: str) -> EncoderSpec:
    origin = spec.started_from or spec.weights
    return replace(spec, weights="finetuned", weights_hash=files_hash, started_from=origin)


def holds_encoders(run: Path) -> bool:
    """Whether it is a fine-tuned run or a bundle with its own encoders."""
    return (run / INDEX_PATH).is_file()


def read_encoders(run: Path) -> SavedEncoders:
    """What a fine-tuned run says that it owns; its files are read by `check_files` and when an
    encoder is built.

    Raises:
        InputError: no run, or one that was not fine-tuned.
        CacheCorrupt: encoders.json is damaged.
        MismatchError: another version of the format.
    """
    folder = run / FOLDER
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{run}: holds no encoders of its own; only a fine-tuned run does "
            "(meld finetune --end-to-end)"
        )
    try:
        index = json.loads(path.read_bytes())
        version, hashes = index["format_version"], index["files"]
        if version != FORMAT_VERSION:
            raise MismatchError(f"{path}: format version {version}, wanted {FORMAT_VERSION}")
        recipe = FeatureRecipe.from_json(json.dumps(index["recipe"]))
        files = {modality: str(hashes[modality]) for modality in recipe.modalities}
    except (OSError, *MALFORMED) as error:
        raise CacheCorrupt(f"{path}: cannot be read ({error!r}); fine-tune again") from error
    return SavedEncoders(folder=folder, recipe=recipe, files=files)
