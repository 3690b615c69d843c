"""`meld finetune --ensemble N`: N fine-tunings, one after another, become one run.

    members/<seed>/  each a whole run, in which a killed one is resumed
      encoders/  ──> encoders/<modality>/0, 1, ...  side by side, as several of one modality
      fusion     ──> model.safetensors              each member on features of its own encoders
    dev, by each ──> averaged probabilities ──> temperatures, scores

The members' folders are removed when the run is whole. What stays is a run like others: its
encoders make features of all members at once, and its fusion model is `fusion.model.ensemble`.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.endtoend import EndToEnd
from fusion.finetuning.job import FinetuneConfig, FinetuneJob
from fusion.finetuning.loop import StepResult, predict_raw
from fusion.finetuning.setup import LiveData
from fusion.finetuning.workers import Worker
from fusion.inference.checkpoint import Checkpoint, read_checkpoint
from fusion.inference.description import CONFIG
from fusion.inference.encoders import find_encoders_of
from fusion.model.ensemble import Fusion, average_outputs, join_members
from fusion.model.fusion import FusionModel, FusionOutput
from fusion.training.history import EpochResult, read_history
from fusion.training.run_folder import HISTORY, MEMBER_HISTORY, MEMBERS, METRICS, clear_run
from pipeline.encode import Encoders
from pipeline.encoders.encoder import AnyEncoder
from pipeline.encoders.saved import FOLDER as ENCODERS
from pipeline.encoders.saved import write_encoders
from pipeline.encoders.several import CopiedEncoder, CopiedEncoders
from pipeline.encoders.several_names import SEPARATOR
from pipeline.errors import StorageError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import Modality
from pipeline.system.device import native_precision
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED

OnStep = Callable[[StepResult], None]


def member_folders(run: Path, config: FinetuneConfig) -> list[Path]:
    seeds = range(config.seed, config.seed + config.ensemble)
    return [run / MEMBERS / str(seed) for seed in seeds]


def config_of_member(
    job: FinetuneJob, config: FinetuneConfig, folder: Path
) -> FinetuneConfig | None:
    """What makes this member, or goes on with it; None where it is done.

    job: of the ensemble; config: as it was asked for, or, resumed, as it was recorded
    """
    if (folder / CONFIG).is_file():
        return None
    if ProgressFolder(folder).is_begun:
        return FinetuneConfig.from_mapping({"out": str(folder), "resume": True})
    return replace(
        config,
        out=folder,
        run=None if job.trains_start else config.run,  # each trains a start of its own
        precision=_precision_to_ask(job),
        seed=int(folder.name),
        ensemble=1,
        resume=False,
        overwrite=True,  # a kill may have left a folder in which nothing was begun
    )


def _precision_to_ask(job: FinetuneJob) -> Literal["auto", "float32", "bfloat16"]:
    """That of the ensemble, also where a resumed one has in its settings what "auto" came to."""
    is_native = native_precision(job.hardware.workers_device) == job.hardware.precision
    return "auto" if job.asked_precision == "auto" and is_native else job.hardware.precision


def steps_of_member(number: int, members: int, on_step: OnStep) -> OnStep:
    """Tells the steps of one member as those of all."""

    def tell(step: StepResult) -> None:
        all_rows = step.rows_in_all * members
        on_step(replace(step, rows=step.rows + number * step.rows_in_all, rows_in_all=all_rows))

    return tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """The members as one.

    model: their fusion models; recipe: of the features of their encoders, which the run now holds
    output: on dev, averaged
    first: the first member, whose description is that of all
    """

    model: Fusion
    recipe: FeatureRecipe
    output: FusionOutput
    first: Checkpoint


def join(run: Path, folders: Sequence[Path], live: LiveData, device: torch.device) -> Joined:
    """Writes the encoders of all members into the run, and measures their average on dev.

    live: what the members were trained and are measured on
    Raises StorageError, or what reading a member raises.
    """
    members = [read_checkpoint(folder) for folder in folders]
    models = [each.model for each in members if isinstance(each.model, FusionModel)]
    outputs = [
        _predict(folder, member, live, device)
        for folder, member in zip(folders, members, strict=True)
    ]
    encoders: dict[Modality, Any] = {}
    specs = []
    for spec in members[0].recipe.encoders:
        saved = [folder / ENCODERS / spec.modality for folder in folders]
        if spec.modality in live.unfrozen:
            encoders[spec.modality] = CopiedEncoders(saved)
            specs.append(replace(spec, name=SEPARATOR.join([spec.name] * len(folders))))
        else:  # the same in all
            encoders[spec.modality] = CopiedEncoder(saved[0])
            specs.append(spec)
    recipe = write_encoders(
        run,
        _as_encoders(encoders),
        replace(members[0].recipe, encoders=tuple(specs)),
        live.unfrozen,
    )
    _write_histories(run, folders)
    return Joined(
        model=join_members(models, own=live.unfrozen),
        recipe=recipe,
        output=average_outputs(outputs),
        first=members[0],
    )


def _as_encoders(saved: dict[Modality, Any]) -> dict[Modality, AnyEncoder]:
    """They are saved, and nothing else is asked of them."""
    return saved


def _predict(
    folder: Path, member: Checkpoint, live: LiveData, device: torch.device
) -> FusionOutput:
    """Of every row of dev, by one member."""
    assert isinstance(member.model, FusionModel)
    choices = find_encoders_of(folder, member)
    whole = [replace(each, spec=replace(each.spec, precision="float32")) for each in choices]
    model = EndToEnd(
        Encoders(whole, member.recipe.decode),
        member.model,
        unfrozen=live.unfrozen,
        precision=live.job.hardware.precision,
    ).to(device)
    output = predict_raw(model, live.dev, Worker(device=device), batch_size=32)
    member.model.cpu().eval()
    return output


def _write_histories(run: Path, folders: Sequence[Path]) -> None:
    lines = [
        json.dumps({"seed": int(folder.name)} | dataclasses.asdict(result)) + "\n"
        for folder in folders
        for result in read_history(folder / HISTORY)
    ]
    write_whole(run / MEMBER_HISTORY, "".join(lines).encode())


def histories_of(folders: Sequence[Path]) -> list[list[EpochResult]]:
    return [read_history(folder / HISTORY) for folder in folders]


def told_by(folders: Sequence[Path], name: str) -> list[float]:
    """A number of each member's `metrics.json`. Raises StorageError."""
    try:
        return [float(json.loads((folder / METRICS).read_bytes())[name]) for folder in folders]
    except (OSError, *MALFORMED) as error:
        raise StorageError(f"{folders[0].parent}: a member's {METRICS}: {error!r}") from error


def remove_members(run: Path, folders: Sequence[Path]) -> None:
    """What they hold is in the run; some may be gone already. Raises StorageError."""
    try:
        for folder in folders:
            if folder.is_dir():
                clear_run(folder)
                shutil.rmtree(folder, ignore_errors=True)
        if (run / MEMBERS).is_dir():
            (run / MEMBERS).rmdir()
    except OSError as error:
        raise StorageError(f"{run / MEMBERS}: cannot be removed: {error}") from error
