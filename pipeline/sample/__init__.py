"""The generated MELD-shaped corpus: our own sentences, speech, faces, and known answers."""
