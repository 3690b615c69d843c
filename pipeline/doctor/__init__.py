"""`meld doctor`: what a corpus and a machine have, lack, and have that is not in order."""
