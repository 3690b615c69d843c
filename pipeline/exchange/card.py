"""The dataset card of a folder of Parquet files: README.md, which tells Hugging Face's `datasets`
which file is which split, and people what is in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.recipe import FeatureRecipe
from pipeline.schema import EMOTIONS, SENTIMENTS, Split

_HEAD = ("---", "configs:", "- config_name: default", "  data_files:")
_TITLE = (
    "# Features of utterances",
    "",
    "Written by `meld convert --to parquet`. One row is one utterance of a conversation. The "
    "licence is that of the corpus that the features were made of.",
)
# As the hub names them.
HUB_SPLITS: Mapping[Split, str] = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """What the card says of one file. shapes: of one row, by column"""

    split: Split
    file: str
    rows: int
    shapes: Mapping[str, tuple[int, ...]]
    present: Mapping[str, int]


def write_card(recipe: FeatureRecipe, splits: Sequence[SplitFacts]) -> str:
    """The text of the card."""
    head = list(_HEAD)
    for each in splits:
        head += [f"  - split: {HUB_SPLITS[each.split]}", f"    path: {each.file}"]
    return "\n".join([*head, "---", "", *_body(recipe, splits), ""])


def is_card(content: bytes) -> bool:
    """Whether a file begins as `write_card` begins: only that is replaced."""
    text = content.decode(errors="replace")
    head, end, body = text.partition("\n---\n\n")
    return bool(end) and head.startswith("\n".join(_HEAD)) and body.startswith("\n".join(_TITLE))


def _body(recipe: FeatureRecipe, splits: Sequence[SplitFacts]) -> list[str]:
    shapes = {name: shape for each in splits for name, shape in each.shapes.items()}
    lines = [
        *_TITLE,
        "",
        "| split | file | rows |" + "".join(f" {name} |" for name in recipe.modalities),
        "| --- | --- | --- |" + " --- |" * len(recipe.modalities),
    ]
    for each in splits:
        there = "".join(f" {each.present[name]} |" for name in recipe.modalities)
        lines.append(f"| {HUB_SPLITS[each.split]} | {each.file} | {each.rows} |{there}")
    lines += [
        "",
        "| column | what |",
        "| --- | --- |",
        "| dialogue_id, utterance_id | whole numbers; together, one utterance of the split |",
        "| text, speaker | text |",
        f"| emotion | {', '.join(EMOTIONS)}, or null where the corpus has no label |",
        f"| sentiment | {', '.join(SENTIMENTS)}, or null |",
    ]
    for name in recipe.modalities:
        lines.append(
            f"| {name}_present | whether the utterance has {name}; if not, its features are zeros |"
        )
    for column, shape in shapes.items():
        lines.append(f"| {column} | float32 {list(shape)}{_axes(shape)} |")
    lines += ["", "| modality | encoder | weights | pooling |", "| --- | --- | --- | --- |"]
    for spec in recipe.encoders:
        lines.append(f"| {spec.modality} | {spec.name} | {spec.weights} | {spec.pooling} |")
    lines += [
        "",
        f"The recipe's fingerprint is `{recipe.fingerprint}`; the whole recipe is in the metadata "
        "of each file (key `meld`). `meld convert FOLDER --to cache --out features` gives back the "
        "caches, equal to the bit.",
    ]
    return lines


def _axes(shape: Sequence[int]) -> str:
    return " (layers, features)" if len(shape) > 1 else ""
