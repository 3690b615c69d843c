"""The generated corpus in MELD's format: own sentences, speech and faces, with known answers."""
