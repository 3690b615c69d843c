"""`meld doctor`: checks a corpus and a machine."""
