"""The text that `meld` alone prints, and the groups of commands in its help."""

# Title -> commands, in the order of `meld --help`.
GROUPS: dict[str, tuple[str, ...]] = {
    "See it work": ("demo", "predict", "serve", "listen"),
    "Get and check clips": ("download", "doctor", "sample"),
    "Make features and train": ("extract", "import", "convert", "info", "train-fusion", "finetune"),
    "Measure and compare": ("evaluate", "compare", "crossval", "ablate", "search", "report"),
    "Ship a model": ("export", "verify"),
    "Look up": ("config",),
}

FIRST_STEPS = """\
meld recognises the emotions in a video, utterance by utterance, and trains models for it,
on MELD or on clips of your own.

  meld predict talk.mp4        your video: emotions over time, by the small bundled model
  meld demo                    no video: the whole pipeline on a generated corpus, in minutes
  meld doctor --data FOLDER    your own clips and CSV: what is right, what is missing, what is next
  meld download                the real MELD: 10.9 GB, 23 GB of disk until it is unpacked

meld --help lists all commands, meld COMMAND --help shows one with examples."""
