"""What `meld` says to someone who comes for the first time, and how it groups its commands."""

# Title -> commands, in the order of `meld --help`.
GROUPS: dict[str, tuple[str, ...]] = {
    "See it work": ("demo", "predict", "serve", "listen"),
    "Get and check clips": ("download", "doctor", "sample"),
    "Make features and train": ("extract", "info", "train-fusion", "finetune"),
    "Measure and compare": ("evaluate", "compare", "crossval", "ablate", "report"),
    "Look up": ("config",),
}

FIRST_STEPS = """\
meld says what is felt in a video, utterance by utterance, and trains the models that do,
on MELD or on clips of your own.

  meld predict talk.mp4        your video: emotions over time, by a small model that comes along
  meld demo                    no video: the whole way on a generated corpus, in minutes
  meld doctor --data FOLDER    your own clips and CSV: what is right, what is missing, what is next
  meld download                the real MELD: 10.9 GB, 23 GB of disk until it is unpacked

meld --help lists all commands, meld COMMAND --help shows one with examples."""
